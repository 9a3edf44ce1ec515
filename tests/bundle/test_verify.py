"""`okdc verify`: a bundle that is as it says passes, anything else is named, and all of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from asking import Answer, ask, write_tree
from bundles import add_model, digest, edit, edit_model, of_digits, of_folder, seal
from lookalike import write_cifar
from pictures import write_imagenet
from reading import read_data
from reports import INT8

from okdc.bundle import test_images as judged
from okdc.bundle.artefacts import Input, JudgedOn, Manifest
from okdc.bundle.bundle import BundleDir
from okdc.data.datasets import Dataset
from okdc.deploy import torch_reference as sides
from okdc.errors import DataError
from okdc.precision import half
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
Json = dict[str, Any]


@pytest.fixture
def bundle(finished: RunDir, blob: bytes, tmp_path: Path) -> Path:
    of_digits(finished, blob, tmp_path / "bundle")
    return Path("bundle")


def verify(capsys: Captured, bundle: Path, *words: str) -> tuple[Answer, Json]:
    """The command's answer, and the report that `--json` prints."""
    answer = ask(capsys, "verify", str(bundle), *words, "--json")
    return answer, json.loads(answer.out)


def failed(capsys: Captured, bundle: Path, *words: str) -> list[tuple[str, str]]:
    """(check, message) of all that differs; the exit code and the first line are those of the first."""
    answer, report = verify(capsys, bundle, *words)
    assert answer.code == 1, answer.err
    assert report["passed"] is False
    found = [(failure["check"], failure["message"]) for failure in report["failures"]]
    assert f"error[{found[0][0]}]: {found[0][1]}\n" in answer.err
    return found


# --- what passes


def test_a_bundle_that_is_as_it_says_passes(capsys: Captured, bundle: Path) -> None:
    answer, report = verify(capsys, bundle)
    assert (answer.code, answer.err) == (0, "")
    manifest = read_json(bundle / "manifest.json")
    stated = manifest["models"]["float32"]
    top1_pct = stated["top1_pct"]
    told = report["models"]["float32"]
    assert told["samples"].pop("max_abs") <= told["samples"]["allowed"]
    assert report == {
        "schema": 1,
        "bundle": "bundle",
        "passed": True,
        "failures": [],
        "files": len(manifest["files"]),
        "unnamed_files": [],
        "architecture": "resnet8",
        "split": "test",
        "models": {
            "float32": {
                "structure": True,
                "samples": {"cases": 5, "allowed": told["samples"]["allowed"]},
                "top1_pct": top1_pct,
                "recorded_top1_pct": top1_pct,
                "balanced_accuracy_pct": stated["balanced_accuracy_pct"],
                "recorded_balanced_accuracy_pct": stated["balanced_accuracy_pct"],
                "above_largest_class": True,
                "images": 797,
            }
        },
        "judged_images": 797,
        "largest_class_pct": 10.1631,
        "smallest_class_pct": 9.6612,
        "accuracy_not_checked": None,
        "processor": report["processor"],
        "versions": report["versions"],
    }
    table = ask(capsys, "verify", "bundle")
    assert table.code == 0
    assert table.out.count(f"{top1_pct:.2f}") == 2, "here and recorded"
    assert "top-1 on 797 test images" in table.out
    assert max(map(len, table.out.splitlines()[:-1])) <= 80, "a table that a terminal holds"
    assert "all is as stated" in table.out
    assert table.err == "next: okdc predict bundle IMAGE ...\n"


