"""Which image file is of which class, in which split: `root/<split>/<class>/**` or `root/<class>/**`. No torch.

A split is a folder train|training, val|valid|validation or test|testing, in any case. What lies in a class folder, at
any depth, is of that class (`okdc.data.walk`).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from okdc.data.images import endings
from okdc.data.paths import Paths, legible
from okdc.data.walk import LeftOut, images_below, inside
from okdc.errors import DataError, nearest

_TREE = (
    "root/<split>/<class>/* with the splits train, val, test (in words like training or Valid, too); or root/<class>/*"
)
_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# A class may be called so. Only where the folders also hold the same sub-folders, each of them, are they no classes.
_LIKE_A_SPLIT = re.compile(r"(train|test|val|dev|eval|fold|split|part|holdout)", re.IGNORECASE)


class ClassesBelowError(DataError):
    """The class folders lie one folder lower than was said."""

    below: Path


@dataclass
class Listing:
    """The images of a folder: files in a fixed order, their classes and their splits."""

    root: Path
    classes: tuple[str, ...]
    files: Paths
    labels: list[int] = field(default_factory=list)
    splits: dict[str, range] = field(default_factory=dict)  # train, val, test, or "all" for one folder of classes
    notes: list[str] = field(default_factory=list)

    def without(self, damaged: Mapping[int, str]) -> Listing:
        """The listing without some rows; the reason of each becomes part of an error, where no image is left.

        Raises DataError where a split or a class of the first split has no image left.
        """
        kept = [row for row in range(len(self.files)) if row not in damaged]
        splits, notes, start = dict[str, range](), list(self.notes), 0
        for split, rows in self.splits.items():
            gone = Counter(self.labels[row] for row in rows if row in damaged)
            left = Counter(self.labels[row] for row in rows if row not in damaged)
            emptied = [self.classes[label] for label in sorted(gone) if not left[label]]
            lines = [f"{self.files[row]}: {damaged[row]}" for row in rows if row in damaged]
            if not left or (emptied and not splits):
                words = f"of class {emptied[0]!r}" if left else "at all"
                raise DataError(
                    f"no image {words} is left in {split}: {len(lines)} of {len(rows)} are damaged, the first is "
                    f"{lines[0]}",
                    hint="restore these files",
                    details=lines,
                )
            notes += [f"all images of class {name!r} in {split} are damaged" for name in emptied]
            splits[split] = range(start, start + left.total())
            start += left.total()
        labels = [self.labels[row] for row in kept]
        return replace(self, files=self.files.take(kept), labels=labels, splits=splits, notes=notes)


@dataclass
class _Tree:
    """The folders of a root: each split with its class folders."""

    splits: dict[str, Path]
    classes: dict[str, dict[str, Path]]  # of each split: the class, as train spells it, to the folder
    notes: list[str]


def list_images(root: Path) -> Listing:
    """List a tree of images. The class map comes from train, by name.

    Raises DataError for a missing folder, an empty class, fewer than two classes, a class that train lacks, two folders
    for one split or class, a name that is no text, a folder that cannot be listed.
    """
    relative = "" if root.is_absolute() else "; it is relative to the folder in which okdc is called"
    root = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links: the user's own path stays readable)
    if not os.path.isdir(root):  # noqa: PTH112  (Path.is_dir() raises for a path that is too long)
        kind = "a file" if os.path.exists(root) else "nothing"  # noqa: PTH110
        raise DataError(
            f"data.root: expected a folder of images at {_text(root)}, found {kind}{relative}", hint=_expected()
        )
    return _list(root, _tree(root))


def class_names(root: Path) -> tuple[str, ...]:
    """The classes that `list_images` would list, from the folders alone. Raises DataError where it would."""
    if not os.path.isdir(root):  # noqa: PTH112
        raise DataError(f"{_text(root)}: expected a folder of class folders", hint=_expected())
    tree = _tree(root)
    return tuple(tree.classes[next(iter(tree.splits))])


def _expected() -> str:
    return f"expected: {_TREE}"


def _text(name: object) -> str:
    """A path or a name in a message; one that is no UTF-8 with its bytes escaped."""
    return legible(os.fsencode(str(name)))


# ---------------------------------------------------------------------------------------------------------------------
# Folders: which are splits, which are classes


def _folders(folder: Path) -> list[str]:
    """Sub-folders by name. Hidden ones (.ipynb_checkpoints, .git) are no classes.

    Raises DataError for a link to nothing without an image's ending: it was a folder on another machine.
    """
    found = inside(str(folder), LeftOut())
    if found.lost:
        raise DataError(f"{_text(folder / found.lost[0])}: the link leads nowhere", hint="mend or remove it")
    return sorted([*found.folders, *found.links])


def _tree(root: Path) -> _Tree:
    folders = _folders(root)
    named: dict[str, list[str]] = {}
    for name in folders:
        if split := _NAMES.get(name.strip().casefold()):
            named.setdefault(split, []).append(name)
    others = [name for name in folders if name.strip().casefold() not in _NAMES]
    if not named or _are_classes(root, named, others):
        notes = (
            []
            if not named
            else [
                f"{_text(root / n)} is read as a class, not as a split: it holds images and no folders of classes"
                for names in named.values()
                for n in names
            ]
        )
        return _classes_of({"all": root}, notes)
    twice = next((names for names in named.values() if len(names) > 1), None)
    if twice:
        raise DataError(
            f"{_text(root)}: {' and '.join(map(_text, twice))} are both there, and both name one split",
            hint="merge them, or rename one",
        )
    if "train" not in named:
        stray = sorted(_text(names[0]) for names in named.values())
        raise DataError(
            f"{_text(root)}: expected a folder train beside {', '.join(stray)}, found none",
            hint=f"{_expected()}; if {' or '.join(stray)} is a class, put all class folders into one folder train",
        )
    tree = _classes_of({split: root / named[split][0] for split in ("train", "val", "test") if split in named}, [])
    tree.notes += _beside(root, tree, others)
    return tree


def _are_classes(root: Path, named: Mapping[str, Sequence[str]], others: Sequence[str]) -> bool:
    """Whether folders with the names of splits are classes like their neighbours: a railway's "train", "bus", "car".

    Only a train that holds images and no folders, beside other folders of images, is. Raises DataError where both may
    be meant: images of a test set without classes often lie in a folder test.
    """
    if not others:
        return False
    looks = {name: inside(str(root / name), LeftOut()) for names in named.values() for name in names}
    if not all(look.images and not look.folders and not look.links for look in looks.values()):
        return False
    neighbours = [name for name in others if inside(str(root / name), LeftOut()).images]
    if not neighbours:
        return False
    if set(named) == {"train"} and len(looks) == 1:
        return True
    first = next(name for split, names in named.items() if split != "train" for name in names)
    raise DataError(
        f"{_text(root / first)}: a class, or images without a class? It holds images and no folders of classes, as "
        f"{_text(root / neighbours[0])} beside it does",
        hint="move it away, or, if it is a class, put all class folders into one folder train",
    )


def _beside(root: Path, tree: _Tree, others: Sequence[str]) -> list[str]:
    """A note on each folder beside the splits. Raises DataError where these look like classes, and train like one."""
    notes, like_train = [], []
    sub_folders = set(_folders(tree.splits["train"]))
    for name in others:
        look = inside(str(root / name), LeftOut())
        count = len(images_below(str(root / name), LeftOut()))
        if look.images or (sub_folders and sub_folders == {*look.folders, *look.links}):
            like_train.append(name)
        images = f" ({count:,} images)" if count else ""
        notes.append(
            f"{_text(root / name)} is not read{images}{nearest(name, _NAMES)}; the splits are train, val|valid, test"
        )
    if len(like_train) > 1 and set(tree.splits) == {"train"}:
        raise DataError(
            f"{_text(root)}: is {_text(tree.splits['train'].name)} a split, or a class as "
            f"{', '.join(map(_text, like_train[:3]))} beside it?",
            hint="a split: move the other folders away; a class: put all class folders into one folder train",
            details=notes,
        )
    return notes


def _classes_of(splits: dict[str, Path], notes: list[str]) -> _Tree:
    """The class folders of each split, by the names that the first one has."""
    first, folder = next(iter(splits.items()))
    names = _folders(folder)
    for name in names:
        _check_name(folder, name)
    if len(names) < 2:
        loose = len(inside(str(folder), LeftOut()).images)
        deeper = folder / names[0] if names and first == "all" and _folders(folder / names[0]) else None
        problem = (
            f"{_text(folder)}: expected at least two class folders, found {len(names)}"
            + (f" ({_text(names[0])})" if names else "")
            + (f" and {loose} loose images" if loose else "")
        )
        if deeper is None:
            raise DataError(problem, hint=_expected())
        error = ClassesBelowError(problem, hint=f"is data.root={_text(deeper)} meant? {_expected()}")
        error.below = deeper
        raise error
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(_spelt(name), name)) != name:
            raise DataError(
                f"{folder}: two class folders look alike, {other!a} and {name!a}",
                hint="merge them, or rename one",
            )
    if first == "all":
        _check_no_splits(folder, names)
    tree = _Tree(splits, {first: {name: folder / name for name in names}}, notes)
    for split, further in list(splits.items())[1:]:
        tree.classes[split] = _matched(further, folder, names, tree.notes)
    return tree


def _check_name(folder: Path, name: str) -> None:
    """Raises DataError for a name that no JSON, TOML or ONNX file can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{_text(folder / name)}: the name of a class folder is not UTF-8",
            hint="rename it; `convmv -f latin1 -t utf8 --notest` does so for many",
        ) from None


