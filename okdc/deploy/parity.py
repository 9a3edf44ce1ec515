"""Is the ONNX file the student? Every image of the judging split through both; the two sides share nothing.

torch: the weights read back from student.safetensors, the transform of training on raw pixels, float32 and float64.
onnxruntime: the file on disk, raw uint8 straight in.

The allowed difference is not a constant but the machine's own: 16 times what float32 differs from float64 on the same
network and images, at least 1e-5. That is some fifty times tighter than what exporters usually ask, and it sees defects
that accuracy cannot: half-precision weights, a bias off by 0.002, activations clipped just above what noise reaches.

Shapes: N images, K classes.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator

from okdc.cohort import Backbone
from okdc.deploy import cause
from okdc.deploy.cause import Evidence
from okdc.deploy.onnx import INPUT, LOGITS, PROBABILITIES
from okdc.deploy.sides import Floats, Pixels, Session, Torch

FACTOR, FLOOR = 16, 1e-5
BATCHES = (1, 2, 7, 64)
PROBE = 135  # images of the batch and thread checks: 135 = 2·64 + 7 leaves a partial last batch at every size but 1
FLOAT64 = 1000  # images that are also computed in float64
MOST_FLIPS = 0.001  # share of images whose class may change, if their margin explains it
SAME_PCT = 0.05  # a recorded accuracy may differ by this between machines; below 2,000 images that is no image at all


def check(
    path: Path,
    network: Backbone,
    facts: Mapping[str, Any],
    images: Pixels,
    labels: npt.NDArray[np.int64],
    recorded_pct: float,
    split: str,
) -> dict[str, Any]:
    """Compare the file at `path` with the student. Returns parity.json: `passed`, and if not `failures` and `cause`."""
    side = Torch(network, facts)
    session = Session(path)
    failures: list[str] = []

    # Logits of every image, on both sides, and float64 for the bound.
    z_torch = side.logits(images)
    z_onnx, p_onnx = session(images, 64)
    some = np.linspace(0, len(images) - 1, min(FLOAT64, len(images))).astype(int)
    extremes = _extremes(images)
    z_exact = side.exact(np.concatenate([images[some], extremes]))
    z32 = np.concatenate([z_torch[some], side.logits(extremes)])
    zort = np.concatenate([z_onnx[some], session(extremes)[0]])
    noise = _largest(z32, z_exact)
    bound = max(FACTOR * noise, FLOOR)
    evidence = Evidence(images, labels, side, z_torch, z_onnx, bound)

    finite = bool(np.isfinite(z_onnx).all() and np.isfinite(zort).all())
    if not finite:
        failures.append("onnxruntime gives logits that are not finite")
    differences = {
        "all_images": _largest(z_onnx, z_torch),
        "float64": _largest(zort[: len(some)], z_exact[: len(some)]),
        "extreme_images": _largest(zort[len(some) :], z_exact[len(some) :]),
    }
    for name, value in differences.items():
        if not value <= bound:
            failures.append(f"logits of {name.replace('_', ' ')}: max |d| {value:.1e} (allowed {bound:.1e})")
    softmax = np.exp(z_onnx - z_onnx.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    probabilities = max(_largest(p_onnx, softmax), float(np.abs(p_onnx.sum(1) - 1).max()))
    if not probabilities <= FLOOR:
        failures.append(f"probabilities are not the softmax of the logits: max |d| {probabilities:.1e}")

    # Classes, image by image.
    flips = np.flatnonzero(z_torch.argmax(1) != z_onnx.argmax(1))
    unexplained = _unexplained(flips, images, side, differences["all_images"])
    if unexplained or len(flips) > max(1, MOST_FLIPS * len(images)):
        failures.append(f"{len(flips)} of {len(images)} predictions differ, {len(unexplained)} beyond rounding")
    right_torch, right_onnx = z_torch.argmax(1) == labels, z_onnx.argmax(1) == labels
    torch_pct, onnx_pct = 100 * float(right_torch.mean()), 100 * float(right_onnx.mean())
    if abs(torch_pct - recorded_pct) > SAME_PCT:
        failures.append(f"the weights reach {torch_pct:.2f} % on {split}, the run recorded {recorded_pct:.2f} %")

    # The same answers whatever the batch, the threads and the engine.
    invariance = _invariance(path, session, images)
    for name, value in invariance.items():
        if not value <= bound:
            failures.append(f"{name.replace('_', ' ')}: max |d| {value:.1e} (allowed {bound:.1e})")
    second = _largest(_reference(path, images[:4]), z_onnx[:4])
    if not second <= bound:
        failures.append(f"onnx.reference disagrees with onnxruntime: max |d| {second:.1e}")

    return {
        "schema": 1,
        "passed": not failures,
        "failures": failures,
        "cause": cause.find(path, evidence, invariance) if failures else None,
        "split": split,
        "images": len(images),
        "logits": {
            "allowed": bound,
            "float32_noise": noise,
            "max_abs": differences,
            "mean_abs": float(np.abs(z_onnx - z_torch).mean()),
            "largest_logit": float(np.abs(z_torch).max()),
        },
        "probabilities_max_abs": probabilities,
        "top1_pct": {"torch": round(torch_pct, 4), "onnx": round(onnx_pct, 4), "recorded": recorded_pct},
        "agreement_pct": round(100 * (1 - len(flips) / len(images)), 4),
        "flips": [int(i) for i in flips[:100]],
        "unexplained_flips": unexplained[:100],
        "discordant": {
            "torch_only_right": int((right_torch & ~right_onnx).sum()),
            "onnx_only_right": int((right_onnx & ~right_torch).sum()),
        },
        "worst_class": _worst_class(facts["classes"], labels, right_torch, right_onnx),
        "invariance_max_abs": invariance,
        "onnx_reference_max_abs": second,
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "platform": platform.platform(),
    }


def _largest(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """max |a - b|; not a number counts as infinitely far."""
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _extremes(images: Pixels) -> Pixels:
    """All 0, all 255, and a checkerboard of both: what no data set holds and a clipped range shows on."""
    zeros, ones = np.zeros_like(images[0]), np.full_like(images[0], 255)
    board = np.indices(zeros.shape[:2]).sum(0)[..., None] % 2
    return np.stack([zeros, ones, np.where(board == 1, ones, zeros).astype(np.uint8)])


def _unexplained(flips: npt.NDArray[np.int64], images: Pixels, side: Torch, difference: float) -> list[int]:
    """Flipped predictions whose two best logits lie further apart than twice the difference between the sides."""
    if not len(flips):
        return []
    best = np.sort(side.exact(images[flips]), 1)
    margin = best[:, -1] - best[:, -2]
    explained = 2 * min(difference, 1e-2)  # a gross difference explains nothing
    return [int(i) for i, m in zip(flips, margin, strict=True) if m > explained]


def _invariance(path: Path, session: Session, images: Pixels) -> dict[str, float]:
    """max |d| of each batch size and of two threads against one image at a time."""
    probe = np.resize(images, (PROBE, *images.shape[1:]))  # repeats the images where there are fewer
    single, _ = session(probe, 1)
    found = {f"batch_{batch}": _largest(session(probe, batch)[0], single) for batch in BATCHES[1:]}
    found[f"batch_{PROBE}"] = _largest(session(probe)[0], single)
    found["2_threads"] = _largest(Session(path, threads=2)(probe, 64)[0], single)
    return found


def _reference(path: Path, images: Pixels) -> Floats:
    """A second engine, written for clarity: it knows nothing of onnxruntime's kernels and fusions."""
    logits, _ = ReferenceEvaluator(str(path)).run([LOGITS, PROBABILITIES], {INPUT: images})
    return np.asarray(logits)


def _worst_class(
    classes: list[str],
    labels: npt.NDArray[np.int64],
    torch_right: npt.NDArray[np.bool_],
    onnx_right: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """The class that loses most in the file: a mean over classes can hide it."""
    rows = []
    for c, name in enumerate(classes):
        of = labels == c
        if of.any():
            rows.append((100 * float(onnx_right[of].mean() - torch_right[of].mean()), name, int(of.sum())))
    change, name, count = min(rows)
    return {"class": name, "images": count, "change_pct": round(change, 4)}
