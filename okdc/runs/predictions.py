"""predictions.npz: what a run's networks answered to the images that it chose and judged by. No torch.

    validation_rows, test_rows        N int64       places of the images in the data set
    validation_labels, test_labels    N int64
    validation_logits, test_logits    NxK float16   of the kept student, less the largest of the image
    validation_largest, test_largest  N float32     these largest logits
    heads                             names         of the heads, as the last epoch left them
    heads_right                       HxN bits      whether each was right, on the images that judge the run
    students_right                    SxN bits      the same of every student as its file has it, the kept one included

A split that the data lacks has N = 0. The validation images judge a run where there are no test images.

float16 ends at 65,504, and above 2,048 it leaves out integers. Less its largest logit an image's answer keeps its
order, its probabilities and a fine step where they matter; 65,504 below the largest, where float16 ends, a class has
no probability that any float could hold. Close classes can still become one in float16: an accuracy is counted from
the bits, which are those of float32.

Bits are packed by `numpy.packbits`, row by row. Nothing in the file is pickled.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.errors import CheckFailed, RunError, first_line
from okdc.runs.accuracy import ByClass
from okdc.runs.artefacts import Result
from okdc.runs.files import write as write_file

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]  # of N images

LOWEST = float(np.finfo(np.float16).min)
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Answers:
    """The kept student's answers to one split."""

    rows: Integers
    labels: Integers
    relative: npt.NDArray[np.float16]  # NK logits, less the largest of each image
    largest: Floats

    @classmethod
    def of(cls, rows: Integers, labels: Integers, logits: Floats) -> Answers:
        """`logits`: NK float32, finite."""
        largest = logits.max(1) if len(logits) else np.empty(0, np.float32)
        below = logits.astype(np.float64) - largest[:, None]  # the difference of two float32 may be larger than one
        return cls(rows, labels, np.maximum(below, LOWEST).astype(np.float16), largest)

    @property
    def logits(self) -> Floats:
        """NK, as precise as float16 keeps their distance from the largest."""
        return self.relative.astype(np.float32) + self.largest[:, None]


@dataclass(frozen=True)
class Predictions:
    """The whole file."""

    validation: Answers
    test: Answers
    heads: Mapping[str, Bits]  # by name, at the last epoch
    students: Sequence[Bits]  # by number

    @property
    def judging(self) -> Answers:
        """The split of the bits: test, or validation where there is no test."""
        return self.test if len(self.test.rows) else self.validation


