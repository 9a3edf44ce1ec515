"""Is the ONNX file the student? Every image of the judging split through both; the two sides share nothing.

torch: the weights read back from student.safetensors, the transform of training on raw pixels, float32 and float64.
onnxruntime: the file on disk, raw uint8 straight in.

The allowed difference is not a constant but the machine's own: 16 times what float32 differs from float64 on the same
network and images, at least 1e-5. That is some fifty times tighter than what exporters usually ask, and it sees defects
that accuracy cannot: half-precision weights, a bias off by 0.002, activations clipped just above what noise reaches.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx.reference import ReferenceEvaluator

from okdc.bundle.checks import (
    BATCH,
    FLOOR,
    PROBE,
    invariance,
    largest,
    made_on,
    number,
    per_class,
    probabilities_off,
    probe,
)
from okdc.bundle.session import Floats, Images, Pixels, Session
from okdc.bundle.structure import INPUT, LOGITS, PROBABILITIES
from okdc.bundle.test_images import SAME_PCT, Digest
from okdc.cohort import Backbone
from okdc.deploy import cause
from okdc.deploy.cause import Evidence
from okdc.deploy.torch_reference import Torch, batches
from okdc.errors import CheckFailed
from okdc.runs.artefacts import StudentInfo

FACTOR = 16
BATCHES = (2, 7, 64, PROBE)
FLOAT64 = 1000  # images that are also computed in float64
MOST_FLIPS = 0.001  # share of images whose class may change, if their margin explains it


def check(
    path: Path,
    network: Backbone,
    info: StudentInfo,
    images: Images,
    labels: npt.NDArray[np.int64],
    recorded_pct: float,
    split: str,
) -> tuple[dict[str, Any], Floats]:
    """Compare the file at `path` with the student. Returns parity.json and the file's N×K logits of the images.

    parity.json says `passed`, and if not `failures` and `cause`.

    `images` may be decoded as they are read: no more than a batch of them is held, each is read once, and those that
    are computed again some more times.

    Raises CheckFailed where an engine cannot run the file at all.
    """
    side, session = Torch(network, info.preprocessing), Session(path)
    failures: list[str] = []

    def hold(what: str, found: float, allowed: float) -> None:
        if not found <= allowed:
            failures.append(f"{what}: max |d| {found:.1e} (allowed {allowed:.1e})")

    # Logits of every image on both sides; float64 of some says what rounding alone does, and so what is allowed.
    # Images that no data set holds round otherwise than real ones and get an allowance of their own.
    proof = Digest()
    z_torch, z_onnx, p_onnx = _answers(side, session, images, proof)
    some = np.linspace(0, len(images) - 1, min(FLOAT64, len(images))).astype(int)
    z_exact = side.exact(images[some])
    extremes = _extremes(*images.shape[1:3])
    e_torch, e_onnx, e_exact = side.logits(extremes), session(extremes)[0], side.exact(extremes)
    noise = {"images": largest(z_torch[some], z_exact), "extreme_images": largest(e_torch, e_exact)}
    allowed = {name: max(FACTOR * value, FLOOR) for name, value in noise.items()}
    bound = allowed["images"]
    for who, found in (("the student itself", (z_torch, z_exact, e_torch, e_exact)), ("the file", (z_onnx, e_onnx))):
        if not all(np.isfinite(z).all() for z in found):
            failures.append(f"{who} gives logits that are not finite")
    differences = {
        "images": largest(z_onnx, z_torch),
        "images_float64": largest(z_onnx[some], z_exact),
        "extreme_images": largest(e_onnx, e_exact),
    }
    for name, value in differences.items():
        hold(f"logits of {name.replace('_', ' ')}", value, allowed.get(name, bound))
    probabilities = probabilities_off(z_onnx, p_onnx)
    hold("probabilities against the softmax of the logits", probabilities, FLOOR)

    # Classes, image by image.
    flips = np.flatnonzero(z_torch.argmax(1) != z_onnx.argmax(1))
    unexplained = _unexplained(flips, images, side, differences["images"])
    if unexplained or len(flips) > max(1, MOST_FLIPS * len(images)):
        failures.append(f"{len(flips)} of {len(images)} predictions differ, {len(unexplained)} beyond rounding")
    right_torch, right_onnx = z_torch.argmax(1) == labels, z_onnx.argmax(1) == labels
    torch_pct, onnx_pct = 100 * float(right_torch.mean()), 100 * float(right_onnx.mean())
    if abs(torch_pct - recorded_pct) > SAME_PCT:
        failures.append(f"the weights reach {torch_pct:.2f} % on {split}, the run recorded {recorded_pct:.2f} %")

    # The same answers whatever the batch, the threads and the engine.
    coupling = invariance(path, probe(images), BATCHES)
    for name, value in coupling.items():
        hold(name.replace("_", " "), value, bound)
    second = largest(_reference(path, images[:4]), z_onnx[:4])
    hold("onnx.reference against onnxruntime", second, bound)

    why, made = None, made_on()
    if failures:
        why = cause.find(path, Evidence(images[: cause.LOOKED_AT], side, z_torch, z_onnx, bound), coupling)
    report = {
        "schema": 1,
        "passed": not failures,
        "failures": failures,
        "cause": why,
        "split": split,
        "images": len(images),
        "images_sha256": proof.of(labels),
        "logits": {
            "allowed": _numbers(allowed),
            "float32_noise": _numbers(noise),
            "max_abs": _numbers(differences),
            "mean_abs": number(np.abs(z_onnx - z_torch).mean()),
            "largest_logit": number(np.abs(z_torch).max()),
        },
        "probabilities_max_abs": number(probabilities),
        "top1_pct": {"torch": round(torch_pct, 4), "onnx": round(onnx_pct, 4), "recorded": recorded_pct},
        "agreement_pct": round(100 * (1 - len(flips) / len(images)), 4),
        "predictions_that_differ": len(flips),
        "flips": [int(i) for i in flips[:100]],
        "unexplained_flips": unexplained[:100],
        "discordant": {
            "torch_only_right": int((right_torch & ~right_onnx).sum()),
            "onnx_only_right": int((right_onnx & ~right_torch).sum()),
        },
        "worst_class": min(
            per_class(info.classes, labels, right_torch, right_onnx), key=lambda row: float(row["change_pct"])
        ),  # a mean over classes can hide it
        "invariance_max_abs": _numbers(coupling),
        "onnx_reference_max_abs": number(second),
        **made,
        "versions": {"torch": torch.__version__, **made["versions"]},
    }
    return report, z_onnx


def _answers(side: Torch, session: Session, images: Images, proof: Digest) -> tuple[Floats, Floats, Floats]:
    """(logits of torch, logits of the file, its probabilities) of all images, each of which is read once."""
    found = []
    for part in batches(images):
        proof.add(part)
        found.append((side.logits(part), *session(part, BATCH)))
    z_torch, z_onnx, p_onnx = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return z_torch, z_onnx, p_onnx


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: number(value) for name, value in values.items()}


def _extremes(height: int, width: int) -> Pixels:
    """Images that no data set holds, and on which a clipped range shows: flat, striped, ramps, single colours."""
    y, x = np.indices((height, width))
    planes = [np.full((height, width), grey) for grey in (0, 64, 128, 192, 255)]
    planes += [255 * pattern for pattern in ((x + y) % 2, (x + y + 1) % 2, x % 2, y % 2, x // 2 % 2, y // 2 % 2)]
    planes += [255 * x // max(width - 1, 1), 255 * y // max(height - 1, 1)]
    found = [np.repeat(plane[..., None], 3, axis=2) for plane in planes]
    found += [np.broadcast_to(255 * np.eye(3, dtype=np.int64)[c], (height, width, 3)) for c in range(3)]
    return np.stack(found).astype(np.uint8)


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


def _reference(path: Path, images: Pixels) -> Floats:
    """A second engine, written for clarity: it knows nothing of onnxruntime's kernels and fusions."""
    try:
        logits, _ = ReferenceEvaluator(str(path)).run([LOGITS, PROBABILITIES], {INPUT: images})
    except Exception as error:  # it raises whatever numpy raises
        raise CheckFailed("parity", f"onnx.reference cannot run the file: {error}") from error
    return np.asarray(logits)
