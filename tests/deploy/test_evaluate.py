"""`okdc evaluate`: the recorded number again from the student or the bundle, and what is said where it is another."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask, write_tree
from making import record, seal, write_json
from pictures import write_imagenet
from reading import read_data
from safetensors.torch import load_file, save_file

from okdc.__main__ import main
from okdc.assembly import student as students
from okdc.bundle import test_images as judged
from okdc.deploy import evaluate, onnx
from okdc.deploy import torch_reference as sides
from okdc.runs.accuracy import interval_pct
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported_once(finished: RunDir, blob: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's bundle, away from it. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("exported_once") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "to_onnx", lambda *_: blob)
        assert main(["export", str(finished.path), "--onnx", "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def bundle(exported_once: Path) -> Path:
    """A copy of it, the test's own."""
    return Path(shutil.copytree(exported_once, "bundle"))


@pytest.fixture(scope="module")
def of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, and run/ trained on them with its bundle. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("of_images")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OKDC_CACHE", str(folder / "cache"))
        write_tree(Path("images"), {"train": {"a": 30, "b": 30}, "valid": {"a": 6, "b": 6}, "test": {"a": 9, "b": 8}})
        words = ["data.image_size=8", "augment.padding=1", 'cohort.students=["resnet8", "resnet8"]']
        words += ["optim.epochs=1", "optim.batch_size=16", "--data-root", "images", "-o", "run"]
        assert main(["distill", "folder_resnet20", *words]) == 0
        assert main(["export", "run", "--onnx"]) == 0
    return folder


@pytest.fixture
def moved(of_images: Path, tmp_path: Path) -> Path:
    """The bundle alone and the images beside it, both copies."""
    for name, source in (("bundle", of_images / "run/bundle"), ("elsewhere", of_images / "images")):
        shutil.copytree(source, tmp_path / name)
    return Path("bundle")


def facts_of(capsys: Captured, *words: str) -> dict[str, Any]:
    answer = ask(capsys, "evaluate", *words, "--json")
    assert answer.code == 0, answer.err
    facts: dict[str, Any] = json.loads(answer.out)
    return facts


def lie(path: Path, *keys: str, value: object) -> None:
    """Change one value of a JSON file."""
    whole = facts = read_json(path)
    for key in keys[:-1]:
        facts = facts[key]
    facts[keys[-1]] = value
    write_json(path, whole)


# --- a run


def test_a_run_gives_the_number_that_it_recorded(capsys: Captured, finished: RunDir) -> None:
    facts = facts_of(capsys, str(finished.path))
    result = read_json(finished.result)
    assert facts["top1_pct"] == facts["recorded_top1_pct"] == result["kept"]["top1_pct"]
    assert (facts["kind"], facts["split"], facts["images"]) == ("run", "test", 797)
    assert facts["interval_pct"] == interval_pct(facts["top1_pct"], 797)
    assert facts["balanced_accuracy_pct"] == result["kept"]["balanced_accuracy_pct"]
    assert facts["above_largest_class"]


def test_the_report_is_what_the_students_answers_say(capsys: Captured, finished: RunDir) -> None:
    """Counted one by one, from the logits of the other side of the parity check."""
    data = read_data("digits")
    student = students.load(finished)
    side = sides.Torch(student.network, student.info.preprocessing)
    logits = side.logits(data.images[data.test].numpy())
    pairs = Counter((str(int(y)), str(int(z.argmax()))) for z, y in zip(logits, data.labels[data.test], strict=True))
    facts = facts_of(capsys, str(finished.path))
    for row in facts["classes"]:
        images = sum(count for (label, _), count in pairs.items() if label == row["class"])
        assert (row["images"], row["right"]) == (images, pairs[row["class"], row["class"]])
        assert row["top1_pct"] == pytest.approx(100 * row["right"] / images, abs=1e-4)
    wrong = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    found = {(row["class"], row["taken_for"]): row["images"] for row in facts["confused"]}
    assert found.items() <= wrong.items()
    assert len(found) == min(evaluate.MOST_PAIRS, len(wrong))
    assert list(found.values()) == sorted(wrong.values(), reverse=True)[: len(found)]
    near = [sorted(z, reverse=True)[4] <= z[int(y)] for z, y in zip(logits, data.labels[data.test], strict=True)]
    assert facts["top5_pct"] == pytest.approx(100 * np.mean(near), abs=1e-4)


def test_the_keys_of_the_report_are_these(capsys: Captured, finished: RunDir) -> None:
    facts = facts_of(capsys, str(finished.path))
    assert set(facts) == {
        "schema", "kind", "run", "engine", "split", "architecture", "images", "top1_pct", "interval_pct",
        "balanced_accuracy_pct", "largest_class_pct", "smallest_class_pct", "above_largest_class",
        "recorded_top1_pct", "top5_pct", "classes", "confused",
    }  # fmt: skip
    assert set(facts["classes"][0]) == {"class", "images", "right", "top1_pct"}
    assert set(facts["confused"][0]) == {"class", "taken_for", "images"}


