"""The kept student's answers to the judging images: confused classes, recall by class, what it is most wrong about.

Shapes: N images, K classes. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.reporting.calibration import softmax
from okdc.runs.accuracy import interval_pct
from okdc.runs.predictions import Answers, Bits

MOST_CLASSES = 100  # of a matrix: beyond that a cell is smaller than a pixel
MOST_PAIRS = 20
ALIKE_FROM = 20  # classes from which on the matrix puts those next to each other that are confused

Counts = npt.NDArray[np.int64]


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
    k = answers.relative.shape[1]
    counts: Counts = np.bincount(answers.labels * k + _answer(answers, right), minlength=k * k)
    return counts.reshape(k, k)


def _answer(answers: Answers, right: Bits) -> npt.NDArray[np.int64]:
    """N: the likeliest class; of several that float16 made equal, the label where `right`, else another one."""
    logits = answers.logits
    chosen: npt.NDArray[np.int64] = logits.argmax(1)
    for i in np.flatnonzero((chosen == answers.labels) != right):
        others = logits[i].copy()
        others[answers.labels[i]] = -np.inf
        chosen[i] = answers.labels[i] if right[i] else others.argmax()
    return chosen


def by_class(counts: Counts, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row a class: images, recall with its interval, precision, and what it is most often taken for."""
    rows = []
    for k, name in enumerate(classes):
        images, answered, hits = int(counts[k].sum()), int(counts[:, k].sum()), int(counts[k, k])
        wrong = counts[k].copy()
        wrong[k] = 0
        recall = round(100 * hits / images, 4) if images else None
        rows.append(
            {
                "class": name,
                "images": images,
                "right": hits,
                "recall_pct": recall,
                "interval_pct": None if recall is None else interval_pct(recall, images),
                "precision_pct": round(100 * hits / answered, 4) if answered else None,
                "taken_for": classes[int(wrong.argmax())] if wrong.any() else None,
            }
        )
    return rows


def pairs(counts: Counts, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The classes that are most often taken for another one, the most frequent mistake first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    k = len(classes)
    return [
        {"class": classes[i // k], "taken_for": classes[i % k], "images": int(wrong.flat[i])}
        for i in map(int, order)
        if wrong.flat[i]
    ]


def shown_order(counts: Counts) -> list[int]:
    """The classes of the matrix in the order of its rows: all of a few in their own, of many the confused ones near.

    Of more than MOST_CLASSES those with the most mistakes, as label or as answer.
    """
    k = len(counts)
    if k < ALIKE_FROM:
        return list(range(k))
    wrong = counts - np.diag(np.diag(counts))
    mistakes = wrong.sum(0) + wrong.sum(1)
    some = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])
    return [int(some[i]) for i in _alike(wrong[np.ix_(some, some)])]


def _alike(wrong: Counts) -> npt.NDArray[np.int64]:
    """An order in which classes that are taken for each other are neighbours (hierarchical clustering's leaves)."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    both = (wrong + wrong.T).astype(np.float64)
    share = both / max(1.0, both.max())
    distances = 1 - share[np.triu_indices(len(wrong), 1)]
    order: npt.NDArray[np.int64] = leaves_list(linkage(distances, "average", optimal_ordering=True))
    return order


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
