"""Whether a reduced file still is the student: every image of the judging split through the float32 file and the other.

The two cannot be equal. The gate asks that few predictions change, that accuracy stays, and that no class alone pays
for it. No limit is finer than one image: nothing fails on a single flip.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from okdc.bundle.artefacts import REDUCED, ClassChange, Gates, ReducedLogits, ReducedReport
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
from okdc.bundle.macs import macs
from okdc.bundle.session import Floats, Images, Pixels, Session, parts
from okdc.runs.predictions import by_class

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Float32:
    """The float32 file and its N×K logits of the judging images, computed once for all reduced files."""

    blob: bytes
    logits: Floats


@dataclass(frozen=True)
class Answers:
    """The reduced file's answers to all images, and the first 135 or more of the images."""

    logits: Floats
    probabilities: Floats
    first: Pixels

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.logits).all() and np.isfinite(self.probabilities).all())


@dataclass(frozen=True)
class Predictions:
    """Image by image: whether the prediction changed, and whether it was right before and after."""

    differ: Right
    before: Right
    after: Right

    @property
    def top1_pct(self) -> tuple[float, float]:
        return 100 * float(self.before.mean()), 100 * float(self.after.mean())

    @property
    def drop(self) -> float:
        before, after = self.top1_pct
        return before - after

    @property
    def agreement_pct(self) -> float:
        return 100 * float(1 - self.differ.mean())


def judge(
    kind: str,
    float32: Float32,
    reduced: bytes,
    images: Images,
    labels: Labels,
    classes: Sequence[str],
    split: str,
    gates: Gates | None = None,
) -> ReducedReport:
    """Compare a reduced file with the float32 one. Each image is read once, a batch at a time.

    Raises CheckFailed ("parity" or "counting") where onnxruntime cannot run the file or one of both lacks its sizes.
    """
    gates, z = gates or REDUCED[kind].gates, float32.logits
    answers = _answers(Session(reduced), images)
    predictions = _predictions(z, answers.logits, labels)
    rows = _classes(per_class(classes, labels, predictions.before, predictions.after), gates.max_class_drop)
    tolerance = _tolerance(kind, z, answers.logits)
    coupling = invariance(reduced, probe(answers.first), (BATCH,))
    softmax = probabilities_off(answers.logits, answers.probabilities)
    failures = [
        *_interface_failures(float32.blob, reduced),
        *([] if answers.finite else ["the file gives logits or probabilities that are not finite"]),
        *_accuracy_failures(predictions, gates),
        *_class_failures(rows),
        *(
            f"{name.replace('_', ' ')}: logits differ by {value:.1e} (allowed {tolerance:.1e})"
            for name, value in coupling.items()
            if not value <= tolerance
        ),
    ]
    if not softmax <= FLOOR:
        failures.append(f"probabilities against the softmax of the logits: max |d| {softmax:.1e} (allowed {FLOOR:.1e})")
    before, after = predictions.top1_pct
    counts = {
        "float32": by_class(labels, predictions.before, len(classes)),
        kind: by_class(labels, predictions.after, len(classes)),
    }
    return ReducedReport(
        passed=not failures,
        failures=tuple(failures),
        gates=gates,
        split=split,
        images=len(images),
        top1_pct={"float32": round(before, 4), kind: round(after, 4)},
        balanced_accuracy_pct={name: count.balanced_pct for name, count in counts.items()},
        largest_class_pct=counts[kind].largest_pct,
        smallest_class_pct=counts[kind].smallest_pct,
        drop_points=round(predictions.drop, 4),
        agreement_pct=round(predictions.agreement_pct, 4),
        predictions_that_differ=int(predictions.differ.sum()),
        discordant={
            "float32_only_right": int((predictions.before & ~predictions.after).sum()),
            f"{kind}_only_right": int((predictions.after & ~predictions.before).sum()),
        },
        worst_class=rows[0],
        logits=ReducedLogits(
            max_abs=number(largest(answers.logits, z)),
            mean_abs=number(mean(answers.logits, z)),
            largest_logit=number(np.abs(z).max()),
        ),
        tolerance=number(tolerance),
        finite=answers.finite,
        probabilities_max_abs=number(softmax),
        invariance_max_abs={name: number(value) for name, value in coupling.items()},
        bytes={
            "float32": len(float32.blob),
            kind: len(reduced),
            "ratio": round(len(reduced) / len(float32.blob), 4),
        },
        **machine(),
    )


