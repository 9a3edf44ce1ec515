"""The bundle: whole or not there, true to its student, free of anything local."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from bundles import add_model, edit
from making import change_recipe
from PIL import Image

import okdc
from okdc.__main__ import main
from okdc.api import Run
from okdc.assembly import student as students
from okdc.bundle import layout, session, web
from okdc.bundle.session import Session
from okdc.cli import ship
from okdc.data.images import RESIZE
from okdc.deploy import cause, export, onnx, parity
from okdc.deploy import torch_reference as sides
from okdc.deploy.reduced import Wanted
from okdc.errors import RunError
from okdc.runs import locks
from okdc.runs.files import read_json
from okdc.runs.run import RunDir


def test_a_bundle_holds_what_the_contract_names(exported: Path) -> None:
    names = sorted(p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file())
    samples = sorted([f"sample/{i}.png" for i in range(5)] + ["sample/expected.json"])
    files = ["README.md", "answers.json", "infer.py", "manifest.json", "model.onnx", "parity.json", "profile.json"]
    assert names == sorted([*files, *samples])
    assert not [p for p in exported.parent.iterdir() if p.name.startswith(".bundle")], "no scaffolding is left"


def test_the_manifest_is_true(exported: Path, finished: RunDir) -> None:
    manifest = read_json(exported / "manifest.json")
    for name, facts in manifest["files"].items():
        content = (exported / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    result = read_json(finished.result)
    assert manifest["labels"] == [str(d) for d in range(10)]
    assert manifest["input"]["resize"] == RESIZE
    assert (manifest["input"]["height"], manifest["input"]["layout"]) == (8, "NHWC")
    assert manifest["models"]["float32"]["top1_pct"] == result["kept"]["top1_pct"]
    assert manifest["accuracy"]["split"] == "test"
    assert manifest["weights_sha256"] == result["weights_sha256"]
    assert manifest["recipe"]["optim"]["epochs"] == 8
    assert manifest["normalisation"]["mean"] == manifest["recipe"]["data"]["mean"]


def test_no_local_path_is_in_the_bundle(exported: Path, run: RunDir) -> None:
    for path in exported.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (str(run.path).encode(), str(Path.home()).encode() + b"/", b"site-packages"):
                assert trace not in content, path


def test_the_model_file_is_the_same_from_every_run_folder(exported: Path, finished: RunDir, blob: bytes) -> None:
    assert (exported / "model.onnx").read_bytes() == blob
    assert exported.parent != finished.path


def test_the_samples_are_images_of_the_judging_split_with_the_students_logits(exported: Path, finished: RunDir) -> None:
    expected = json.loads((exported / "sample" / "expected.json").read_text())
    student = students.load(finished)
    network, info = student.network, student.info
    side = sides.Torch(network, info.preprocessing)
    told = expected["models"]["float32"]
    pixels = np.stack([np.array(Image.open(exported / "sample" / case["image"])) for case in expected["cases"]])
    assert pixels.shape[1:] == (8, 8, 3)
    assert len(pixels) == len(told["logits"])
    np.testing.assert_allclose(side.logits(pixels), told["logits"], atol=1e-6)  # the batch that they were asked in
    assert 1e-5 <= told["tolerance"] < 1e-3


def test_parity_says_what_was_compared(exported: Path) -> None:
    report = read_json(exported / "parity.json")["float32"]
    assert report["passed"]
    assert report["failures"] == []
    assert (report["split"], report["images"], report["agreement_pct"]) == ("test", 797, 100.0)
    assert set(report["invariance_max_abs"]) == {"batch_2", "batch_7", "batch_64", "batch_135", "2_threads"}
    allowed, found = report["logits"]["allowed"], report["logits"]["max_abs"]
    assert set(allowed) == {"images", "extreme_images"}
    assert found["images"] <= allowed["images"] < 1e-3
    assert found["images_float64"] <= allowed["images"]
    assert found["extreme_images"] <= allowed["extreme_images"] < 1e-2
    top1 = report["top1_pct"]
    assert top1["torch"] == top1["onnx"] == top1["recorded"]


def test_exporting_again_replaces_the_bundle(exported: Path, run: RunDir) -> None:
    (exported / "stale.txt").write_text("from another time")
    assert main(["export", str(run.path), "--onnx"]) == 0
    assert not (exported / "stale.txt").exists()
    assert (exported / "manifest.json").is_file()


def test_a_failed_check_leaves_an_earlier_bundle_alone_and_says_so(
    exported: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (exported / "manifest.json").read_bytes()
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: b"no model")
    assert main(["export", str(run.path), "--onnx"]) == 1
    assert (exported / "manifest.json").read_bytes() == before
    assert (run.path / "bundle.rejected" / "model.onnx").read_bytes() == b"no model"
    assert f"the earlier bundle {exported} is untouched" in capsys.readouterr().err


def test_a_place_that_another_process_writes_to_is_refused_before_anything_is_made(
    exported: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (exported / "manifest.json").read_bytes()
    monkeypatch.setattr(onnx, "to_onnx", _not_again)
    with locks.written(exported):
        assert main(["export", str(run.path), "--onnx"]) == 2
    assert "is being written by another process" in capsys.readouterr().err
    assert (exported / "manifest.json").read_bytes() == before


def _not_again(*_: object) -> bytes:
    raise AssertionError("it was exported again")


@pytest.fixture
def with_int8(exported: Path, blob: bytes) -> Path:
    """The run's bundle, with a second model that it would take minutes to make again."""
    return add_model(exported, "int8", blob, 1e-4)


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    """onnxruntime-web, as far as a page looks at it."""
    (tmp_path / "ort").mkdir()
    for name in web.RUNTIME:
        (tmp_path / "ort" / name).touch()
    return str(tmp_path / "ort")


