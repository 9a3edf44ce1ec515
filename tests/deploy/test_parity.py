"""Every check of parity has a file, or a student, that it alone rejects; what the machine's own rounding does passes.

The student is one linear layer on mean colours, whose logits float32 gets right to some 1e-7. Its float32 is made off
by `noise` where a test wants an allowance; its files are made by hand, with a fault that some images alone bring out.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from graphs import CLASSES, Graph
from onnx import TensorProto
from torch import Tensor, nn

from okdc.bundle.artefacts import StudentReport
from okdc.bundle.checks import FLOOR
from okdc.cohort import Backbone
from okdc.deploy import onnx as exporter
from okdc.deploy import parity
from okdc.deploy.torch_reference import Torch
from okdc.runs.artefacts import Preprocessing, StudentInfo

IMAGES = 1200  # more than are computed in float64
MARK = 77  # red of the corner in the image that brings a fault out: below 60 in all others, and in no extreme image
MARKED = f"red of {MARK}"
BETWEEN = next(i for i in range(IMAGES) if i not in np.linspace(0, IMAGES - 1, parity.FLOAT64).astype(int) and i > 4)
AMONG = int(np.linspace(0, IMAGES - 1, parity.FLOAT64).astype(int)[500])  # of the images that float64 gets
NOISE = 1e-4  # of float32: 16 times that are allowed
ALLOWED = parity.FACTOR * NOISE

Vector = npt.NDArray[np.float64]
Faults = Sequence[tuple[str, Vector]]


def only(*values: tuple[int, float]) -> Vector:
    """A vector of logits that is 0 but in these classes."""
    vector = np.zeros(CLASSES)
    for c, value in values:
        vector[c] = value
    return vector


# Weights that float32 holds exactly; class 9 wins in every image by far, unless a test lowers it.
WEIGHT = np.random.default_rng(0).integers(-64, 65, (CLASSES, 3)) / 256
BIAS = only((9, 8.0))


class Head(nn.Module):
    """Mean colours to logits, in float32 off by `noise`: for all images, or those with a corner as red as `noisy`."""

    def __init__(self, bias: Vector, noise: Vector, noisy: int | None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Buffer(torch.tensor(WEIGHT)), nn.Buffer(torch.tensor(bias))
        self.noise, self.noisy = torch.tensor(noise, dtype=torch.float32), noisy

    def forward(self, x: Tensor) -> Tensor:
        z = x.mean((2, 3)) @ self.weight.to(x.dtype).T + self.bias.to(x.dtype)
        if x.dtype == torch.float64:
            return z
        return z + self.noise * (1 if self.noisy is None else torch.round(x[:, :1, 0, 0] * 60 + 120) == self.noisy)


def student(bias: Vector, noise: Vector, noisy: int | None) -> tuple[Backbone, StudentInfo]:
    colours: dict[str, Any] = {"mean": (120 / 255, 110 / 255, 100 / 255), "std": (60 / 255, 62 / 255, 64 / 255)}
    info = exporter.untrained("planted", 8, CLASSES)
    rule = Preprocessing(size=8, resize="", **colours)  # as `Graph` has it
    return Backbone([nn.Identity()], Head(bias, noise, noisy), (3,), (1,)), info.model_copy(
        update={"preprocessing": rule}
    )


def file(bias: Vector, faults: Faults, scale: float = 1.0, half: float = 0.0) -> bytes:
    """The student's twin. Each fault adds a vector to the logits of some images or batches; `scale` is of the logits in
    front of the softmax, and `half` is added in float16, which onnxruntime computes in float32.
    """

    def make(g: Graph, x: str) -> str:
        z = g.add("Gemm", g.mean(x), g.tensor(WEIGHT), g.tensor(bias), transB=1)
        z = g.plant(z, *faults)
        if half:
            one = g.add("Cast", g.add("Add", g.add("Mul", z, _float(g, 0)), _float(g, 1)), to=TensorProto.FLOAT16)
            small = g.tensor(np.array([half], np.float16))
            z = g.add("Add", z, g.add("Cast", g.add("Sub", g.add("Add", one, small), one), to=TensorProto.FLOAT))
        return g.add("Add", z, _float(g, 0))

    model = onnx.load_model_from_string(Graph(make).blob())
    if scale != 1:
        softmax = model.graph.node[-1]
        factor = onnx.numpy_helper.from_array(np.array([scale], np.float32), "scale")
        model.graph.initializer.append(factor)
        model.graph.node.insert(
            len(model.graph.node) - 1, onnx.helper.make_node("Mul", [softmax.input[0], "scale"], ["scaled"])
        )
        softmax.input[0] = "scaled"
    blob: bytes = model.SerializeToString()
    return blob


def _float(g: Graph, value: float) -> str:
    return g.tensor(np.array([value], np.float32))


def checked(
    folder: Path,
    *faults: tuple[str, Vector],
    noise: Vector | float = 0.0,
    bias: Vector = BIAS,
    marked: int = BETWEEN,
    noisy: int | None = None,
    recorded_pct: float = 100.0,
    **more: float,
) -> StudentReport:
    """The report on a file with these faults, judged on random images of which one is marked."""
    pixels = np.random.default_rng(1).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    pixels[:, 0, 0] = np.minimum(pixels[:, 0, 0], 59)
    pixels[marked, 0, 0, 0] = MARK
    network, info = student(bias, np.broadcast_to(noise, CLASSES).astype(float), noisy)
    path = folder / "model.onnx"
    path.write_bytes(file(bias, faults, **more))
    side = Torch(network, info.preprocessing)
    labels = side.logits(pixels).argmax(1).astype(np.int64)
    report, _ = parity.check(path, network, info, pixels, labels, recorded_pct, "test")
    return report


def refused_by_one(report: StudentReport, check: str) -> None:
    assert not report.passed
    assert len(report.failures) == 1, report.failures
    assert check in report.failures[0]


# ---------------------------------------------------------------------------------------------------------------------
# A fault for each check


def test_a_logit_that_is_off_in_an_image_that_float64_does_not_get(tmp_path: Path) -> None:
    report = checked(tmp_path, (MARKED, only((3, 1e-3))))
    refused_by_one(report, "logits of images:")
    assert report.logits.max_abs["images"] == pytest.approx(1e-3, rel=0.01)


def test_a_logit_that_is_as_near_to_float32_as_is_allowed_and_further_from_float64(tmp_path: Path) -> None:
    """The file is off by 16.5 of the student's roundings, to the same side."""
    report = checked(tmp_path, (MARKED, np.full(CLASSES, 16.5 * NOISE)), noise=NOISE, marked=AMONG)
    refused_by_one(report, "float64")


