"""The mistakes in a run's answers: which classes are taken for which, and what a student is most wrong about. No torch.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.runs.predictions import Answers, Bits

Counts = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """One image with the student's answer to it."""

    row: int  # in the data set
    label: int
    answer: int
    confidence_pct: float  # of the answer
    label_pct: float  # the probability of the image's own class
    second: int  # the likeliest class but the answer


def confusion(answers: Answers, right: Bits) -> Counts:
    """[label, answer], KxK. Where float16 made two classes one, the bits say whether the answer was right."""
    return matrix(answers.labels, _answer(answers, right), answers.relative.shape[1])


def matrix(labels: npt.NDArray[np.int64], answered: npt.NDArray[np.int64], classes: int) -> Counts:
    """[label, answer], KxK: how many of N images of each class got each answer."""
    return np.bincount(labels * classes + answered, minlength=classes**2).reshape(classes, classes)


def confused(counts: Counts, classes: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The classes that are most often taken for another one, the most frequent mistake first, `most` at most."""
    k, wrong = len(classes), counts - np.diag(np.diag(counts))
    order = map(int, np.argsort(-wrong, axis=None, kind="stable")[:most])
    return [
        {"class": classes[i // k], "taken_for": classes[i % k], "images": int(wrong.flat[i])}
        for i in order
        if wrong.flat[i]
    ]


def _answer(answers: Answers, right: Bits) -> npt.NDArray[np.int64]:
    """N: the likeliest class; of several that float16 made equal, the label where `right`, else another one."""
    logits = answers.logits
    chosen: npt.NDArray[np.int64] = logits.argmax(1)
    for i in np.flatnonzero((chosen == answers.labels) != right):
        others = logits[i].copy()
        others[answers.labels[i]] = -np.inf
        chosen[i] = answers.labels[i] if right[i] else others.argmax()
    return chosen


def extremes(answers: Answers, right: Bits, mistakes: int, hits: int) -> tuple[list[Answered], list[Answered]]:
    """The most confident mistakes, and the right answers that were nearest to a mistake."""
    logits = answers.logits.astype(np.float64)
    probabilities, chosen = softmax(logits), _answer(answers, right)
    every = np.arange(len(chosen))
    confidence = probabilities[every, chosen]
    of_label = probabilities[every, answers.labels]
    logits[every, chosen] = -np.inf
    second = logits.argmax(1)

    def answered(i: int) -> Answered:
        return Answered(
            row=int(answers.rows[i]),
            label=int(answers.labels[i]),
            answer=int(chosen[i]),
            confidence_pct=round(100 * float(confidence[i]), 2),
            label_pct=round(100 * float(of_label[i]), 2),
            second=int(second[i]),
        )

    wrong, correct = np.flatnonzero(~right), np.flatnonzero(right)
    most = wrong[np.argsort(-confidence[wrong], kind="stable")][:mistakes]
    least = correct[np.argsort(confidence[correct], kind="stable")][:hits]
    return [answered(int(i)) for i in most], [answered(int(i)) for i in least]


def softmax(logits: npt.NDArray[np.float64]) -> Probabilities:
    """NK."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: Probabilities = powers / powers.sum(1, keepdims=True)
    return probabilities
