"""Where equal images lie: in several splits, of several classes, or of one. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Groups = list[tuple[int, ...]]  # rows of a data set that belong together


def by_place(
    groups: Iterable[Sequence[int]], split: Callable[[int], object], label: Callable[[int], object]
) -> dict[str, Groups]:
    """Groups of rows: those in several "splits", of the others those in several "classes", the rest in one "class"."""
    places: dict[str, Groups] = {"splits": [], "classes": [], "class": []}
    for rows in groups:
        several_splits, several_classes = (len({of(row) for row in rows}) > 1 for of in (split, label))
        places["splits" if several_splits else "classes" if several_classes else "class"].append(tuple(rows))
    return places
