"""Which files below a folder are images: the one rule of training, `okdc verify`, `evaluate` and `predict`. No torch.

All regular files, sub-folders included, whose names end as `okdc.data.images.endings` and do not begin with a dot, in
the order of torchvision's ImageFolder. Links are followed, and a folder that several lead to is read once. What is left
out is counted by its reason, so that somebody can be told.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from okdc.data import files
from okdc.data.images import ENDINGS, FOREIGN, endings
from okdc.errors import DataError

NAMED = 6  # reasons that a note names


@dataclass
class LeftOut:
    """What lies in folders of images and is not read, counted by its reason."""

    images: Counter[str] = field(default_factory=Counter)  # by ending: images in a format without a reader here
    others: Counter[str] = field(default_factory=Counter)
    first: str = ""  # the path of the first of `images`

    @property
    def total(self) -> int:
        return self.images.total() + self.others.total()

    def add(self, folder: str, name: str, ending: str) -> None:
        """A file whose ending is none of `endings()`."""
        if ending in FOREIGN or ending in ENDINGS:
            self.images[ending] += 1
            self.first = self.first or os.path.join(folder, name)  # noqa: PTH118
        else:
            self.others[ending if 1 < len(ending) <= 10 else "without an ending"] += 1

    def note(self) -> str | None:
        """One sentence, images first; None where nothing is left out."""
        if not self.total:
            return None
        counts = [f"{count:,} {ending} (no reader: convert them)" for ending, count in _ordered(self.images)]
        counts += [f"{count:,} {reason}" for reason, count in _ordered(self.others)]
        more = len(counts) - NAMED
        words = ", ".join(counts[:NAMED]) + (f" and {more} other kinds" if more > 0 else "")
        first = f"; the first image without a reader is {self.first}" if self.first else ""
        return f"{self.total:,} file{'s are' if self.total > 1 else ' is'} not read: {words}{first}"


def _ordered(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


@contextmanager
def listing_of(folder: str | Path) -> Iterator[None]:
    """Turns the system's refusal to list a folder into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be listed: {error.strerror or error}",
            hint="nothing is trained or answered on a part of the images",
        ) from None


@dataclass
class Inside:
    """What lies directly in a folder, sorted by name."""

    images: list[str]
    folders: list[str]  # without those that a link leads to
    links: list[str]  # to folders
    lost: list[str]  # links that lead nowhere and have no ending: each was a folder once


def inside(folder: str, left_out: LeftOut) -> Inside:
    """Raises DataError for a folder that cannot be listed."""
    found, known = Inside([], [], [], []), endings()
    with listing_of(folder), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name, kind = entry.name, _kind(entry)
            if name.startswith("."):
                left_out.others["hidden"] += 1
            elif kind == "folder":
                (found.links if entry.is_symlink() else found.folders).append(name)
            elif kind != "file":
                left_out.others[kind] += 1
            elif (ending := _ending(name)) in known:
                found.images.append(name)
            elif not ending and entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                found.lost.append(name)
            else:
                left_out.add(folder, name, ending)
    return found


def _ending(name: str) -> str:
    """From the last dot on, in small letters; without a dot the name itself, which is no ending."""
    return name[name.rfind(".") :].lower() if "." in name else ""


def _kind(entry: os.DirEntry[str]) -> str:
    """As `files.kind_of`. A link that leads nowhere is a file: reading it says why it is none."""
    try:
        if entry.is_file():
            return "file"
        return "folder" if entry.is_dir() else files.kind_of(entry.stat().st_mode)
    except OSError:
        return "file"


def images_below(folder: str, left_out: LeftOut) -> list[str]:
    """The images in a folder and in all folders below it, relative to it, in torchvision's order.

    Raises DataError for a folder that cannot be listed, and for a path too long to be opened.
    """
    listed: list[tuple[str, list[str]]] = []  # a folder relative to `folder`, and the names of its images
    ahead, links, seen = [""], list[str](), set[object]()
    while ahead or links:
        # Real folders first: a link to one of them is then the second way to it, and not the first.
        relative = ahead.pop() if ahead else links.pop()
        path = os.path.join(folder, relative) if relative else folder  # noqa: PTH118
        with listing_of(path):
            identity = _identity(path)
        if identity in seen:
            left_out.others["folder that is read under another name"] += 1
            continue
        seen.add(identity)
        found = inside(path, left_out)
        if found.lost:
            raise DataError(f"{os.path.join(path, found.lost[0])}: the link leads nowhere", hint="mend or remove it")  # noqa: PTH118
        listed.append((relative, found.images))
        prefix = f"{relative}/" if relative else ""
        ahead += [prefix + name for name in reversed(found.folders)]
        links = sorted([*links, *(prefix + name for name in found.links)], reverse=True)
    listed.sort()
    return [f"{relative}/{name}" if relative else name for relative, names in listed for name in names]


def _identity(folder: str) -> object:
    """What two paths to one folder have in common."""
    status = os.stat(folder)  # noqa: PTH116
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)  # some systems number none


def listed(paths: Sequence[Path]) -> tuple[list[Path], LeftOut]:
    """The files that are named, whatever their names, and of each folder all images below it, by name."""
    named, left_out = list[Path](), LeftOut()
    for path in paths:
        below = images_below(str(path), left_out) if path.is_dir() else None
        named += [path] if below is None else [path / name for name in below]
    return named, left_out
