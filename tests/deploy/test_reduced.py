"""`okdc export --int8 --fp16`: reduced files beside the float32 one, each held to its gate, none at its cost."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from asking import Answer, ask
from harness import Quiet
from PIL import Image

from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.bundle.artefacts import Int8Report, Model, Setting, Trial
from okdc.bundle.bundle import BundleDir
from okdc.bundle.session import Session
from okdc.deploy import latency, onnx, reduced
from okdc.errors import CheckFailed, DataError
from okdc.precision import quantize
from okdc.precision.gate import Float32
from okdc.recipe.draft import load
from okdc.runs.files import read_json
from okdc.runs.provenance import kernel_flags
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
REDUCED = {"int8": "model.int8.onnx", "float16": "model.fp16.onnx"}


@pytest.fixture(autouse=True)
def one_export(blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: blob)
    monkeypatch.setattr(latency, "SECONDS", 0.0)  # no test here asks how long a file takes


@pytest.fixture
def black(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen int8 file is one that was calibrated on black images: whatever the processor, it is no good."""
    search = quantize.search

    def spoilt(blob: bytes, shown: Any, *more: Any) -> Any:
        setting, _, rows = search(blob, shown, *more)
        return setting, quantize.quantize(blob, np.zeros_like(shown), setting), rows

    monkeypatch.setattr(quantize, "search", spoilt)


def export(capsys: Captured, run: RunDir, *words: str) -> Answer:
    return ask(capsys, "export", str(run.path), "--onnx", *words)


def test_both_files_are_made_judged_and_named(capsys: Captured, run: RunDir, blob: bytes) -> None:
    answer = export(capsys, run, "--int8", "--fp16", "--diagnose", "--json")
    assert answer.code == 0, answer.err
    folder = run.path / "bundle"
    parity = json.loads(answer.out)["parity"]
    assert parity.items() <= read_json(folder / "parity.json").items()
    bundle = BundleDir.open(folder)
    assert bundle.precisions == ["float32", "int8", "float16"]
    for precision, name in REDUCED.items():
        report, content = parity[precision], (folder / name).read_bytes()
        assert report["passed"]
        assert report["split"] == "test"
        assert report["images"] == 797
        assert bundle.manifest.models[precision] == Model(
            file=name,
            top1_pct=report["top1_pct"][precision],
            balanced_accuracy_pct=report["balanced_accuracy_pct"][precision],
        )
        assert len(content) < len(blob) * (0.4 if precision == "int8" else 0.6)
        assert bundle.model(precision) == content
    table = parity["int8"]["search"]
    settings = {(row["weights"], row["calibration"]) for row in table}
    assert len(settings) == len(table) == len(quantize.SETTINGS) == 6
    assert tuple(parity["int8"]["setting"].values()) in settings
    assert parity["int8"]["searched_on"] == {"split": "validation", "images": 700}
    assert parity["int8"]["calibration"]["images"] == 300
    levels = [row["sqnr_db"] for row in parity["int8"]["worst_layers"]]
    assert levels == sorted(levels)
    assert len(levels) == 10


def test_the_reduced_files_are_the_same_bytes_again(capsys: Captured, run: RunDir) -> None:
    def made() -> list[str]:
        assert export(capsys, run, "--int8", "--fp16").code == 0
        return [hashlib.sha256((run.path / "bundle" / name).read_bytes()).hexdigest() for name in REDUCED.values()]

    assert made() == made()


@pytest.mark.usefixtures("black")
def test_a_reduced_file_that_fails_its_gate_lies_aside_and_the_bundle_stands(capsys: Captured, run: RunDir) -> None:
    answer = export(capsys, run, "--int8", "--fp16")
    folder, aside = run.path / "bundle", run.path / "bundle.rejected"
    parity = read_json(folder / "parity.json")
    assert answer.code == 1
    assert "error[int8]: model.int8.onnx did not pass" in answer.err
    assert "--diagnose" in answer.err
    assert f"the bundle {folder} stands without it" in answer.err
    assert BundleDir.open(folder).precisions == ["float32", "float16"]
    assert not (folder / "model.int8.onnx").exists()
    assert {path.name for path in aside.iterdir()} == {"model.int8.onnx", "parity.json"}
    assert read_json(aside / "parity.json") == parity
    assert ask(capsys, "verify", str(folder)).code == 0

    assert export(capsys, run, "--replace").code == 0
    assert not aside.exists(), "what was rejected before says nothing about this bundle"


