"""Which image file is of which class, in which split: `root/<split>/<class>/*` or `root/<class>/*`. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from okdc.data.images import EXTENSIONS
from okdc.data.paths import Paths
from okdc.errors import DataError, nearest

_TREE = "root/<split>/<class>/*.{png,jpg,jpeg,bmp,webp} with the splits train, valid|val, test; or root/<class>/*"


@dataclass
class Listing:
    """The images of a folder: files in a fixed order, their classes and their splits."""

    root: Path
    classes: tuple[str, ...]
    files: Paths
    labels: list[int] = field(default_factory=list)
    splits: dict[str, range] = field(default_factory=dict)  # train, val, test, or "all" for one folder of classes
    notes: list[str] = field(default_factory=list)


def list_images(root: Path) -> Listing:
    """List `root/<split>/<class>/*` or `root/<class>/*`. The class map comes from train, by name.

    Raises DataError for a missing folder, an empty class, fewer than two classes, a class that train lacks.
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links: the user's own path stays readable)
    if not root.is_dir():
        kind = "a file" if root.exists() else "nothing"
        raise DataError(f"data.root: expected a folder of images at {root}, found {kind}", hint=f"expected: {_TREE}")
    folders = {f.name: f for f in _folders(root)}
    if "train" not in folders:
        stray = sorted({"valid", "val", "test"} & set(folders))
        if stray:
            raise DataError(f"{root}: expected a folder train beside {', '.join(stray)}, found none", hint=_TREE)
        return _list(root, {"all": root})
    if {"valid", "val"} <= set(folders):
        raise DataError(f"{root}: both valid and val are there; one validation split is expected")
    names = {"train": "train", "valid": "val", "val": "val", "test": "test"}
    splits = {names[name]: folders[name] for name in names if name in folders}
    listing = _list(root, splits)
    for name in sorted(set(folders) - set(names)):
        listing.notes.append(f"{root / name} is not read{nearest(name, names)}; the splits are train, valid|val, test")
    return listing


def class_names(root: Path) -> tuple[str, ...]:
    """The classes that `list_images` would list, from the folders alone. Raises DataError for fewer than two."""
    first = root / "train" if (root / "train").is_dir() else root
    names = tuple(folder.name for folder in _folders(first)) if first.is_dir() else ()
    if len(names) < 2:
        raise DataError(f"{first}: expected at least two class folders, found {len(names)}", hint=f"expected: {_TREE}")
    return names


def _folders(folder: Path) -> list[Path]:
    """Sub-folders by name. Hidden ones (.ipynb_checkpoints, .git) are no classes."""
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """The names of the images in a folder; making Path objects would take most of the time of a listing."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(EXTENSIONS) and not e.name.startswith("."))


def _list(root: Path, splits: dict[str, Path]) -> Listing:
    first = next(iter(splits.values()))
    listing, paths = Listing(root, tuple(f.name for f in _folders(first)), Paths(root, ())), list[bytes]()
    if len(listing.classes) < 2:
        loose = len(_images(first))
        raise DataError(
            f"{first}: expected at least two class folders, found {len(listing.classes)}"
            + (f" ({listing.classes[0]})" if listing.classes else "")
            + (f" and {loose} loose images" if loose else ""),
            hint=f"expected: {_TREE}",
        )
    empty: list[str] = []
    for split, folder in splits.items():
        names = [f.name for f in _folders(folder)]
        unknown = [name for name in names if name not in listing.classes]
        if unknown:
            raise DataError(
                f"{folder}: class {unknown[0]!r} is not in {first}{nearest(unknown[0], listing.classes)}",
                hint="every split has the classes of train, by name",
                details=[str(folder / name) for name in unknown],
            )
        start = len(paths)
        for label, name in enumerate(listing.classes):
            files = _images(folder / name) if name in names else []
            inside = os.fsencode((folder / name).relative_to(root)) + b"/"
            paths += [inside + os.fsencode(file) for file in files]
            listing.labels += [label] * len(files)
            if not files and folder is first:
                empty.append(str(folder / name))
            elif not files:
                listing.notes.append(f"{folder / name}: no images of this class in {split}")
        listing.splits[split] = range(start, len(paths))
        if loose := len(_images(folder)):
            listing.notes.append(f"{folder}: {loose} images outside any class folder are not read")
        if len(listing.splits[split]) == 0 and folder is not first:
            beside = f" ({loose:,} lie beside them)" if loose else ""
            raise DataError(f"{folder}: expected images in its class folders, found none{beside}", hint=_TREE)
    if empty:
        raise DataError(
            f"{len(empty)} of {len(listing.classes)} classes have no images, the first is {empty[0]}",
            hint="remove the folder, or put " + ", ".join(EXTENSIONS) + f" files in it; expected: {_TREE}",
            details=empty,
        )
    listing.files = Paths(root, paths)
    return listing