def write(path: Path, predictions: Predictions) -> str:
    """Replace the file in one step; returns its sha256. Raises DiskError."""
    arrays: dict[str, Any] = {
        "heads": np.array(list(predictions.heads), dtype=np.str_),
        "heads_right": _packed(list(predictions.heads.values())),
        "students_right": _packed(predictions.students),
    }
    for name in SPLITS:
        answers: Answers = getattr(predictions, name)
        arrays |= {
            f"{name}_rows": answers.rows,
            f"{name}_labels": answers.labels,
            f"{name}_logits": answers.relative,
            f"{name}_largest": answers.largest,
        }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, result: Result) -> Predictions:
    """The file of a complete run, proven by its result.json.

    Raises RunError where it cannot be read or is damaged, CheckFailed ("predictions") where it is not the file that
    the run recorded, or gives other accuracies than the run recorded.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != result.predictions_sha256:
        raise CheckFailed(
            "predictions",
            f"{path} is not the file that the run recorded: sha256 {sha256[:12]}, "
            f"expected {result.predictions_sha256[:12]}",
            hint=_HINT,
        )
    try:
        predictions = _parsed(content, result)
    except _DamageError as error:
        raise RunError(f"{path} is damaged: {error}", hint=_HINT) from None
    except Exception as error:  # of zipfile, zlib and numpy; a header that asks for more memory than there is
        raise RunError(f"{path} is damaged: {first_line(error) or type(error).__name__}", hint=_HINT) from None
    _prove(path, predictions, result)
    return predictions


_HINT = "restore the file, or train again"


class _DamageError(ValueError):
    """What is wrong with an array, in words."""


def by_class(labels: Integers, right: Bits, classes: int) -> ByClass:
    """Counts of the images of each class, and of those that were answered right."""
    images = np.bincount(labels, minlength=classes)
    return ByClass(images.tolist(), np.bincount(labels[right], minlength=classes).tolist())


def _packed(bits: Sequence[Bits]) -> npt.NDArray[np.uint8]:
    return np.packbits(np.stack(bits), axis=1)


def _parsed(content: bytes, result: Result) -> Predictions:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        if missing := {*_NAMES} - {*stored.files}:
            raise _DamageError(f"{min(missing)}: missing")
        arrays = {name: stored[name] for name in _NAMES}
    splits = {name: _answers(name, arrays) for name in SPLITS}
    names = arrays["heads"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise _DamageError(f"heads: expected a list of names, found {names.dtype} of shape {names.shape}")
    heads = [str(name) for name in names]
    if heads != list(result.heads_last_epoch_top1_pct):
        raise _DamageError("heads: expected those of result.json, in order")
    judging = splits["test"] if len(splits["test"].rows) else splits["validation"]
    if len(judging.rows) != result.images:
        raise _DamageError(f"expected {result.images} images that judge, found {len(judging.rows)}")
    return Predictions(
        **splits,
        heads=dict(zip(heads, _unpacked("heads_right", arrays, len(heads), result.images), strict=True)),
        students=list(_unpacked("students_right", arrays, len(result.cohort), result.images)),
    )


_NAMES = (
    *("heads", "heads_right", "students_right"),
    *(f"{split}_{part}" for split in SPLITS for part in ("rows", "labels", "logits", "largest")),
)


def _answers(split: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Answers:
    rows, labels, logits, largest = (arrays[f"{split}_{name}"] for name in ("rows", "labels", "logits", "largest"))
    n = len(rows) if rows.ndim == 1 else 0
    k = logits.shape[1] if logits.ndim == 2 else 0
    for name, array, dtype, shape in (
        ("rows", rows, np.int64, (n,)),
        ("labels", labels, np.int64, (n,)),
        ("logits", logits, np.float16, (n, k)),
        ("largest", largest, np.float32, (n,)),
    ):
        if array.dtype != dtype or array.shape != shape:
            raise _DamageError(
                f"{split}_{name}: expected {np.dtype(dtype)} of shape {shape}, found {array.dtype} of {array.shape}"
            )
    if n and not (k and labels.min() >= 0 and labels.max() < k and rows.min() >= 0):
        raise _DamageError(f"{split}_labels, {split}_rows: expected labels of {k} classes and rows from 0 on")
    if not (np.isfinite(logits).all() and np.isfinite(largest).all()):
        raise _DamageError(f"{split}_logits: not finite")
    return Answers(rows, labels, logits, largest)


def _unpacked(name: str, arrays: Mapping[str, npt.NDArray[Any]], rows: int, images: int) -> Bits:
    packed, shape = arrays[name], (rows, -(-images // 8))
    if packed.dtype != np.uint8 or packed.shape != shape:
        raise _DamageError(f"{name}: expected uint8 of shape {shape}, found {packed.dtype} of {packed.shape}")
    return np.unpackbits(packed, axis=1, count=images).astype(np.bool_)


def _prove(path: Path, predictions: Predictions, result: Result) -> None:
    """The bits give the accuracies of result.json: else one of the two files was edited, hashes and all."""
    labels, classes = predictions.judging.labels, predictions.judging.relative.shape[1]
    recorded, counted = dict[str, float](), dict[str, float]()
    for name, right in predictions.heads.items():
        recorded[f"head {name}"] = result.heads_last_epoch_top1_pct[name]
        counted[f"head {name}"] = by_class(labels, right, classes).top1_pct
    for row, right in zip(result.cohort, predictions.students, strict=True):
        count, name = by_class(labels, right, classes), f"student{row.student}"
        recorded |= {name: row.top1_pct, f"{name}, balanced": row.balanced_accuracy_pct}
        counted |= {name: count.top1_pct, f"{name}, balanced": count.balanced_pct}
        recorded |= {"the largest class": result.largest_class_pct, "the smallest class": result.smallest_class_pct}
        counted |= {"the largest class": count.largest_pct, "the smallest class": count.smallest_pct}
    for name, value in counted.items():
        if value != recorded[name]:
            raise CheckFailed(
                "predictions",
                f"{path}: {name} has {value} % of the images, result.json says {recorded[name]} %",
                hint=_HINT,
            )