def cannot_be_made(*_: object) -> Any:
    raise CheckFailed("int8", "none of the six settings gives a file that works", details=["one", "another"])


def cannot_be_read(*_: object) -> Any:
    raise DataError("train/a/000.png: not a whole image")


def cannot_be_run(blob: bytes, *_: object) -> Any:
    return quantize.SETTINGS[0], blob[: len(blob) // 2], []


@pytest.mark.parametrize(
    ("search", "code", "says"),
    [
        (cannot_be_made, 1, "error[int8]: none of the six settings gives a file that works"),
        (cannot_be_read, 2, "error[data]: train/a/000.png: not a whole image"),
        (cannot_be_run, 1, "error[int8]: onnxruntime cannot run the file"),
    ],
)
def test_where_int8_cannot_be_made_the_bundle_stands_with_what_could(
    capsys: Captured, run: RunDir, monkeypatch: pytest.MonkeyPatch, search: Any, code: int, says: str
) -> None:
    monkeypatch.setattr(quantize, "search", search)
    answer = export(capsys, run, "--int8", "--fp16")
    folder = run.path / "bundle"
    assert answer.code == code
    assert says in answer.err
    assert f"the bundle {folder} stands without it" in answer.err
    assert BundleDir.open(folder).precisions == ["float32", "float16"]
    assert not (run.path / "bundle.rejected").exists()
    assert ask(capsys, "verify", str(folder)).code == 0


def test_every_file_that_is_missing_is_accounted_for(
    capsys: Captured, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_half(_: bytes) -> bytes:
        raise CheckFailed("float16", "the file has no float16 twin")

    monkeypatch.setattr(quantize, "search", cannot_be_made)
    monkeypatch.setitem(reduced.FLOATS, "float16", no_half)
    answer = export(capsys, run, "--int8", "--fp16")
    assert answer.code == 1
    assert "error[int8]: none of the six" in answer.err
    assert "error[float16]: the file has no float16 twin" in answer.err
    assert BundleDir.open(run.path / "bundle").precisions == ["float32"]


@pytest.mark.usefixtures("black")
def test_the_layers_that_cost_most_are_named_where_they_were_asked_for(capsys: Captured, run: RunDir) -> None:
    answer = export(capsys, run, "--int8", "--diagnose")
    assert answer.code == 1
    worst = read_json(run.path / "bundle" / "parity.json")["int8"]["worst_layers"][0]
    assert f"{worst['sqnr_db']:.1f} dB  {worst['operator']} {worst['weight'] or worst['node']}" in answer.err


def test_full_range_is_warned_of_and_recorded(capsys: Captured, run: RunDir) -> None:
    # Without VNNI an x86 processor overflows, as the warning says: there alone the gate lets anything through.
    overflows = platform.machine() == "x86_64" and not any("vnni" in flag for flag in kernel_flags())
    gate = ("--max-drop", "100", "--min-agreement", "0") if overflows else ()
    answer = export(capsys, run, "--int8", "--full-range", *gate)
    assert answer.code == 0, answer.err
    assert "--full-range overflows on x86 processors without VNNI" in answer.err
    assert read_json(run.path / "bundle" / "parity.json")["int8"]["full_range"] is True


def test_a_student_that_fails_float32_parity_gets_no_reduced_file(
    capsys: Captured, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: b"no model")
    assert export(capsys, run, "--int8").code == 1
    assert not list(run.path.glob("**/model.int8.onnx"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--full-range"], "full_range is an option of int8"),
        (["--diagnose", "--fp16"], "diagnose is an option of int8"),
        (["--calib-images", "100"], "calibration_images is an option of int8"),
        (["--max-drop", "2"], "max_drop is an option of int8 or fp16"),
        (["--student", "0", "--budget", "params<1k"], "student and budget both choose"),
        (["--target", "wen"], "did you mean 'web'"),
        (["--runtime", "here"], "--runtime is an option of --target web"),
        (["--serve"], "--serve is an option of --target web"),
        (["--int8", "--calib-images", "10"], "--calib-images"),
        (["--int8", "--max-drop", "-1"], "--max-drop"),
        (["--int8", "--min-agreement", "101"], "--min-agreement"),
    ],
)
def test_what_makes_no_sense_is_said(capsys: Captured, run: RunDir, words: list[str], says: str) -> None:
    answer = export(capsys, run, *words)
    assert answer.code == 2
    assert says in answer.err
    assert not (run.path / "bundle").exists()


# --- which images do what


class Taken:
    """Stands in for the quantiser: notes which images it is given, and gives the float32 file back."""

    def __init__(self) -> None:
        self.calibration: Any = None
        self.images: Any = None

    def __call__(self, blob: bytes, calibration: Any, images: Any, *_: Any) -> tuple[Setting, bytes, tuple[Trial, ...]]:
        self.calibration, self.images = calibration, images[:]
        return quantize.SETTINGS[0], blob, ()


@pytest.mark.parametrize("validation", [True, False])
def test_the_images_that_calibrate_choose_and_judge_are_never_the_same(
    blob: bytes, monkeypatch: pytest.MonkeyPatch, validation: bool
) -> None:
    words = [] if validation else ["data.val_fraction=0.0", "cohort.keep=0"]
    dataset = assembly.dataset(resolve(load(["digits_resnet8", *words])))
    taken = Taken()
    monkeypatch.setattr(quantize, "search", taken)
    judging = dataset.images[dataset.test].numpy()
    judges = reduced.Judges(judging, dataset.labels[dataset.test].numpy(), dataset.classes, "test", judging[:2])
    float32 = Float32(blob, Session(blob)(judging)[0])
    (made,), _ = reduced.make(float32, dataset, judges, replace(reduced.Wanted(), int8=True), Quiet())
    rows = {image.tobytes(): i for i, image in enumerate(dataset.images.numpy())}
    calibrated, chose = ({rows[image.tobytes()] for image in found} for found in (taken.calibration, taken.images))
    assert not calibrated & chose
    assert not (calibrated | chose) & set(dataset.test.tolist())
    assert calibrated <= set(dataset.train.tolist())
    assert isinstance(made.report, Int8Report)
    assert made.report.searched_on.split == ("validation" if validation else "training")
    assert chose <= set((dataset.val if validation else dataset.train).tolist())


def test_images_that_judge_do_not_choose_where_there_is_no_test_split(
    blob: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = assembly.dataset(resolve(load(["digits_resnet8"])))
    dataset = replace(dataset, test=dataset.test[:0])
    taken = Taken()
    monkeypatch.setattr(quantize, "search", taken)
    split, rows = dataset.final_split
    judging = dataset.images[rows].numpy()
    judges = reduced.Judges(judging, dataset.labels[rows].numpy(), dataset.classes, split, judging[:2])
    wanted = reduced.Wanted(int8=True, calibration_images=64)
    float32 = Float32(blob, Session(blob)(judging)[0])
    (made,), _ = reduced.make(float32, dataset, judges, wanted, Quiet())
    assert isinstance(made.report, Int8Report)
    assert made.report.split == "validation"
    assert (made.report.searched_on.split, made.report.searched_on.images) == ("training", 300 - 64)
    shown = {image.tobytes() for image in judging}
    assert not shown & {image.tobytes() for image in taken.images}


@pytest.mark.parametrize(("size", "most"), [(8, 5000), (96, 5000), (224, 1000), (10_000, 1)])
def test_of_large_images_fewer_choose(size: int, most: int) -> None:
    dataset = assembly.dataset(resolve(load(["digits_resnet8"])))
    images = torch.empty(0, size, size, 3, dtype=torch.uint8)
    many = replace(dataset, images=images, val=torch.arange(6000))
    rows, split = reduced._search_images(many, np.arange(64), "test")
    assert (len(rows), split) == (most, "validation")


def test_too_few_training_images_that_did_not_calibrate_choose_with_the_others() -> None:
    dataset = assembly.dataset(resolve(load(["digits_resnet8"])))
    dataset = replace(dataset, val=dataset.val[:0])
    count = len(dataset.train)
    for calibrated, expected in ((count - 64, 64), (count - 63, count), (count, count)):
        rows, split = reduced._search_images(dataset, np.arange(calibrated), "test")
        assert (len(rows), split) == (expected, "training")


def test_a_reduced_file_answers_as_its_samples_say(capsys: Captured, run: RunDir) -> None:
    assert export(capsys, run, "--int8").code == 0
    folder = run.path / "bundle"
    expected = read_json(folder / "sample" / "expected.json")
    assert set(expected["models"]) == {"float32", "int8"}
    images = np.stack([np.asarray(Image.open(folder / "sample" / case["image"])) for case in expected["cases"]])
    logits, _ = Session(folder / "model.int8.onnx")(images)
    np.testing.assert_array_equal(logits, np.asarray(expected["models"]["int8"]["logits"], np.float32))