def test_a_page_is_made_of_the_bundle_that_is_there_and_takes_no_model_from_it(
    with_int8: Path, run: RunDir, runtime: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "to_onnx", _not_again)
    before = {path: path.read_bytes() for path in with_int8.rglob("*") if path.is_file()}
    assert main(["export", str(run.path), "--target", "web", "--runtime", runtime, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(run.path / "web")
    assert {path: path.read_bytes() for path in with_int8.rglob("*") if path.is_file()} == before
    for path, content in before.items():
        assert (run.path / "web" / "bundle" / path.relative_to(with_int8)).read_bytes() == content


@pytest.mark.parametrize("change", ["weights_sha256", "recipe_sha256", "labels", "a damaged file", "no manifest"])
def test_a_page_of_a_run_whose_bundle_is_of_another_student_or_damaged_is_exported_anew(
    exported: Path, run: RunDir, runtime: str, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    manifest = read_json(exported / "manifest.json")
    if change == "a damaged file":
        (exported / "sample" / "0.png").write_bytes(b"other")
    elif change == "no manifest":
        (exported / "manifest.json").write_text("{")
    else:
        value = manifest["labels"][::-1] if change == "labels" else "0" * 64
        edit(exported / "manifest.json", lambda manifest: manifest.update({change: value}))
    assert main(["export", str(run.path), "--target", "web", "--runtime", runtime]) == 0
    made = {"files", "created_at", "models", "sha256"}
    for folder in (exported, run.path / "web" / "bundle"):
        again = read_json(folder / "manifest.json")
        assert {key: again[key] for key in again if key not in made} == {
            key: manifest[key] for key in manifest if key not in made
        }
    assert str(exported) in capsys.readouterr().err, "it is said why"


def test_no_export_takes_a_model_away_that_was_not_asked_for(
    with_int8: Path, run: RunDir, runtime: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (with_int8 / "manifest.json").read_bytes()
    for words in (["--onnx"], ["--onnx", "--fp16"], ["--target", "web", "--runtime", runtime, "--license", "mit"]):
        with monkeypatch.context() as patch:
            patch.setattr(onnx, "to_onnx", _not_again)
            assert main(["export", str(run.path), *words]) == 2
        said = capsys.readouterr().err
        assert "int8" in said
        assert all(way in said for way in ("--int8", "--replace", "-o"))
        assert (with_int8 / "manifest.json").read_bytes() == before
    with pytest.raises(RunError):
        okdc.export(run.path)
    assert main(["export", str(run.path), "--onnx", "--replace"]) == 0
    assert "had int8, this one has not" in capsys.readouterr().err
    assert not (with_int8 / "model.int8.onnx").exists()


def test_a_model_that_is_asked_for_again_is_no_loss(with_int8: Path) -> None:
    export._refuse_loss(with_int8, Wanted(int8=True))
    with pytest.raises(RunError):
        export._refuse_loss(with_int8, Wanted(float16=True))


def test_the_current_folder_can_be_the_bundle(
    run: RunDir, blob: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: blob)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["export", str(run.path), "--onnx", "-o", "."]) == 0
    assert (tmp_path / "here" / "manifest.json").is_file()


def test_a_file_that_an_engine_refuses_is_a_failed_check(
    run: RunDir, blob: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: blob)
    monkeypatch.setattr(session, "INPUT", "picture")
    monkeypatch.setattr(export, "check_structure", lambda *_: None)
    assert main(["export", str(run.path), "--onnx"]) == 1
    assert "onnxruntime cannot run the file" in capsys.readouterr().err
    assert (run.path / "bundle.rejected" / "model.onnx").is_file()


def test_a_folder_that_is_no_bundle_is_not_touched(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.path.parent / "holiday"
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"dear")
    assert main(["export", str(run.path), "--onnx", "-o", str(out)]) == 2
    assert "is no bundle" in capsys.readouterr().err
    assert (out / "photo.jpg").read_bytes() == b"dear"


def test_a_full_disk_is_said_and_leaves_nothing(
    run: RunDir, blob: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx, "to_onnx", lambda *_: blob)
    monkeypatch.setattr("os.fsync", full)
    assert main(["export", str(run.path), "--onnx"]) == 2
    assert "error[disk]" in capsys.readouterr().err
    assert not [p for p in run.path.iterdir() if "bundle" in p.name]


def test_an_interruption_leaves_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "to_onnx", interrupted)
    assert main(["export", str(run.path), "--onnx"]) == 130
    assert not [p for p in run.path.iterdir() if "bundle" in p.name]


def test_an_unfinished_run_has_no_student(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.result.unlink()
    assert main(["export", str(run.path), "--onnx"]) == 2
    said = capsys.readouterr().err
    assert "resumable" in said
    assert f"okdc resume {run.path}" in said


def test_damaged_weights_are_said(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.weights.write_bytes(run.weights.read_bytes()[:1000])
    assert main(["export", str(run.path), "--onnx"]) == 2
    assert "not the weights" in capsys.readouterr().err


def test_without_a_test_split_no_number_is_called_a_test_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for c in range(2):
        folder = tmp_path / "images" / "train" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(30):
            noise = rng.integers(0, 100, (10, 12, 3), dtype=np.uint8) + np.uint8(100 * c)
            Image.fromarray(noise).save(folder / f"{i}.png")
    words = ["folder_resnet20", "data.root=images", "data.image_size=8", "augment.padding=1", "optim.epochs=1"]
    words += ['cohort.students=["resnet8", "resnet8"]', "optim.batch_size=16", "data.val_fraction=0.3", "-o", "run"]
    assert main(["distill", *words]) == 0
    said = capsys.readouterr()
    assert "% on validation" in said.out
    assert " test " not in said.out
    assert "no test split" in said.err
    result = read_json(Path("run/result.json"))
    assert (result["judged_on"], result["images"]) == ("validation", 18)
    assert main(["export", "run", "--onnx", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parity"]["float32"]["split"] == "validation"
    assert read_json(Path("run/bundle/manifest.json"))["accuracy"]["split"] == "validation"


def test_images_that_moved_are_named_with_the_way_out(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    change_recipe(run, lambda tables: tables["data"].update(name="folder", root="gone"))
    assert main(["export", str(run.path), "--onnx"]) == 2
    said = capsys.readouterr().err
    assert f"{Path.cwd()}/gone" in said
    assert "--data-root DIR" in said


def test_whoever_has_the_images_is_told_how_a_bundle_is_checked_on_them(run: RunDir) -> None:
    assert ship._where_images_are(Run(run.path), None) == (), "verify has the digits itself"
    change_recipe(run, lambda tables: tables["data"].update(name="folder", root="my pictures"))
    assert ship._where_images_are(Run(run.path), None) == ("--data-root", Path("my pictures"))
    assert ship._where_images_are(Run(run.path), "moved here") == ("--data-root", Path("moved here"))


@pytest.mark.parametrize(("manifest", "words"), [(True, "--target web"), (False, "--onnx")])
def test_an_export_without_a_format_is_told_the_one_that_works(
    capsys: pytest.CaptureFixture[str], manifest: bool, words: str
) -> None:
    Path("a folder").mkdir()
    if manifest:
        Path("a folder/manifest.json").touch()
    assert main(["export", "a folder"]) == 2
    assert f"hint: okdc export 'a folder' {words}\n" in capsys.readouterr().err


def test_few_images_are_enough_for_every_batch_size(finished: RunDir, blob: bytes, tmp_path: Path) -> None:
    """A split smaller than the largest batch is repeated, not skipped."""
    path = tmp_path / "model.onnx"
    path.write_bytes(blob)
    student = students.load(finished)
    network, info = student.network, student.info
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    labels = Session(blob)(images)[0].argmax(1)
    report, _ = parity.check(path, network, info, images, labels, 100.0, "test")
    assert report.passed, report.failures
    assert report.images == 3


def test_a_student_whose_answers_are_not_finite_never_passes(finished: RunDir, blob: bytes, tmp_path: Path) -> None:
    """Its float64 noise would be infinite, and with it what is allowed."""
    path = tmp_path / "model.onnx"
    path.write_bytes(blob)
    student = students.load(finished)
    network, info = student.network, student.info
    next(network.head.parameters()).data.fill_(float("nan"))
    images = np.zeros((8, 8, 8, 3), np.uint8)
    report, _ = parity.check(path, network, info, images, np.zeros(8, np.int64), 0.0, "test")
    assert not report.passed
    assert "the student itself gives logits that are not finite" in report.failures
    json.dumps(report.to_json(), allow_nan=False)  # clients read it in languages that know no NaN


def test_exchanged_classes_are_found_among_a_thousand() -> None:
    rng = np.random.default_rng(0)
    torch_logits = rng.normal(size=(5000, 1000)).astype(np.float32)
    order = np.arange(1000)
    order[[7, 812]] = order[[812, 7]]
    evidence = cause.Evidence(
        images=np.zeros((5000, 1, 1, 3), np.uint8),
        torch_side=None,  # type: ignore[arg-type]
        torch=torch_logits,
        onnx=torch_logits[:, order],
        bound=1e-5,
    )
    assert cause._class_order(evidence) == "class order: the logits of classes 7, 812 are exchanged"


def test_a_rejected_name_never_collides_with_the_bundle() -> None:
    assert layout.rejected(Path("a/bundle")) == Path("a/bundle.rejected")
    assert export.SAMPLES == 5
