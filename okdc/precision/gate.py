"""Is a reduced file still the student? Every image of the judging split through the float32 file and through it.

The two are not equal and cannot be: what is asked is that hardly any prediction changes, that accuracy stays, and that
no class pays for it alone. A limit finer than one image is one image: nothing fails on a single flip.

Shapes: N images, K classes.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from okdc import machine
from okdc.bundle.session import Floats, Images, Pixels, Session, parts

Kind = Literal["int8", "float16"]
Labels = npt.NDArray[np.int64]
Right = npt.NDArray[np.bool_]

BATCH = 64
PROBE = 135  # images of the batch and thread checks: 135 = 2·64 + 7 leaves a partial last batch
FLOOR = 1e-5
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "f16c", "avx512_fp16")  # what picks the kernels


@dataclass(frozen=True)
class Gates:
    """What a reduced file may cost at most, in points of top-1, in % of equal predictions, in points of one class."""

    max_drop: float
    min_agreement: float
    max_class_drop: float


GATES: dict[Kind, Gates] = {"int8": Gates(1.0, 97.0, 5.0), "float16": Gates(0.2, 99.5, 2.0)}


def judge(
    kind: Kind,
    float32: bytes,
    reduced: bytes,
    images: Images,
    labels: Labels,
    classes: Sequence[str],
    split: str,
    gates: Gates | None = None,
) -> dict[str, Any]:
    """Compare a reduced file with the float32 one. Returns its part of parity.json: `passed`, and if not `failures`.

    Each image is read once, a batch at a time. `tolerance` is what the file's logits may differ by on another machine.

    Raises CheckFailed ("parity") where onnxruntime cannot run one of the files.
    """
    gates = gates or GATES[kind]
    z, found, p, probe = _run(Session(float32), Session(reduced), images)
    failures = _interface(float32, reduced)
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
    rows = _per_class(classes, labels, before, after, gates.max_class_drop)
    failures += [_said(row) for row in rows if _exceeds(-row["change_pct"], row["allowed_pct"])]

    # The file's own answers: whatever the batch and the threads, and probabilities that are those of its logits.
    tolerance = _tolerance(kind, z, found)
    for name, value in (invariance := _invariance(reduced, probe)).items():
        if not value <= tolerance:
            failures.append(f"{name.replace('_', ' ')}: logits differ by {value:.1e} (allowed {tolerance:.1e})")
    softmax = np.exp(found - found.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    if not (wrong := float(np.abs(p - softmax).max())) <= FLOOR:
        failures.append(f"probabilities against the softmax of the logits: max |d| {wrong:.1e} (allowed {FLOOR:.1e})")

    name, flags = machine.processor()
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
            "max_abs": _number(np.abs(found - z).max()),
            "mean_abs": _number(np.abs(found - z).mean()),
            "largest_logit": _number(np.abs(z).max()),
        },
        "tolerance": _number(tolerance),
        "finite": finite,
        "probabilities_max_abs": _number(wrong),
        "invariance_max_abs": {which: _number(value) for which, value in invariance.items()},
        "bytes": {"float32": len(float32), kind: len(reduced), "ratio": round(len(reduced) / len(float32), 4)},
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "platform": platform.platform(),
        "processor": {"name": name, "flags": [flag for flag in FLAGS if flag in flags]},
    }


def _run(float32: Session, reduced: Session, images: Images) -> tuple[Floats, Floats, Floats, Pixels]:
    """(float32 logits, reduced logits, reduced probabilities) of all images, and the first 135, repeated if fewer."""
    of_float32, of_reduced, probabilities = [], [], []
    first: list[Pixels] = []
    for part in parts(images, BATCH):
        of_float32.append(float32(part)[0])
        logits, p = reduced(part)
        of_reduced.append(logits)
        probabilities.append(p)
        if len(first) * BATCH < PROBE:
            first.append(part)
    probe = np.concatenate(first)
    probe = probe[np.arange(PROBE) % len(probe)]
    return np.concatenate(of_float32), np.concatenate(of_reduced), np.concatenate(probabilities), probe


def _interface(float32: bytes, reduced: bytes) -> list[str]:
    """What goes in, what comes out and what the files say of themselves is the same."""
    found = []
    one, other = (onnx.load_model_from_string(blob) for blob in (float32, reduced))
    if [*one.graph.input, *one.graph.output] != [*other.graph.input, *other.graph.output]:
        found.append("the file takes or gives other tensors than model.onnx")
    says, said = ({entry.key: entry.value for entry in model.metadata_props} for model in (one, other))
    found += [f"metadata {key} is not that of model.onnx" for key in sorted(says) if said.get(key) != says[key]]
    return found


def _per_class(
    classes: Sequence[str], labels: Labels, before: Right, after: Right, limit: float
) -> list[dict[str, Any]]:
    """The classes that have images, the one furthest beyond what it is allowed first. One image is always allowed."""
    rows = []
    for c, name in enumerate(classes):
        if count := int((of := labels == c).sum()):
            change = 100 * float(after[of].mean() - before[of].mean())
            allowed = max(limit, 100 / count)
            row = {"class": name, "images": count, "change_pct": round(change, 4), "allowed_pct": round(allowed, 4)}
            rows.append((-change - allowed, row))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _said(row: dict[str, Any]) -> str:
    return (
        f"class {row['class']!r} falls by {-row['change_pct']:.2f} points on {row['images']} images "
        f"(allowed {row['allowed_pct']:.2f}, at least one image)"
    )


def _invariance(reduced: bytes, probe: Pixels) -> dict[str, float]:
    """max |d| of a batch of 64 and of two threads against one image at a time."""
    session = Session(reduced)
    single, _ = session(probe, 1)
    two, _ = Session(reduced, threads=2)(probe, BATCH)
    many, _ = session(probe, BATCH)
    return {f"batch_{BATCH}": float(np.abs(many - single).max()), "2_threads": float(np.abs(two - single).max())}


def _tolerance(kind: Kind, z: Floats, found: Floats) -> float:
    """What another machine's logits of the same file may differ by.

    int8: two of 256 steps over the range of its logits. float16: four times what rounding to it changed here.
    """
    if kind == "int8":
        return max(2 * float(found.max() - found.min()) / 255, FLOOR)
    return max(4 * float(np.abs(found - z).max()), FLOOR)


def _exceeds(found: float, allowed: float) -> bool:
    """Not for the last digits of a percentage."""
    return not found <= allowed + 1e-9


def _number(value: Any) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None