def test_a_range_that_images_of_one_colour_alone_leave(tmp_path: Path) -> None:
    refused_by_one(checked(tmp_path, ("red corner", only((3, 1e-2)))), "extreme images")


def test_a_range_that_bright_images_alone_leave(tmp_path: Path) -> None:
    refused_by_one(checked(tmp_path, ("white corner", only((3, 1e-2)))), "extreme images")


def test_extreme_images_are_held_to_what_rounding_does_to_them(tmp_path: Path) -> None:
    report = checked(tmp_path, ("white corner", only((3, 3 * ALLOWED))), noise=NOISE)
    refused_by_one(report, "extreme images")
    assert report.logits.allowed["extreme_images"] == pytest.approx(ALLOWED, rel=0.01)


def test_probabilities_that_are_not_those_of_the_logits(tmp_path: Path) -> None:
    report = checked(tmp_path, scale=0.9)
    refused_by_one(report, "probabilities")
    assert (report.probabilities_max_abs or 0) > 10 * FLOOR


def test_a_class_that_the_student_itself_gives_no_number(tmp_path: Path) -> None:
    """Both sides say minus infinity: no difference is beyond the infinite one between float32 and float64."""
    bias = BIAS + only((2, -np.inf))
    report = checked(tmp_path, bias=bias)
    assert not report.passed
    assert all("not finite" in line for line in report.failures), report.failures


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes 8 and 9 have the same weights: their margin is that of their biases, in every image."""
    weight = WEIGHT.copy()
    weight[8] = weight[9]
    monkeypatch.setattr(f"{__name__}.WEIGHT", weight)


@pytest.mark.usefixtures("tied")
def test_predictions_that_change_in_more_images_than_one_in_a_thousand(tmp_path: Path) -> None:
    """Each change is explained, and there are too many of them."""
    bias = only((9, 8.0 + 5 * NOISE), (8, 8.0))
    report = checked(tmp_path, ("always", only((8, 8 * NOISE))), noise=NOISE, bias=bias)
    refused_by_one(report, "predictions differ")
    assert report.predictions_that_differ == IMAGES
    assert report.unexplained_flips == ()


@pytest.mark.usefixtures("tied")
def test_one_prediction_that_changes_within_the_rounding_is_let_pass(tmp_path: Path) -> None:
    bias = only((9, 8.0 + 5 * NOISE), (8, 8.0))
    report = checked(tmp_path, (MARKED, only((8, 8 * NOISE))), noise=NOISE, bias=bias)
    assert report.passed, report.failures
    assert report.flips == (BETWEEN,)


@pytest.mark.usefixtures("tied")
def test_one_prediction_that_changes_though_its_margin_is_wider_than_the_difference(tmp_path: Path) -> None:
    """In float32 the student itself is halfway to the other class: a change that the files' difference does not
    explain."""
    bias = only((9, 8.0 + 10 * NOISE), (8, 8.0))
    fault = only((9, -5.5 * NOISE), (8, 5.5 * NOISE))
    report = checked(tmp_path, (MARKED, fault), noise=only((9, -NOISE), (8, NOISE)), bias=bias)
    refused_by_one(report, "predictions differ")
    assert report.unexplained_flips == (BETWEEN,)


@pytest.mark.usefixtures("tied")
def test_a_gross_difference_explains_no_change(tmp_path: Path) -> None:
    """A student of coarse rounding: its file may be off by 0.03, and may not turn a margin of 0.03."""
    bias = only((9, 8.03), (8, 8.0))
    fault = only((9, -0.02), (8, 0.02))
    report = checked(tmp_path, (MARKED, fault), noise=only((0, 2e-3)), bias=bias)
    refused_by_one(report, "predictions differ")


def test_weights_that_do_not_reach_what_was_recorded(tmp_path: Path) -> None:
    refused_by_one(checked(tmp_path, recorded_pct=99.0), "recorded")


@pytest.mark.parametrize("size", parity.BATCHES)
def test_answers_that_depend_on_the_size_of_a_batch(tmp_path: Path, size: int) -> None:
    """64 is also the size in which the images of the split are answered, so there more than one check sees it."""
    report = checked(tmp_path, (f"batches of {size}", only((3, 1e-3))))
    assert not report.passed
    coupled = [line for line in report.failures if line.startswith(("batch ", "2 threads"))]
    assert coupled
    assert size == 64 or len(coupled) == len(report.failures), report.failures


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="onnxruntime may add in float16 here")
def test_a_file_that_another_engine_computes_otherwise(tmp_path: Path) -> None:
    """1 + 0.0001 is 1 in float16, and onnxruntime adds it in float32."""
    half = float(np.float16(1e-4))
    refused_by_one(checked(tmp_path, ("always", np.full(CLASSES, -half)), half=half), "onnx.reference")


# ---------------------------------------------------------------------------------------------------------------------
# How much is allowed


def test_the_twin_of_the_student_passes(tmp_path: Path) -> None:
    report = checked(tmp_path)
    assert report.passed, report.failures
    assert report.logits.allowed == {"images": FLOOR, "extreme_images": FLOOR}


@pytest.mark.parametrize(("times", "passes"), [(14.0, True), (18.0, False)])
def test_what_is_allowed_is_sixteen_times_what_float32_does_to_the_student(
    tmp_path: Path, times: float, passes: bool
) -> None:
    """To the other side than the student's own rounding, which counts against it too."""
    report = checked(tmp_path, ("always", np.full(CLASSES, -times * NOISE)), noise=NOISE)
    assert report.passed is passes, report.failures
    assert report.logits.allowed["images"] == pytest.approx(ALLOWED, rel=0.01)


