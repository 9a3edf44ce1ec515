"""The tables of `okdc new` and `okdc check`: a folder, and a recipe that was tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from okdc.cli import console
from okdc.units import duration

if TYPE_CHECKING:
    from okdc.survey.folder import Folder

MOST = 12  # classes that are shown, of more the largest and the smallest
NAMED = 3  # pairs of files that are named


def folder(seen: Folder) -> None:
    """Images by class and split, their sizes, then what may be wrong with them."""
    count_table(seen.classes, seen.counts)
    sides, count = seen.shorter_sides, len(seen.listing.files)
    if seen.one_size:
        size = f"{seen.one_size}×{seen.one_size} pixels each"
    elif sides[0] == sides[-1]:
        size = f"shorter sides of {sides[0]:,} pixels"
    else:
        size = f"shorter sides of {sides[0]:,} to {sides[-1]:,} pixels, half of them up to {seen.shorter_side:,}"
    sample = f" (of a sample of {len(seen.headers):,})" if len(seen.headers) < count else ""
    console.out(f"{count:,} images in {len(seen.classes)} classes, {'grey, ' if seen.grey else ''}{size}{sample}")
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


def checked(report: dict[str, Any]) -> None:
    """Images, networks, memory and time of a recipe, then what looks wrong."""
    splits = list(report["images"])
    count_table(
        [row["class"] for row in report["classes"]],
        {split: tuple(row[split] for row in report["classes"]) for split in splits},
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in report["images"].items())
    console.out(f"{counts} images of {report['image_size']}×{report['image_size']} pixels")
    if skipped := report["skipped"]:
        console.out(f"{len(skipped):,} damaged images are left out, the first is {skipped[0]}")
    console.out("")
    rows = [
        [f"{row['name']} {row['architecture']}", f"{row['params']:,}", f"{row['macs']:,}"] for row in report["students"]
    ]
    whole = report["training"]
    rows.append([f"training ({report['variant']})", f"{whole['params']:,}", f"{whole['macs']:,}"])
    console.table(["", "params", "MACs"], rows)
    console.out("")
    used = report["memory_bytes"]
    parts = ", ".join(
        f"{_digits(used[name] / 1e6)} MB {name}" for name in ("images", "weights", "gradients", "optimiser", "maps")
    )
    console.out(f"memory of the training: {_digits(used['whole'] / 1e6)} MB ({parts})")
    console.out(f"this check took at most {_digits(used['peak'] / 1e6)} MB, libraries and all")
    seconds = report["seconds"]
    step, epoch, whole_time = (seconds[name] for name in ("step", "epoch", "whole"))
    epochs = f"{report['epochs']:,} epoch{'s' * (report['epochs'] > 1)}"
    console.out(
        f"{epochs} of {report['steps_per_epoch']:,} steps of {report['batch_size']} images: "
        f"{report['steps']:,} steps of {_digits(1000 * step['median'])} ms "
        f"({_digits(1000 * step['low'])} to {_digits(1000 * step['high'])}, n = {step['n']})"
    )
    console.out(
        f"an epoch takes {duration(epoch['median'])}, of which validation {duration(seconds['validation'])} and the "
        f"checkpoint {duration(seconds['saving'])}"
    )
    for i, part in enumerate(seconds["earlier"]):
        which = "next" if i else "first"
        epochs = f"{part['epochs']:,} epochs" if part["epochs"] > 1 else "epoch"
        console.out(f"a step of the {which} {epochs} takes {_digits(1000 * part['step']['median'])} ms")
    at_most = "at most " if report["patience"] else ""
    console.out(
        f"to the end: {at_most}about {duration(whole_time['median'])} ({duration(whole_time['low'])} to "
        f"{duration(whole_time['high'])})"
    )
    for line in report["warnings"]:
        console.warn(line)


def _digits(value: float) -> str:
    """Two digits at least."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"