def test_without_a_name_the_newest_complete_run_is_read_and_a_warning_given(
    capsys: Captured, finished: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs").mkdir()
    Path("runs/x-1").symlink_to(finished.path)
    answer = ask(capsys, "evaluate")
    assert answer.code == 0
    assert "nothing named: runs/x-1 is the newest complete run" in answer.err
    assert "the 797 test images are read again: a look at one student, not a way to choose" in answer.err
    assert "next: okdc export runs/x-1 --onnx" in answer.err
    top1 = read_json(finished.result)["kept"]["top1_pct"]
    assert f"{top1:.2f} % recorded (torch, float32, CPU)" in answer.out
    monkeypatch.setattr("okdc.cli.tables.WORST", 3)
    few = ask(capsys, "evaluate")
    assert "the 3 worst of 10 classes" in few.err
    worst = sorted(facts_of(capsys)["classes"], key=lambda row: row["top1_pct"])[:3]
    assert [line.split()[0] for line in few.out.splitlines()[1:4]] == [row["class"] for row in worst]


def test_another_number_than_recorded_is_a_failed_check(capsys: Captured, run: RunDir) -> None:
    before = read_json(run.result)["kept"]["top1_pct"]
    record(run, top1_pct=before + 0.13)  # one image of 797
    answer = ask(capsys, "evaluate", str(run.path))
    assert answer.code == 1
    assert answer.err.count("error[accuracy]") == 1
    assert f"{before:.2f} % of 797 images found, {before + 0.13:.2f} % recorded" in answer.err


def test_what_rounding_on_another_machine_may_do_is_allowed(capsys: Captured, run: RunDir) -> None:
    before = read_json(run.result)["kept"]["top1_pct"]
    record(run, top1_pct=before + 0.9 * judged.SAME_PCT)
    assert facts_of(capsys, str(run.path))["top1_pct"] == before


def test_weights_that_are_not_the_recorded_ones_are_a_failed_check(capsys: Captured, run: RunDir) -> None:
    weights = load_file(run.weights)
    next(w for w in weights.values() if w.is_floating_point()).add_(1e-3)
    save_file(weights, run.weights)
    answer = ask(capsys, "evaluate", str(run.path))
    assert answer.code == 1
    assert "error[accuracy]" in answer.err
    assert "student.safetensors is not the file that the run recorded" in answer.err


def test_weights_that_give_no_numbers_are_a_failed_check(capsys: Captured, run: RunDir) -> None:
    weights = load_file(run.weights)
    next(w for w in weights.values() if w.is_floating_point()).fill_(float("nan"))
    save_file(weights, run.weights)
    seal(run)
    answer = ask(capsys, "evaluate", str(run.path))
    assert answer.code == 1
    assert "logits that are not finite" in answer.err


def test_other_images_than_the_runs_are_refused(capsys: Captured, run: RunDir) -> None:
    lie(run.info, "data_sha256", value="0" * 64)
    answer = ask(capsys, "evaluate", str(run.path))
    assert answer.code == 2
    assert "error[data]: the images are not those of" in answer.err


def test_an_unfinished_run_has_no_student_to_evaluate(capsys: Captured, run: RunDir) -> None:
    run.result.unlink()
    answer = ask(capsys, "evaluate", str(run.path))
    assert answer.code == 2
    assert "resumable, not complete" in answer.err
    assert f"okdc resume {run.path}" in answer.err


def test_a_recipe_that_judges_on_other_images_is_refused(capsys: Captured, run: RunDir) -> None:
    lie(run.result, "images", value=800)
    answer = ask(capsys, "evaluate", str(run.path))
    assert answer.code == 2
    assert "was judged on 800 test images, the data has 797 test images" in answer.err


@pytest.mark.parametrize("thing", ["nowhere", "file", "folder"])
def test_what_is_neither_a_run_nor_a_bundle_is_said(capsys: Captured, thing: str) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    answer = ask(capsys, "evaluate", thing)
    assert answer.code == 2
    assert f"error[run]: {thing}" in answer.err


# --- a bundle


def test_a_bundle_gives_the_number_of_its_manifest_with_no_run_beside_it(
    capsys: Captured, bundle: Path, finished: RunDir
) -> None:
    run = facts_of(capsys, str(finished.path))
    facts = facts_of(capsys, "bundle")
    assert (facts["kind"], facts["engine"]) == ("bundle", "onnxruntime, CPU")
    assert facts["top1_pct"] == read_json(bundle / "manifest.json")["models"]["float32"]["top1_pct"]
    same = set(facts) - {"kind", "bundle", "engine"}
    assert {key: facts[key] for key in same} == {key: run[key] for key in same}
    answer = ask(capsys, "evaluate", "bundle")
    assert "next: okdc predict bundle IMAGE ...\n" in answer.err


def test_a_bundle_of_another_number_is_a_failed_check(capsys: Captured, bundle: Path) -> None:
    before = read_json(bundle / "manifest.json")["models"]["float32"]["top1_pct"]
    lie(bundle / "manifest.json", "models", "float32", "top1_pct", value=before - 0.13)
    answer = ask(capsys, "evaluate", str(bundle))
    assert answer.code == 1
    assert f"error[accuracy]: {bundle}: {before:.2f} % of 797 images found, {before - 0.13:.2f} %" in answer.err


@pytest.mark.parametrize("how", ["changed", "cut"])
def test_a_model_that_is_not_the_manifests_is_a_failed_check(capsys: Captured, bundle: Path, how: str) -> None:
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content[:-1] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    answer = ask(capsys, "evaluate", str(bundle))
    assert answer.code == 1
    assert "model.onnx is not the file of the manifest: sha256" in answer.err


def test_a_bundle_without_its_model_or_of_another_schema_is_said(capsys: Captured, bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    answer = ask(capsys, "evaluate", str(bundle))
    assert (answer.code, "model.onnx: cannot be read" in answer.err) == (1, True)
    lie(bundle / "manifest.json", "schema", value=2)
    answer = ask(capsys, "evaluate", str(bundle))
    assert (answer.code, "schema 2, this okdc reads schema 1" in answer.err) == (2, True)
    (bundle / "manifest.json").write_text("{}")
    assert ask(capsys, "evaluate", str(bundle)).code == 2


def test_a_manifest_names_its_images_by_the_fingerprint_of_the_run(bundle: Path, finished: RunDir) -> None:
    assert read_json(bundle / "manifest.json")["data_sha256"] == finished.read_info().data_sha256


def test_a_bundle_that_does_not_name_its_images_is_believed_nothing(capsys: Captured, bundle: Path) -> None:
    manifest = read_json(bundle / "manifest.json")
    del manifest["judged_on"]
    write_json(bundle / "manifest.json", manifest)
    answer = ask(capsys, "evaluate", str(bundle))
    assert answer.code == 2


def test_a_bundle_asks_where_its_images_are(capsys: Captured, moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ((), ("--data-root", "nowhere")):
        answer = ask(capsys, "evaluate", str(moved), *words)
        assert answer.code == 2
        assert "error[data]" in answer.err
        assert "--data-root" in answer.err
    by_option = facts_of(capsys, str(moved), "--data-root", "elsewhere")
    assert (by_option["images"], by_option["split"], by_option["top5_pct"]) == (17, "test", None)
    monkeypatch.setenv("OKDC_DATA_ROOT", "elsewhere")
    assert facts_of(capsys, str(moved)) == by_option


def test_a_bundle_refuses_other_images(capsys: Captured, moved: Path) -> None:
    Path("elsewhere/test/a/000.png").rename("elsewhere/test/b/100.png")
    answer = ask(capsys, "evaluate", str(moved), "--data-root", "elsewhere")
    assert answer.code == 2
    assert f"error[data]: the images are not those of {moved}" in answer.err
    Path("elsewhere/test/b").rename("elsewhere/test/c")
    Path("elsewhere/train/b").rename("elsewhere/train/c")
    Path("elsewhere/valid/b").rename("elsewhere/valid/c")
    answer = ask(capsys, "evaluate", str(moved), "--data-root", "elsewhere")
    assert answer.code == 1
    assert "error[labels]" in answer.err
    assert "1 of 2 classes in common, not 'c'" in answer.err


def test_images_that_are_decoded_as_they_are_needed_are_evaluated_too(capsys: Captured) -> None:
    write_imagenet(Path("root"), 24, 6)
    words = ["data.name=imagenet", "data.root=root", "data.image_size=8", "data.val_fraction=0.2", "optim.epochs=1"]
    words += ["optim.batch_size=8", "augment.padding=0", "engine.workers=0", "-o", "run"]
    assert main(["distill", "digits_resnet8", *words]) == 0
    facts = facts_of(capsys, "run")
    assert (facts["images"], facts["split"]) == (12, "test")
    assert facts["top1_pct"] == read_json(Path("run/result.json"))["kept"]["top1_pct"]


def test_a_run_whose_images_moved_is_told_where_they_are(capsys: Captured, of_images: Path) -> None:
    run = str(of_images / "run")
    assert ask(capsys, "evaluate", run).code == 2
    facts = facts_of(capsys, run, "--data-root", str(of_images / "images"))
    assert facts["top1_pct"] == read_json(of_images / "run/result.json")["kept"]["top1_pct"]
