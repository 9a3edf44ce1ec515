"""Is a reduced file still the student? Every image of the judging split through the float32 file and through it.

The two are not equal and cannot be: what is asked is that hardly any prediction changes, that accuracy stays, and that
no class pays for it alone. A limit finer than one image is one image: nothing fails on a single flip.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

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
from okdc.bundle.macs import macs
from okdc.bundle.session import Floats, Images, Pixels, Session, parts

Kind = Literal["int8", "float16"]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gates:
    """What a reduced file may cost at most, in points of top-1, in % of equal predictions, in points of one class."""

    max_drop: float
    min_agreement: float
    max_class_drop: float


GATES: dict[Kind, Gates] = {"int8": Gates(1.0, 97.0, 5.0), "float16": Gates(0.2, 99.5, 2.0)}


@dataclass(frozen=True)
class Float32:
    """The float32 file, and the N×K logits that it gives the images that judge: asked once, for all reduced files."""

    blob: bytes
    logits: Floats


def judge(
    kind: Kind,
    float32: Float32,
    reduced: bytes,
    images: Images,
    labels: Labels,
    classes: Sequence[str],
    split: str,
    gates: Gates | None = None,
) -> dict[str, Any]:
    """Compare a reduced file with the float32 one. Returns its part of parity.json: `passed`, and if not `failures`.

    Each image is read once, a batch at a time. `tolerance` is what the file's logits may differ by on another machine.

    Raises CheckFailed ("parity" or "counting") where onnxruntime cannot run the file or one of both lacks its sizes.
    """
    gates, size = gates or GATES[kind], len(float32.blob)
    z, (found, p, first) = float32.logits, _run(Session(reduced), images)
    failures = _interface(float32.blob, reduced)
    finite = bool(np.isfinite(found).all() and np.isfinite(p).all())
    if not finite:
        failures.append("the file gives logits or probabilities that are not finite")

    # Classes, image by image. What is not finite predicts nothing.
    differ = (z.argmax(1) != found.argmax(1)) | ~np.isfinite(found).all(1)
    before, after = z.argmax(1) == labels, (found.argmax(1) == labels) & np.isfinite(found).all(1)
    one = 100 / len(images)
    top1 = {"float32": 100 * float(before.mean()), kind: 100 * float(after.mean())}
    drop, agreement = top1["float32"] - top1[kind], 100 * float(1 - differ.mean())
    if _exceeds(drop, allowed := max(gates.max_drop, one)):
        failures.append(
            f"top-1 falls by {drop:.2f} points, from {top1['float32']:.2f} to {top1[kind]:.2f} % "
            f"(allowed {allowed:.2f})"
        )
    if _exceeds(100 - agreement, max(100 - gates.min_agreement, one)):
        failures.append(
            f"{int(differ.sum())} of {len(images)} predictions differ: {agreement:.2f} % agree "
            f"(allowed {min(gates.min_agreement, 100 - one):.2f} %)"
        )
    rows = [_held(row, gates.max_class_drop) for row in per_class(classes, labels, before, after)]
    rows.sort(key=_beyond, reverse=True)
    failures += [_said(row) for row in rows if _exceeds(-row["change_pct"], row["allowed_pct"])]

    # The file's own answers: whatever the batch and the threads, and probabilities that are those of its logits.
    tolerance = _tolerance(kind, z, found)
    for name, value in (coupling := invariance(reduced, probe(first), (BATCH,))).items():
        if not value <= tolerance:
            failures.append(f"{name.replace('_', ' ')}: logits differ by {value:.1e} (allowed {tolerance:.1e})")
    if not (wrong := probabilities_off(found, p)) <= FLOOR:
        failures.append(f"probabilities against the softmax of the logits: max |d| {wrong:.1e} (allowed {FLOOR:.1e})")

    return {
        "passed": not failures,
        "failures": failures,
        "gates": asdict(gates),
        "split": split,
        "images": len(images),
        "top1_pct": {which: round(value, 4) for which, value in top1.items()},
        "drop_points": round(drop, 4),
        "agreement_pct": round(agreement, 4),
        "predictions_that_differ": int(differ.sum()),
        "discordant": {
            "float32_only_right": int((before & ~after).sum()),
            f"{kind}_only_right": int((after & ~before).sum()),
        },
        "worst_class": rows[0],
        "logits": {
            "max_abs": number(largest(found, z)),
            "mean_abs": number(np.abs(found - z).mean()),
            "largest_logit": number(np.abs(z).max()),
        },
        "tolerance": number(tolerance),
        "finite": finite,
        "probabilities_max_abs": number(wrong),
        "invariance_max_abs": {which: number(value) for which, value in coupling.items()},
        "bytes": {"float32": size, kind: len(reduced), "ratio": round(len(reduced) / size, 4)},
        **made_on(),
    }


def _run(session: Session, images: Images) -> tuple[Floats, Floats, Pixels]:
    """(logits, probabilities) of all images, and the first 135 or more of them."""
    found = []
    first: list[Pixels] = []
    for part in parts(images, BATCH):
        found.append(session(part))
        if len(first) * BATCH < PROBE:
            first.append(part)
    logits, probabilities = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return logits, probabilities, np.concatenate(first)


def _interface(float32: bytes, reduced: bytes) -> list[str]:
    """What goes in, what comes out, the work between and what the files say of themselves is the same."""
    found = []
    one, other = (onnx.load_model_from_string(blob) for blob in (float32, reduced))
    if [*one.graph.input, *one.graph.output] != [*other.graph.input, *other.graph.output]:
        found.append("the file takes or gives other tensors than model.onnx")
    work, done = (macs(model) for model in (one, other))
    if work != done:
        found.append(f"the file has {done:,} MACs, model.onnx has {work:,}")
    says, said = ({entry.key: entry.value for entry in model.metadata_props} for model in (one, other))
    found += [f"metadata {key} is not that of model.onnx" for key in sorted(says) if said.get(key) != says[key]]
    return found


def _held(row: dict[str, Any], limit: float) -> dict[str, Any]:
    """With what the class may lose: one image at least."""
    return row | {"allowed_pct": round(max(limit, 100 / row["images"]), 4)}


def _beyond(row: dict[str, Any]) -> float:
    return float(-row["change_pct"] - row["allowed_pct"])


def _said(row: dict[str, Any]) -> str:
    return (
        f"class {row['class']!r} falls by {-row['change_pct']:.2f} points on {row['images']} images "
        f"(allowed {row['allowed_pct']:.2f}, at least one image)"
    )


def _tolerance(kind: Kind, z: Floats, found: Floats) -> float:
    """What another machine's logits of the same file may differ by.

    int8: two of 256 steps over the range of its logits. float16: four times what rounding to it changed here.
    """
    if kind == "int8":
        return max(2 * float(found.max() - found.min()) / 255, FLOOR)
    return max(4 * largest(found, z), FLOOR)


def _exceeds(found: float, allowed: float) -> bool:
    """Not for the last digits of a percentage."""
    return not found <= allowed + 1e-9