@pytest.mark.usefixtures("bundle")
def test_it_is_verified_and_used_by_an_installation_without_torch() -> None:
    code = """
import sys
class NotInstalled:  # None in sys.modules would do, but scipy asks there for torch
    def find_spec(name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "fvcore", "safetensors", "onnxscript", "onnx_ir"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NotInstalled)
from okdc.__main__ import main
sys.exit(main(["verify", "bundle"]) or main(["predict", "bundle", "bundle/sample"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "on 797 test images" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith('{"image": "bundle/sample/')]) == 5


def test_a_second_model_is_held_to_its_own_tolerance_and_accuracy(capsys: Captured, bundle: Path, blob: bytes) -> None:
    add_model(bundle, "float16", half.half(blob), 1e-6)
    answer, report = verify(capsys, bundle)
    assert answer.code == 0, answer.err
    assert list(report["models"]) == ["float32", "float16"]
    assert report["models"]["float16"]["images"] == 797
    assert report["models"]["float16"]["samples"]["allowed"] == 1e-6

    edit(bundle / "manifest.json", lambda m: m["models"]["float16"].update(top1_pct=1.5))
    ((check, message),) = failed(capsys, bundle)
    assert (check, "model.fp16.onnx" in message, "1.50 % recorded" in message) == ("accuracy", True, True)


def test_what_the_manifest_does_not_name_is_said_and_is_no_failure(capsys: Captured, bundle: Path) -> None:
    (bundle / "notes").mkdir()
    (bundle / "notes" / "todo.txt").write_text("nothing")
    (bundle / "elsewhere").symlink_to("/")
    answer, report = verify(capsys, bundle)
    assert answer.code == 0
    assert report["unnamed_files"] == ["elsewhere", "notes/todo.txt"]
    assert answer.err == "not named by the manifest, not looked at: elsewhere, notes/todo.txt\n"


# --- what does not


def accuracy(manifest: Json) -> None:
    manifest["models"]["float32"]["top1_pct"] -= 0.13  # one image of 797


def swapped(labels: list[str]) -> list[str]:
    return [labels[1], labels[0], *labels[2:]]


@pytest.mark.parametrize(
    ("change", "check", "says"),
    [
        (accuracy, "accuracy", "of 797 images here"),
        (lambda m: m.update(labels=swapped(m["labels"])), "structure", "okdc.labels: the manifest says ['1', '0'"),
        (lambda m: m["normalisation"].update(mean=[0.5, 0.5, 0.5]), "structure", "okdc.mean: the manifest says [0.5"),
        (lambda m: m["normalisation"].update(std=[1.0, 1.0, 1.0]), "structure", "okdc.std"),
        (lambda m: m["input"].update(height=9, width=9), "structure", "the graph takes and gives"),
        (lambda m: m["labels"].append("10"), "samples", "no logits of every case for float32"),
        (lambda m: m.update(opset=19), "opset", "opset 19 was asked for"),
        (lambda m: m.update(architecture="resnet20"), "structure", "okdc.architecture"),
        (lambda m: m.update(weights_sha256="0" * 64), "structure", "okdc.weights_sha256"),
        (lambda m: m["judged_on"].update(sha256="0" * 64), "images", "are not those of bundle"),
        (lambda m: m["judged_on"].update(rows=[*m["judged_on"]["rows"][:-1], 1797]), "images", "judged on image 1,797"),
        (lambda m: m["judged_on"].update(rows=m["judged_on"]["rows"][::-1]), "images", "are not those of bundle"),
        (lambda m: m["files"].pop("model.onnx"), "files", "model.onnx is not among the files"),
        (lambda m: m["files"].pop("sample/expected.json"), "files", "expected.json is not among the files"),
        (lambda m: m["files"]["infer.py"].update(bytes=7), "files", "infer.py is not the file of the manifest"),
    ],
)
def test_a_manifest_that_says_otherwise_fails(
    capsys: Captured, bundle: Path, change: Callable[[Json], object], check: str, says: str
) -> None:
    edit(bundle / "manifest.json", change)
    found = failed(capsys, bundle)
    assert [c for c, message in found if says in message] == [check]
    two = change is accuracy or len(read_json(bundle / "manifest.json")["labels"]) == 11
    assert len(found) == (2 if two else 1)


def move(cells: list[list[int]], *cell: int) -> None:
    """One image of the first cell is one of another."""
    cells[0][2] -= 1
    cells.append(list(cell))
    cells.sort()


def one_wrong_answer_more(answers: Json) -> None:
    move(answers["confusions"], 0, 9, 1)
    answers["not_sure"]["judging"]["wrong"] += 1


def one_right_answer_of_another_class(answers: Json) -> None:
    right = {label: cell for cell in answers["confusions"] for label in [cell[0]] if label == cell[1]}
    right[0][2] -= 1
    right[1][2] += 1


@pytest.mark.parametrize(
    "change",
    [
        lambda a: move(a["confusions"], 0, 9, 1),
        one_wrong_answer_more,
        one_right_answer_of_another_class,
        lambda a: a["confusions"].pop(),
        lambda a: a["confusions"].insert(0, a["confusions"][0]),
        lambda a: a["confusions"].reverse(),
        lambda a: a["confusions"][-1].__setitem__(1, 10),
        lambda a: a["confusions"][0].__setitem__(2, -1),
        lambda a: a.update(confusions=[[0, 0]]),
        lambda a: a.update(split="validation"),
        lambda a: a.update(images=a["images"] - 1),
        lambda a: a.update(not_sure=None),
        lambda a: a["not_sure"].update(threshold=0.0),
        lambda a: a["not_sure"].update(threshold=float("nan")),
        lambda a: a["not_sure"]["judging"].update(wrong=a["not_sure"]["judging"]["wrong"] + 1),
        lambda a: a["not_sure"]["validation"].update(answered_wrong=a["not_sure"]["validation"]["wrong"]),
        lambda a: a["not_sure"]["validation"].update(answered=0, answered_wrong=0),
        lambda a: a["not_sure"]["judging"].update(answered=a["images"]),
        lambda a: a.update(no_threshold="too few wrong answers"),
    ],
)
def test_answers_that_contradict_the_manifest_or_themselves_fail(
    capsys: Captured, bundle: Path, change: Callable[[Json], object]
) -> None:
    """The hashes are those of the edited file: only its counts tell."""
    edit(bundle / "answers.json", change)
    ((check, message),) = failed(capsys, seal(bundle))
    assert check in ("answers", "files")
    assert "answers.json" in message


def test_labels_that_are_exchanged_everywhere_differ_from_those_of_the_images(capsys: Captured, bundle: Path) -> None:
    def labels(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "okdc.labels":
                entry.value = json.dumps(swapped(json.loads(entry.value)))

    edit(bundle / "manifest.json", lambda m: m.update(labels=swapped(m["labels"])))
    edit_model(bundle, labels)
    assert failed(capsys, bundle) == [
        ("labels", "bundle/manifest.json: a class of the images is '0', of the labels '1'")
    ]


def test_weights_that_were_changed_and_sealed_again_answer_otherwise(capsys: Captured, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if list(t.dims) == [10])
        tensor.raw_data = (
            np.frombuffer(tensor.raw_data, "<f4") + np.float32(0.001) * np.arange(10, dtype="<f4")
        ).tobytes()

    edit_model(bundle, change)
    ((check, message), *_) = failed(capsys, bundle)
    assert (check, "logits of its own cases differ by 9.0e-03, allowed" in message) == ("samples", True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_no_numbers_differ_without_end(capsys: Captured, bundle: Path, value: float) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if list(t.dims) == [10])
        tensor.raw_data = np.full(10, value, "<f4").tobytes()

    edit_model(bundle, change)
    answer, report = verify(capsys, bundle)
    assert answer.code == 1
    assert "logits of its own cases differ by inf" in answer.err
    assert report["models"]["float32"]["samples"]["max_abs"] is None


def test_probabilities_that_are_not_those_of_the_logits_fail(capsys: Captured, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type = "Sigmoid"
        del node.attribute[:]

    edit_model(bundle, change)
    ((check, message),) = failed(capsys, bundle)
    assert check == "samples"
    assert "probabilities differ from the softmax of the logits by" in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e["models"]["float32"]["logits"][4].__setitem__(9, 0.5), "logits of its own cases differ by"),
        (lambda e: e["cases"].reverse(), "logits of its own cases differ by"),
        (lambda e: e["models"].pop("float32"), "no logits of every case for float32"),
        (lambda e: e["models"]["float32"]["logits"].pop(), "no logits of every case for float32"),
        (lambda e: e["models"]["float32"]["logits"][0].pop(), "no logits of every case for float32"),
        (lambda e: e["models"]["float32"].update(tolerance=float("nan")), "tolerance"),
        (lambda e: e["models"]["float32"]["logits"][0].__setitem__(0, "1"), "models.float32.logits[0][0]"),
        (lambda e: e["cases"][0].update(label=10), "a label that no class has"),
        (lambda e: e.update(cases=[]), "cases"),
        (lambda e: e.pop("cases"), "cases"),
        (lambda e: e["cases"][0].update(image="expected.json"), "expected.json: no whole image"),
    ],
)
def test_cases_that_do_not_come_out_fail(
    capsys: Captured, bundle: Path, change: Callable[[Json], object], says: str
) -> None:
    edit(bundle / "sample" / "expected.json", change)
    ((check, message),) = failed(capsys, seal(bundle))
    assert check == "samples"
    assert says in message


def test_all_that_differs_is_listed_and_one_fault_once(capsys: Captured, bundle: Path) -> None:
    (bundle / "infer.py").unlink()
    (bundle / "sample" / "0.png").write_bytes(b"")
    edit(bundle / "manifest.json", accuracy)
    found = failed(capsys, bundle)
    assert [check for check, _ in found] == ["files", "files", "answers", "accuracy"]
    answer = ask(capsys, "verify", "bundle")
    assert answer.code == 1
    assert "4 checks failed" in answer.out
    assert "not checked" in answer.out, "the cases could not be replayed"
    assert [line.split(":")[0] for line in answer.err.splitlines() if line.startswith("  ")] == [
        "  files",
        "  answers",
        "  accuracy",
    ]


@pytest.mark.parametrize("full_range", [True, False])
def test_int8_that_does_otherwise_here_points_at_the_processor(
    capsys: Captured, bundle: Path, blob: bytes, full_range: bool
) -> None:
    """The file itself is of no matter: it is called int8, and its number is another."""
    edit(bundle / "parity.json", lambda parity: parity.update(int8=INT8 | {"full_range": full_range}))
    add_model(bundle, "int8", blob, 1e-5)
    edit(bundle / "manifest.json", lambda m: m["models"]["int8"].update(top1_pct=99.0))
    answer, report = verify(capsys, bundle)
    assert answer.code == 1
    (failure,) = report["failures"]
    assert report["processor"] in failure["hint"]
    assert ("overflows on x86 without VNNI" in failure["hint"]) is full_range


# --- images that have to be had


def test_without_images_it_is_said_and_is_no_failure(capsys: Captured, bundle: Path) -> None:
    of_folder(bundle, Path("images"))
    answer, report = verify(capsys, bundle)
    assert answer.code == 0
    assert report["accuracy_not_checked"] == "no images; --data-root DIR"
    assert report["models"]["float32"]["top1_pct"] is None
    assert answer.err == "accuracy: not checked: no images; --data-root DIR\n"
    assert "not checked" in ask(capsys, "verify", "bundle").out


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_folder_of_images_judges_where_it_is_named(
    capsys: Captured, bundle: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    of_folder(bundle, Path("images"), split=split)
    answer, report = verify(capsys, bundle, "--data-root", "images")
    assert answer.code == 0, answer.err
    assert report["models"]["float32"]["images"] == 60
    monkeypatch.setenv("OKDC_DATA_ROOT", "images")
    assert verify(capsys, bundle)[1] == report
    edit(bundle / "manifest.json", lambda m: m["models"]["float32"].update(top1_pct=50.0))
    assert [check for check, _ in failed(capsys, bundle)] == ["answers", "accuracy"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "test/3/018.png").rename(root / "test/4/018.png"), "the images are not those of bundle"),
        (lambda root: (root / "test/3/018.png").unlink(), "judged on 60 images, here are 59"),
        (lambda root: (root / "test/3/018.png").write_bytes(b"no image"), "1 of "),
        (lambda root: shutil.rmtree(root / "test"), "has no split 'test'"),
        (lambda root: shutil.rmtree(root), "expected a folder of images at"),
    ],
)
def test_other_images_than_the_bundles_are_an_error_where_they_were_named_and_a_note_where_not(
    capsys: Captured,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object],
    says: str,
) -> None:
    of_folder(bundle, Path("images"))
    spoil(Path("images"))
    answer = ask(capsys, "verify", "bundle", "--data-root", "images")
    assert answer.code == 2
    assert answer.err.startswith("error[data]: ")
    assert says in answer.err
    monkeypatch.setenv("OKDC_DATA_ROOT", "images")
    answer = ask(capsys, "verify", "bundle")
    assert answer.code == 0
    assert answer.err.startswith("accuracy: not checked: ")


def test_the_proof_of_images_is_of_their_labels_too_and_of_their_order() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    labels = np.array([0, 1])
    proofs = [digest(pixels, labels), digest(pixels[::-1], labels), digest(pixels, labels[::-1])]
    assert len(set(proofs)) == 3


def test_classes_of_other_names_are_found_though_every_pixel_is_there(capsys: Captured, bundle: Path) -> None:
    of_folder(bundle, Path("images"))
    for split in ("train", "test"):
        Path("images", split, "9").rename(Path("images", split, "nine"))
    ((check, message),) = failed(capsys, bundle, "--data-root", "images")
    assert check == "labels"
    assert "9 of 10 classes in common, not 'nine'" in message


def test_code_that_a_bundle_names_is_not_run(capsys: Captured, bundle: Path) -> None:
    Path("theirs.py").write_text("open('ran', 'w')\ndef load(*, root, image_size): ...\n")
    edit(bundle / "manifest.json", lambda m: m["recipe"]["data"].update(name="theirs:load"))
    answer, report = verify(capsys, bundle)
    assert answer.code == 0
    assert "which is not run on a bundle's word" in report["accuracy_not_checked"]
    assert not Path("ran").exists()


def named(dataset: Dataset, name: str, shorter_side: int | None = None) -> BundleDir:
    """What a manifest says of the images of a data set's final split, as an export writes it."""
    _, rows = dataset.final_split
    part, places = dataset.part_of(rows)
    sha256 = digest(sides.Split(dataset, rows), dataset.labels[rows].numpy())
    judged_on = JudgedOn.model_validate({"sha256": sha256, "part": part, "rows": places})
    spec = Input.model_construct(height=dataset.size[1], shorter_side=shorter_side)
    manifest = Manifest.model_construct(recipe={"data": {"name": name}}, judged_on=judged_on, input=spec)
    return BundleDir(Path("bundle"), manifest)