def _check_no_splits(root: Path, names: Sequence[str]) -> None:
    """Raises DataError for fold1/cat, fold1/dog, fold2/cat, fold2/dog: every image would be read, as class fold1."""
    if not any(_LIKE_A_SPLIT.match(name) for name in names):
        return
    looks = [inside(str(root / name), LeftOut()) for name in names]
    below = [{*look.folders, *look.links} for look in looks]
    if not any(look.images for look in looks) and len(below[0]) > 1 and all(names == below[0] for names in below):
        raise DataError(
            f"{_text(root)}: {', '.join(map(_text, names[:3]))} look like splits, not like classes: each holds the "
            f"folders {', '.join(map(_text, sorted(below[0])[:3]))}",
            hint=f"{_expected()}; if they are classes, put all of them into one folder train",
        )


def _spelt(name: str) -> str:
    """A name by what is read of it: systems differ in how they write an é, and archives in spaces at the end."""
    return unicodedata.normalize("NFC", name).strip()


def _matched(folder: Path, first: Path, classes: Sequence[str], notes: list[str]) -> dict[str, Path]:
    """The class folders of a further split, under the names that the first split has.

    A name that differs in case, in spaces around it or in its Unicode form alone is the same class, and a note says
    so. Raises DataError for any other name, and for two folders of one class.
    """
    loosely: dict[str, list[str]] = {}
    for name in classes:
        loosely.setdefault(_spelt(name).casefold(), []).append(name)
    matched: dict[str, Path] = {}
    unknown = []
    for name in _folders(folder):
        like = [name] if name in classes else loosely.get(_spelt(name).casefold(), [])
        like = [c for c in like if _spelt(c) == _spelt(name)] or like
        if len(like) != 1:
            unknown.append(name)
            continue
        if like[0] in matched:
            both = " and ".join(ascii(n) for n in sorted((matched[like[0]].name, name)))
            raise DataError(f"{_text(folder)}: {both} are both folders of class {like[0]!r}", hint="merge them")
        matched[like[0]] = folder / name
        if like[0] != name:
            notes.append(f"{_text(folder)}: folder {name!a} is read as class {like[0]!a} of {_text(first)}")
    if unknown:
        raise DataError(
            f"{_text(folder)}: class {_text(unknown[0])!r} is not in {_text(first)}{nearest(unknown[0], classes)}",
            hint="every split has the classes of train, by name",
            details=[_text(folder / name) for name in unknown],
        )
    return matched


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _list(root: Path, tree: _Tree) -> Listing:
    first = next(iter(tree.splits))
    classes = tuple(tree.classes[first])
    listing, paths = Listing(root, classes, Paths(root, ())), list[bytes]()
    left_out, deep, sub_folders = LeftOut(), 0, Counter[str]()
    empty: list[str] = []
    for split, folder in tree.splits.items():
        start = len(paths)
        for label, name in enumerate(classes):
            of_class = tree.classes[split].get(name)
            files = images_below(str(of_class), left_out) if of_class else []
            prefix = os.fsencode(of_class.relative_to(root)) + b"/" if of_class else b""
            paths += [prefix + os.fsencode(file) for file in files]
            listing.labels += [label] * len(files)
            tops = [file.partition("/")[0] for file in files if "/" in file]
            deep += len(tops)
            sub_folders.update(set(tops))
            if not files and split == first:
                empty.append(_text(folder / name))
            elif not files:
                listing.notes.append(f"{_text(folder / name)}: no images of this class in {split}")
        listing.splits[split] = range(start, len(paths))
        loose = len(inside(str(folder), LeftOut()).images)
        if loose:
            listing.notes.append(f"{_text(folder)}: {loose} images outside any class folder are not read")
        if len(listing.splits[split]) == 0 and split != first:
            beside = f" ({loose:,} lie beside them)" if loose else ""
            way_out = "images without a class judge no answer: move them away, or into class folders; " if loose else ""
            raise DataError(
                f"{_text(folder)}: expected images in its class folders, found none{beside}",
                hint=way_out + _expected(),
                details=[note] if (note := left_out.note()) else [],
            )
    note = left_out.note()
    if empty:
        raise DataError(
            f"{len(empty)} of {len(classes)} classes have no images, the first is {empty[0]}",
            hint=f"remove the folder, or put images in it ({', '.join(endings())}); {_expected()}",
            details=[*empty, *([note] if note else [])],
        )
    listing.files = Paths(root, paths)
    if deep:
        names = [_text(name) for name, _ in sorted(sub_folders.items(), key=lambda item: (-item[1], item[0]))]
        listing.notes.append(
            f"{deep:,} of {len(paths):,} images lie in folders inside the class folders ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}) and are of that class"
        )
    listing.notes += [note] if note else []
    listing.notes += tree.notes
    return listing
