"""Whether the ONNX file is the student: every image of the judging split through both; the two sides share nothing.

torch: the weights read back from student.safetensors, the transform of training on raw pixels, float32 and float64.
onnxruntime: the file on disk, raw uint8 straight in.

The allowed difference is not a constant but the machine's own: 16 times what float32 differs from float64 on the same
network and images, at least 1e-5. That is some fifty times tighter than what exporters usually ask, and it sees defects
that accuracy cannot: half-precision weights, a bias off by 0.002, activations clipped just above what noise reaches.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from okdc.bundle.artefacts import Number, StudentLogits, StudentReport
from okdc.bundle.checks import (
    BATCH,
    FLOOR,
    PROBE,
    Right,
    invariance,
    largest,
    machine,
    mean,
    number,
    per_class,
    probabilities_off,
    probe,
)
from okdc.bundle.session import Floats, Images, Pixels, Session
from okdc.bundle.test_images import SAME_PCT, Digest
from okdc.cohort import Backbone
from okdc.deploy import cause, second_engine
from okdc.deploy.cause import Evidence
from okdc.deploy.torch_reference import Doubles, Torch, batches
from okdc.runs.artefacts import JudgedDevice, StudentInfo
from okdc.runs.predictions import by_class

FACTOR = 16
BATCHES = (2, 7, 64, PROBE)
FLOAT64 = 1000  # images that are also computed in float64
MOST_FLIPS = 0.001  # share of images whose class may change, if their margin explains it

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Logits:
    """N×K logits of the same images on both sides; those of torch also in float64, where `rows` were computed so."""

    torch: Floats
    onnx: Floats
    exact: Doubles
    rows: slice | npt.NDArray[np.int64] = field(default_factory=lambda: slice(None))

    @property
    def noise(self) -> float:
        """How far float32 is from float64 in torch alone."""
        return largest(self.torch[self.rows], self.exact)

    @property
    def allowed(self) -> float:
        return max(FACTOR * self.noise, FLOOR)

    @property
    def from_exact(self) -> float:
        return largest(self.onnx[self.rows], self.exact)


def check(
    path: Path,
    network: Backbone,
    info: StudentInfo,
    images: Images,
    labels: Labels,
    recorded_pct: float,
    split: str,
    recorded_device: JudgedDevice = "cpu",
) -> tuple[StudentReport, Floats]:
    """Compare the file at `path` with the student. Returns the report and the file's N×K logits of the images.

    The student has to reach the accuracy that the run recorded. One that the run judged on a GPU is judged again here:
    rounding may move a few of its predictions.

    `images` may be decoded as they are read: no more than a batch of them is held, each is read once, and those that
    are computed again some more times.

    Raises CheckFailed where an engine cannot run the file at all.
    """
    side, session, digest = Torch(network, info.preprocessing), Session(path), Digest()
    logits, probabilities = _of_images(side, session, images, digest)
    # Images that no data set holds round otherwise than real ones and get an allowance of their own.
    extremes = _of_extremes(side, session, *images.shape[1:3])
    bound = logits.allowed
    differences = {
        "images": largest(logits.onnx, logits.torch),
        "images_float64": logits.from_exact,
        "extreme_images": extremes.from_exact,
    }
    softmax = probabilities_off(logits.onnx, probabilities)
    flips = np.flatnonzero(logits.torch.argmax(1) != logits.onnx.argmax(1))
    unexplained = _unexplained(flips, images, side, differences["images"])
    right_torch, right_onnx = logits.torch.argmax(1) == labels, logits.onnx.argmax(1) == labels
    torch_pct, onnx_pct = 100 * float(right_torch.mean()), 100 * float(right_onnx.mean())
    counts = {
        name: by_class(labels, right, len(info.classes))
        for name, right in (("torch", right_torch), ("onnx", right_onnx))
    }
    # The same answers at any batch size, with any number of threads and in another engine.
    coupling = invariance(path, probe(images), BATCHES)
    again, refused = second_engine.logits_of(path, images[:4])
    second = largest(again, logits.onnx[:4]) if again is not None else None

    failures = [
        *_not_finite(logits, extremes),
        *_beyond("logits of images", differences["images"], bound),
        *_beyond("logits of images float64", differences["images_float64"], bound),
        *_beyond("logits of extreme images", differences["extreme_images"], extremes.allowed),
        *_beyond("probabilities against the softmax of the logits", softmax, FLOOR),
    ]
    if unexplained or len(flips) > _most_flips(len(images)):
        failures.append(f"{len(flips)} of {len(images)} predictions differ, {len(unexplained)} beyond rounding")
    off_pct = abs(torch_pct - recorded_pct)
    by_rounding = recorded_device != "cpu" and round(off_pct * len(images) / 100) <= _most_flips(len(images))
    if off_pct > SAME_PCT and not by_rounding:
        there = "" if recorded_device == "cpu" else f" on {recorded_device}"
        failures.append(f"the weights reach {torch_pct:.2f} % on {split}, the run recorded {recorded_pct:.2f} %{there}")
    for name, value in coupling.items():
        failures += _beyond(name.replace("_", " "), value, bound)
    if second is not None:
        failures += _beyond("onnx.reference against onnxruntime", second, bound)
    evidence = Evidence(images[: cause.MOST], side, logits.torch, logits.onnx, bound) if failures else None

    on = machine()
    report = StudentReport(
        passed=not failures,
        recorded_device=recorded_device,
        failures=tuple(failures),
        cause=cause.find(path, evidence, coupling) if evidence else None,
        split=split,
        images=len(images),
        images_sha256=digest.of(labels),
        logits=StudentLogits(
            allowed=_numbers({"images": bound, "extreme_images": extremes.allowed}),
            float32_noise=_numbers({"images": logits.noise, "extreme_images": extremes.noise}),
            max_abs=_numbers(differences),
            mean_abs=number(mean(logits.onnx, logits.torch)),
            largest_logit=number(np.abs(logits.torch).max()),
        ),
        probabilities_max_abs=number(softmax),
        top1_pct={"torch": round(torch_pct, 4), "onnx": round(onnx_pct, 4), "recorded": recorded_pct},
        balanced_accuracy_pct={name: count.balanced_pct for name, count in counts.items()},
        largest_class_pct=counts["onnx"].largest_pct,
        smallest_class_pct=counts["onnx"].smallest_pct,
        agreement_pct=round(100 * (1 - len(flips) / len(images)), 4),
        predictions_that_differ=len(flips),
        flips=tuple(int(i) for i in flips[:100]),
        unexplained_flips=tuple(unexplained[:100]),
        discordant=_discordant(right_torch, right_onnx),
        worst_class=min(per_class(info.classes, labels, right_torch, right_onnx), key=lambda row: row.change_pct),
        invariance_max_abs=_numbers(coupling),
        onnx_reference_max_abs=None if second is None else number(second),
        onnx_reference_refused=refused or None,
        **on | {"versions": {"torch": torch.__version__, **on["versions"]}},
    )
    return report, logits.onnx


# ---------------------------------------------------------------------------------------------------------------------
# Both sides' answers


def _of_images(side: Torch, session: Session, images: Images, digest: Digest) -> tuple[Logits, Floats]:
    """The logits of all images, each of which is read once, and the file's probabilities."""
    answers = []
    for part in batches(images):
        digest.add(part)
        answers.append((side.logits(part), *session(part, BATCH)))
    z_torch, z_onnx, probabilities = (np.concatenate(rows) for rows in zip(*answers, strict=True))
    rows = np.linspace(0, len(images) - 1, min(FLOAT64, len(images))).astype(int)
    return Logits(z_torch, z_onnx, side.exact(images[rows]), rows), probabilities