def same_images(dataset: Dataset, name: str, root: str | None, shorter_side: int | None = None) -> None:
    bundle = named(dataset, name, shorter_side)
    found = judged.find(bundle, root)
    assert digest(found.images, found.labels) == bundle.manifest.judged_on.sha256
    assert found.classes == dataset.classes
    assert torch.equal(torch.from_numpy(found.labels), dataset.labels[dataset.final_split[1]])


def test_the_images_that_are_found_are_those_that_judged_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the data set: its own test split, one that okdc drew, ImageNet's val, all without torch."""
    same_images(read_data("digits"), "digits", None)
    write_tree(Path("one"), {"a": 20, "b": 15}, size=9)
    same_images(read_data("folder", Path("one"), 8), "folder", "one")
    write_imagenet(Path("large"))
    same_images(read_data("imagenet", Path("large"), 16, 20), "imagenet", "large", 20)
    for name in ("cifar10", "cifar100"):
        write_cifar(Path(name), monkeypatch, name)
        same_images(read_data(name, name, 32), name, name)


def test_a_part_that_the_data_has_not_is_no_part_of_it() -> None:
    bundle = named(read_data("digits"), "cifar10")
    Path("root").mkdir()
    with pytest.raises(DataError, match="cifar10 has no split 'all'"):
        judged.find(bundle, "root")