def _answers(session: Session, images: Images) -> Answers:
    answers = []
    first: list[Pixels] = []
    for part in parts(images, BATCH):
        answers.append(session(part))
        if len(first) * BATCH < PROBE:
            first.append(part)
    logits, probabilities = (np.concatenate(rows) for rows in zip(*answers, strict=True))
    return Answers(logits, probabilities, np.concatenate(first))


def _predictions(before: Floats, after: Floats, labels: Labels) -> Predictions:
    """Logits that are not finite predict nothing."""
    finite = np.isfinite(after).all(1)
    return Predictions(
        (before.argmax(1) != after.argmax(1)) | ~finite,
        before.argmax(1) == labels,
        (after.argmax(1) == labels) & finite,
    )


def _interface_failures(float32: bytes, reduced: bytes) -> list[str]:
    """Inputs, outputs, multiply-adds and metadata are the same in both files."""
    failures = []
    model, other = (onnx.load_model_from_string(blob) for blob in (float32, reduced))
    if [*model.graph.input, *model.graph.output] != [*other.graph.input, *other.graph.output]:
        failures.append("the file takes or gives other tensors than model.onnx")
    if (other_macs := macs(other)) != (model_macs := macs(model)):
        failures.append(f"the file has {other_macs:,} MACs, model.onnx has {model_macs:,}")
    expected, metadata = ({entry.key: entry.value for entry in m.metadata_props} for m in (model, other))
    wrong = [key for key in sorted(expected) if metadata.get(key) != expected[key]]
    return failures + [f"metadata {key} is not that of model.onnx" for key in wrong]


def _accuracy_failures(predictions: Predictions, gates: Gates) -> list[str]:
    failures, count = [], len(predictions.differ)
    image_pct = 100 / count  # no limit is finer
    before, after = predictions.top1_pct
    if _exceeds(predictions.drop, allowed := max(gates.max_drop, image_pct)):
        failures.append(
            f"top-1 falls by {predictions.drop:.2f} points, from {before:.2f} to {after:.2f} % (allowed {allowed:.2f})"
        )
    if _exceeds(100 - predictions.agreement_pct, max(100 - gates.min_agreement, image_pct)):
        failures.append(
            f"{int(predictions.differ.sum())} of {count} predictions differ: {predictions.agreement_pct:.2f} % agree "
            f"(allowed {min(gates.min_agreement, 100 - image_pct):.2f} %)"
        )
    return failures


def _classes(rows: Sequence[ClassChange], limit: float) -> list[ClassChange]:
    """Each class with the points that it may lose, one image at least; the furthest beyond it first."""
    allowed = [row.model_copy(update={"allowed_pct": round(max(limit, 100 / row.images), 4)}) for row in rows]
    return sorted(allowed, key=lambda row: -row.change_pct - (row.allowed_pct or 0.0), reverse=True)


def _class_failures(rows: Sequence[ClassChange]) -> list[str]:
    return [
        f"class {row.class_!r} falls by {-row.change_pct:.2f} points on {row.images} images "
        f"(allowed {row.allowed_pct:.2f}, at least one image)"
        for row in rows
        if _exceeds(-row.change_pct, row.allowed_pct or 0.0)
    ]


def _tolerance(kind: str, float32: Floats, reduced: Floats) -> float:
    """By which logits of the same file may differ on another machine.

    int8: two of 256 steps over the range of its logits. Floats: four times the change that rounding to them made here.
    """
    if kind == "int8":
        return max(2 * float(reduced.max() - reduced.min()) / 255, FLOOR)
    return max(4 * largest(reduced, float32), FLOOR)


def _exceeds(value: float, allowed: float) -> bool:
    """The last digits of a percentage do not count."""
    return not value <= allowed + 1e-9