def _of_extremes(side: Torch, session: Session, height: int, width: int) -> Logits:
    images = _extremes(height, width)
    return Logits(side.logits(images), session(images)[0], side.exact(images))


def _extremes(height: int, width: int) -> Pixels:
    """Images that no data set holds, and on which a clipped range shows: flat, striped, ramps, single colours."""
    y, x = np.indices((height, width))
    planes = [np.full((height, width), grey) for grey in (0, 64, 128, 192, 255)]
    planes += [255 * pattern for pattern in ((x + y) % 2, (x + y + 1) % 2, x % 2, y % 2, x // 2 % 2, y // 2 % 2)]
    planes += [255 * x // max(width - 1, 1), 255 * y // max(height - 1, 1)]
    images = [np.repeat(plane[..., None], 3, axis=2) for plane in planes]
    images += [np.broadcast_to(255 * np.eye(3, dtype=np.int64)[c], (height, width, 3)) for c in range(3)]
    return np.stack(images).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# What does not hold


def _beyond(name: str, value: float, allowed: float) -> list[str]:
    """A failure where `value` is larger than allowed, or not a number."""
    return [] if value <= allowed else [f"{name}: max |d| {value:.1e} (allowed {allowed:.1e})"]


def _not_finite(*logits: Logits) -> list[str]:
    sides: dict[str, list[npt.NDArray[Any]]] = {
        "the student itself": [z for both in logits for z in (both.torch, both.exact)],
        "the file": [both.onnx for both in logits],
    }
    return [
        f"{name} gives logits that are not finite"
        for name, arrays in sides.items()
        if not all(np.isfinite(z).all() for z in arrays)
    ]


def _most_flips(images: int) -> float:
    """How many of them may get another class by rounding."""
    return max(1, MOST_FLIPS * images)


def _unexplained(flips: npt.NDArray[np.int64], images: Images, side: Torch, difference: float) -> list[int]:
    """Flipped predictions whose two best logits lie further apart than twice the difference between the sides.

    Of no more than FLOAT64: so many fail in any case.
    """
    if not len(flips):
        return []
    flips = flips[:FLOAT64]
    best = np.sort(side.exact(images[flips]), 1)
    margin = best[:, -1] - best[:, -2]
    explained = 2 * min(difference, 1e-2)  # a gross difference explains nothing
    return [int(i) for i, m in zip(flips, margin, strict=True) if m > explained]


def _discordant(torch_right: Right, onnx_right: Right) -> dict[str, int]:
    return {
        "torch_only_right": int((torch_right & ~onnx_right).sum()),
        "onnx_only_right": int((onnx_right & ~torch_right).sum()),
    }


def _numbers(values: Mapping[str, float]) -> dict[str, Number]:
    return {name: number(value) for name, value in values.items()}
