"""The tables of `okdc new`: the folder that it has looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from okdc.cli import console

if TYPE_CHECKING:
    from okdc.survey.folder import Folder

MOST = 12  # classes that are shown, of more the largest and the smallest
NAMED = 3  # pairs of files that are named


def folder(seen: Folder) -> None:
    """Images by class and split, their sizes, then what may be wrong with them."""
    count_table(seen.classes, seen.counts)
    sides, count = seen.shorter_sides, len(seen.listing.files)
    of = "" if len(seen.headers) >= count else f" of a sample of {len(seen.headers):,}"
    size = (
        f"{seen.one_size}×{seen.one_size} pixels each"
        if seen.one_size
        else (f"shorter sides{of} of {sides[0]:,} to {sides[-1]:,} pixels, half of them up to {seen.shorter_side:,}")
    )
    console.out(f"{count:,} images in {len(seen.classes)} classes, {'grey, ' if seen.grey else ''}{size}")
    for note in seen.listing.notes:
        console.note(note)
    if seen.damaged:
        several = len(seen.damaged) > 1
        count_text = f"{len(seen.damaged):,} files are no images and are" if several else "1 file is no image and is"
        console.warn(f"{count_text} left out; the first is {seen.damaged[0]}")
    alike = seen.alike()
    for where, words in (
        ("splits", "in two splits: what is judged by them is known already"),
        ("classes", "in two classes: one of the labels is wrong"),
        ("class", "twice in one class"),
    ):
        if groups := alike[where]:
            pairs = "; ".join(" = ".join(map(seen.name, rows[:2])) for rows in groups[:NAMED])
            more = f" and {len(groups) - NAMED:,} more" if len(groups) > NAMED else ""
            console.warn(f"the same file {words} ({len(groups):,} times): {pairs}{more}")


def count_table(classes: Sequence[str], counts: dict[str, tuple[int, ...]]) -> None:
    """Images of each class in each split; of many classes the largest and the smallest."""
    splits = [name for name, of_class in counts.items() if sum(of_class)]
    rows = [(name, [counts[split][i] for split in splits]) for i, name in enumerate(classes)]
    if len(rows) > MOST:
        rows.sort(key=lambda row: -sum(row[1]))
        left, half = len(rows) - MOST, MOST // 2
        rows = [*rows[:half], (f"... {left:,} classes between", []), *rows[-half:]]
    header = ["images" if split == "all" else split for split in splits]
    console.table(
        ["class", *header], [[name, *(f"{n:,}" for n in of), *([""] * (len(splits) - len(of)))] for name, of in rows]
    )
