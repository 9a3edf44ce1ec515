"""The kept student's answers to the judging images: confused classes, recall by class, what it is most wrong about.

Shapes: N images, K classes. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.runs.accuracy import interval_pct
from okdc.runs.mistakes import Counts

MOST_CLASSES = 100  # of a matrix: beyond that a cell is smaller than a pixel
ALIKE_FROM = 20  # classes from which on the matrix puts those next to each other that are confused


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
