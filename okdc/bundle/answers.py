"""answers.json: which classes a model takes for which, and the confidence below which it is not sure. No torch.

A client that may say "not sure" classifies selectively: it answers an image where the confidence is at least a
threshold. The confidence is the largest probability, "softmax response" of Y. Geifman and R. El-Yaniv, "Selective
classification for deep neural networks", NeurIPS 2017. Their coverage is the share of images that are answered, their
risk the share of wrong answers among these.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.bundle.artefacts import Answered, Answers, Manifest, NotSure, Reason
from okdc.bundle.layout import FLOAT32
from okdc.errors import CheckFailed
from okdc.runs.accuracy import ByClass

Integers = npt.NDArray[np.int64]
LEAST_WRONG = 10  # wrong answers on validation below which half of them is luck


@dataclass(frozen=True)
class Outcomes:
    """The answers to one set of images."""

    labels: Integers  # N
    answers: Integers  # N
    confidence: npt.NDArray[np.float64]  # N, of each answer, from 1/K to 1

    @classmethod
    def of(cls, labels: Integers, logits: npt.NDArray[Any]) -> Outcomes:
        """`logits`: N×K, finite."""
        if not len(logits):
            return cls(labels, np.empty(0, np.int64), np.empty(0))
        below = logits.astype(np.float64) - logits.max(1, keepdims=True)
        return cls(labels, logits.argmax(1), 1 / np.exp(below).sum(1))

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        wrong: npt.NDArray[np.bool_] = self.answers != self.labels
        return wrong

    def at(self, threshold: float) -> Answered:
        """The counts that a threshold gives."""
        sure = self.confidence >= threshold
        wrong, answered_wrong = int(self.wrong.sum()), int((sure & self.wrong).sum())
        return Answered(images=len(sure), wrong=wrong, answered=int(sure.sum()), answered_wrong=answered_wrong)


def describe(split: str, judging: Outcomes, validation: Outcomes) -> Answers:
    """The whole file of a model's answers to the images that judge it and to those of validation."""
    cells, images = np.unique(np.stack([judging.labels, judging.answers], 1), axis=0, return_counts=True)
    confusions = tuple((int(true), int(answer), int(n)) for (true, answer), n in zip(cells, images, strict=True))
    threshold = threshold_of(validation)
    if isinstance(threshold, str):
        why: dict[str, Any] = {"not_sure": None, "no_threshold": threshold}
    else:
        both = {"validation": validation.at(threshold), "judging": judging.at(threshold)}
        why = {"not_sure": NotSure(threshold=threshold, **both)}
    return Answers(schema=1, split=split, images=len(judging.labels), confusions=confusions, **why)


def threshold_of(validation: Outcomes) -> float | Reason:
    """The lowest confidence of a validation image at which the error of the answered ones is at most half of all's.

    Lowest: so many images are answered as the halved error allows. The error is the one that was counted, without a
    bound: it is optimistic, because the images chose the threshold and, before that, the student. Its value on other
    images is what `NotSure.judging` has. Where fewer than `LEAST_WRONG` answers are wrong, or where no threshold
    halves the error, there is none, and the reason is returned.
    """
    if not len(validation.labels):
        return "no validation images"
    wrong = validation.wrong
    if wrong.sum() < LEAST_WRONG:
        return "too few wrong answers"
    order = np.argsort(-validation.confidence, kind="stable")
    confidence, answered = validation.confidence[order], np.arange(1, len(order) + 1)
    halved = 2 * wrong[order].cumsum() * len(order) <= wrong.sum() * answered  # in integers: no rounding decides
    last = np.append(confidence[1:] < confidence[:-1], True)  # equal confidences are answered together or not at all
    places = np.flatnonzero(halved & last)
    return float(confidence[places[-1]]) if len(places) else "confidence does not tell"


def check(answers: Answers, manifest: Manifest, where: str) -> None:
    """Raises CheckFailed ("answers") where the counts contradict each other or the manifest."""
    for problem in _problems(answers, manifest):
        raise CheckFailed("answers", f"{where}: {problem}", hint="it was changed after the export: export it again")


def counts_of(answers: Answers, classes: int) -> ByClass:
    """Images and right answers of each class. Its cells name classes below `classes`."""
    images, right = [0] * classes, [0] * classes
    for true, answer, count in answers.confusions:
        images[true] += count
        right[true] += count if true == answer else 0
    return ByClass(images, right)


def _problems(answers: Answers, manifest: Manifest) -> Iterator[str]:
    classes, stated, model = len(manifest.labels), manifest.accuracy, manifest.models[FLOAT32]
    places = [cell[:2] for cell in answers.confusions]
    if places != sorted(set(places)) or any(max(place) >= classes for place in places):
        yield f"confusions: expected cells of {classes} classes in order, each once"
        return
    total = sum(cell[2] for cell in answers.confusions)
    if not answers.images == total == stated.images or answers.split != stated.split:
        yield f"counts {total:,} {answers.split} images, {stated.images:,} {stated.split} images judged the model"
        return
    counts = counts_of(answers, classes)
    for name, value, expected in (
        ("top-1", counts.top1_pct, model.top1_pct),
        ("balanced accuracy", counts.balanced_pct, model.balanced_accuracy_pct),
        ("the share of the largest class", counts.largest_pct, stated.largest_class_pct),
        ("the share of the smallest class", counts.smallest_pct, stated.smallest_class_pct),
    ):
        if value != expected:
            yield f"confusions: {name} is {value:.4f} %, the manifest says {expected:.4f} %"
    if (answers.not_sure is None) == (answers.no_threshold is None):
        yield "expected not_sure, or the reason why there is no threshold"
    if answers.not_sure:
        yield from _contradictions(answers.not_sure, total, total - sum(counts.right))


def _contradictions(not_sure: NotSure, images: int, wrong: int) -> Iterator[str]:
    for name, count in (("validation", not_sure.validation), ("judging", not_sure.judging)):
        if not (count.answered_wrong <= count.wrong and count.answered_wrong <= count.answered <= count.images):
            yield f"not_sure.{name}: more are answered than there are"
        elif count.wrong - count.answered_wrong > count.images - count.answered:
            yield f"not_sure.{name}: fewer images are left out than wrong answers"
    chosen, judged = not_sure.validation, not_sure.judging
    halved = 2 * chosen.answered_wrong * chosen.images <= chosen.wrong * chosen.answered
    if not (halved and chosen.answered and chosen.wrong >= LEAST_WRONG):
        yield "not_sure.validation: the threshold does not follow the rule"
    if (judged.images, judged.wrong) != (images, wrong):
        yield f"not_sure.judging: {judged.wrong} of {judged.images} answers are wrong, by the confusions {wrong}"