@pytest.mark.parametrize(("off", "passes"), [(0.5 * FLOOR, True), (2 * FLOOR, False), (50 * FLOOR, False)])
def test_a_student_without_rounding_is_held_to_the_floor(tmp_path: Path, off: float, passes: bool) -> None:
    report = checked(tmp_path, ("always", np.full(CLASSES, off)))
    assert report.passed is passes, report.failures


def test_the_rounding_is_that_of_the_whole_split(tmp_path: Path) -> None:
    """One image in the middle of it is rounded more coarsely than the others, and so is its file."""
    fault = np.full(CLASSES, 10 * NOISE)
    report = checked(tmp_path, (MARKED, fault), noise=NOISE, noisy=MARK, marked=AMONG)
    assert report.passed, report.failures
    assert report.logits.float32_noise["images"] == pytest.approx(NOISE, rel=0.01)
    assert report.logits.allowed["extreme_images"] == FLOOR


def test_the_rounding_of_extreme_images_is_their_own(tmp_path: Path) -> None:
    """The student rounds bright images more coarsely than those of the split, and so does its file."""
    report = checked(tmp_path, ("white corner", np.full(CLASSES, 10 * NOISE)), noise=NOISE, noisy=255)
    assert report.passed, report.failures
    assert report.logits.allowed == {"images": FLOOR, "extreme_images": pytest.approx(ALLOWED, rel=0.01)}
