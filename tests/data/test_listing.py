"""Folders as people have them: what is read, in which order, and what is said of all that is not."""

from __future__ import annotations

import errno
import inspect
import os
import random
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import Pixels, ask, picture, write_tree
from PIL import Image
from torchvision.datasets import ImageFolder

from okdc.data import find
from okdc.data.cache import load
from okdc.data.decoding import decode
from okdc.data.images import ENDINGS, endings
from okdc.data.listing import Listing, class_names, list_images
from okdc.data.ondemand import OnDemand
from okdc.data.paths import Paths
from okdc.data.source import Content, Request
from okdc.data.walk import LeftOut, images_below
from okdc.errors import DataError

Captured = pytest.CaptureFixture[str]

TREES = 40  # that are generated; OKDC_TREES tries more


def rows(listing: Listing) -> dict[str, list[tuple[str, str]]]:
    """{split: [(path, class)]}"""
    return {
        split: [(str(listing.files[i].relative_to(listing.root)), listing.classes[listing.labels[i]]) for i in part]
        for split, part in listing.splits.items()
    }


def read(root: Path, skip_damaged: bool = False) -> Content:
    return find("folder").read(Request(str(root), 8, skip_damaged=skip_damaged))


def pixels(content: Content) -> Pixels:
    assert isinstance(content.images, np.ndarray)
    return content.images


# --- generated trees


def grow(folder: Path, draw: random.Random, depth: int, count: Counter[str]) -> list[Path]:
    """Files of all kinds, and folders with more, in `folder`; `count` learns of each what should become of it.

    Returns the places for links that go round in a circle, where torchvision would go forty times.
    """
    circles = []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(draw.randrange(5)):
        ending = draw.choice([*ENDINGS, ".heic", ".svg", ".txt", ".json", ".db", ""])
        ending = draw.choice([str.lower, str.upper])(ending)
        hidden = draw.random() < 0.1
        name = f"{'.' if hidden else ''}{draw.choice(['a', 'ü', 'b c', 'z' * 60])}{i}{ending}"
        (folder / name).touch()
        known = ending.lower() in endings()
        count["hidden" if hidden else "read" if known else (ending.lower() or "without an ending")] += 1
    if draw.random() < 0.3:
        os.mkfifo(folder / "pipe.png")
        count["pipe"] += 1
    if draw.random() < 0.2:
        (folder / "zero.jpg").symlink_to("/dev/zero")
        count["device"] += 1
    if draw.random() < 0.2:
        circles.append(folder / "round")
        count["folder that is read under another name"] += 1
    if draw.random() < 0.2:
        (folder / "gone.png").symlink_to("nowhere")
        count["read"] += 1  # it is an image that is lost, which reading it says
    for k in range(draw.randrange(3) if depth else 0):
        circles += grow(
            folder / draw.choice([f"camera{k}", f"x.png{k}", f"d{k}", "d" + "-1" * k]), draw, depth - 1, count
        )
    return circles


def torchvisions(root: Path) -> list[tuple[str, int]]:
    """What ImageFolder reads, without what okdc leaves out on purpose."""

    def is_one(path: str) -> bool:
        parts = Path(path).relative_to(root).parts
        hidden = any(part.startswith(".") for part in parts)
        regular = Path(path).is_file() or not Path(path).exists()
        return not hidden and regular and path.lower().endswith(endings())

    folder = ImageFolder(str(root), is_valid_file=is_one, allow_empty=True)
    return [(os.path.relpath(path, root), label) for path, label in folder.samples]


def test_generated_trees_are_read_as_torchvision_reads_them_and_all_the_rest_is_counted() -> None:
    for seed in range(int(os.environ.get("OKDC_TREES", TREES))):
        draw, count = random.Random(seed), Counter[str]()
        root = Path("trees", str(seed)).absolute()
        circles = []
        for name in ("bus", "car", "rail way"):
            circles += grow(root / name, draw, 3, count)
            (root / name / "one.png").touch()
            count["read"] += 1
        theirs = torchvisions(root)
        for link in circles:
            link.symlink_to(".")
        listing = list_images(root)
        mine = list(zip((path for path, _ in rows(listing)["all"]), listing.labels, strict=True))
        assert mine == theirs, seed
        assert len(mine) == count.pop("read"), seed
        left_out = LeftOut()
        for name in listing.classes:
            images_below(str(root / name), left_out)
        assert left_out.images + left_out.others == count, seed
        notes = [note for note in listing.notes if "not read" in note]
        assert len(notes) == bool(count), seed
        assert all(note.startswith(f"{count.total():,} file") for note in notes), seed
        shutil.rmtree(root)


@pytest.mark.parametrize("ending", endings())
def test_every_ending_that_is_listed_is_read(ending: str) -> None:
    root = write_tree(Path("root"), {"a": 1, "b": 1})
    saved = root / f"a/photo{ending.upper()}"
    Image.fromarray(picture(3, 16)).save(saved, ENDINGS[ending])
    content = read(root)
    assert len(content.labels) == 3
    assert pixels(content)[1].std() > 1


@pytest.mark.parametrize(("ending", "frames"), [(".gif", 3), (".tif", 3), (".png", 2), (".webp", 3)])
def test_of_several_frames_the_first_is_read(ending: str, frames: int) -> None:
    root = write_tree(Path("root"), {"a": 1, "b": 1})
    made = [Image.new("RGB", (8, 8), (250 - 100 * i, 0, 0)) for i in range(frames)]
    more: dict[str, Any] = {"lossless": True} if ending == ".webp" else {}
    made[0].save(root / f"a/moving{ending}", save_all=True, append_images=made[1:], **more)
    assert pixels(read(root))[1][0, 0].tolist() == [250, 0, 0]


def test_images_without_a_reader_are_named_first_and_with_a_path() -> None:
    root = write_tree(Path("root"), {"train": {"a": 2, "b": 2}})
    for name in ("a/1.HEIC", "a/2.heic", "b/3.jxl", "b/labels.txt", "b/labels2.txt", "b/labels3.txt"):
        (root / "train" / name).touch()
    (note,) = list_images(root).notes
    assert note.index("2 .heic") < note.index("1 .jxl") < note.index("3 .txt")
    assert note.startswith("6 files")
    assert str(root / "train/a/1.HEIC") in note


def test_a_class_of_images_without_a_reader_is_an_error_that_counts_them() -> None:
    root = write_tree(Path("root"), {"a": 2, "b": 0})
    (root / "b/1.heic").touch()
    with pytest.raises(DataError, match="1 of 2 classes have no images") as caught:
        list_images(root)
    assert any("1 .heic" in line for line in caught.value.details)


def test_a_linked_class_and_a_linked_sub_folder_are_followed_and_circles_end() -> None:
    root = write_tree(Path("root"), {"a": 1, "b": 1})
    (root / "b/inner").mkdir()
    shutil.copy(root / "a/000.png", root / "b/inner/x.png")
    (root / "c").symlink_to("b")
    (root / "b/inner/up").symlink_to("../..")  # which leads down again
    listing = list_images(root)
    assert listing.classes == ("a", "b", "c")
    assert Counter(listing.labels)[1] == Counter(listing.labels)[2] == 3  # its own two, and that of a
    assert len({str(path) for path in listing.files}) == len(listing.files)


def test_a_class_that_is_a_link_to_nothing_is_not_forgotten() -> None:
    root = write_tree(Path("root"), {"a": 1, "b": 1})
    (root / "c").symlink_to("/mnt/not mounted")
    with pytest.raises(DataError, match="root/c: the link leads nowhere"):
        list_images(root)
    (root / "c").unlink()
    (root / "b/camera").symlink_to("/mnt/not mounted")
    with pytest.raises(DataError, match="root/b/camera: the link leads nowhere"):
        list_images(root)


# --- splits and classes by their names

SPLITS = {
    "train": ["train", "Train", "TRAINING", "training "],
    "val": ["val", "valid", "Validation", "VAL"],
    "test": ["test", "Testing"],
}


@pytest.mark.parametrize("train", SPLITS["train"])
@pytest.mark.parametrize("val", SPLITS["val"])
def test_splits_have_their_usual_names_in_any_case(train: str, val: str) -> None:
    for test in SPLITS["test"]:
        root = write_tree(Path(test), {name: {"a": 1, "b": 1} for name in (train, val, test)})
        listing = list_images(root)
        assert {split: len(part) for split, part in listing.splits.items()} == {"train": 2, "val": 2, "test": 2}
        assert listing.notes == []
        assert class_names(root) == ("a", "b")


@pytest.mark.parametrize(("one", "other"), [("train", "Training"), ("Val", "validation"), ("test", "TEST")])
def test_two_folders_for_one_split_are_both_named(one: str, other: str) -> None:
    two = {"a": 1, "b": 1}
    root = write_tree(Path("root"), {"train": two} | {one: two, other: two})
    for listed in (list_images, class_names):
        with pytest.raises(DataError, match="both") as caught:
            listed(root)
        assert one in caught.value.message
        assert other in caught.value.message


IMAGES = {"one": 2, "two": 2}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"train": 2, "bus": 2, "car": 2}, ("bus", "car", "train")),  # said in a note
        ({"test": 2, "bus": 2, "car": 2}, None),
        ({"train": 2, "test": 2, "bus": 2}, None),
        ({"train": IMAGES, "bus": IMAGES, "car": IMAGES}, None),
        ({"train": IMAGES, "bus": 2, "car": 2}, None),
        ({"train": IMAGES, "test": IMAGES, "bus": IMAGES, "car": 2}, ("one", "two")),
        ({"fold1": IMAGES, "fold2": IMAGES}, None),
        ({"training_set": IMAGES, "test_set": IMAGES}, None),
        ({"bus": IMAGES, "car": IMAGES}, ("bus", "car")),
        ({"train": IMAGES, "unlabelled": 3}, ("one", "two")),
    ],
)
def test_classes_and_splits_are_never_taken_for_each_other_in_silence(
    tree: dict[str, dict[str, int] | int], expected: tuple[str, ...] | None
) -> None:
    root = write_tree(Path("root"), tree)
    if expected is None:
        for listed in (list_images, class_names):
            with pytest.raises(DataError) as caught:
                listed(root)
            assert caught.value.hint
    else:
        listing = list_images(root)
        assert listing.classes == class_names(root) == expected
        unread = sum(len(files) for _, _, files in os.walk(root)) - len(listing.files)
        assert bool(listing.notes) == (unread > 0 or "train" in expected or "car" in expected)


NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("train", "val"), [("Cat", "cat"), (NFC, NFD), (NFD, NFC), ("cat", "cat "), (" cat", "CAT"), ("STRASSE", "straße")]
)
def test_a_class_of_another_spelling_is_the_same_class_and_a_note_says_so(train: str, val: str) -> None:
    root = write_tree(Path("root"), {"train": {train: 1, "dog": 1}, "val": {val: 2, "dog": 1}})
    listing = list_images(root)
    assert set(listing.classes) == {train, "dog"}
    assert Counter(name for _, name in rows(listing)["val"]) == {train: 2, "dog": 1}
    (note,) = listing.notes
    assert ascii(train) in note
    assert ascii(val) in note


def test_classes_that_differ_in_case_alone_are_two_and_have_to_be_matched_to_the_letter() -> None:
    letters = {"train": {"a": 1, "A": 2}, "val": {"A": 3, "a": 4}}
    assert Counter(name for _, name in rows(list_images(write_tree(Path("one"), letters)))["val"]) == {"A": 3, "a": 4}
    with pytest.raises(DataError, match="is not in"):
        list_images(write_tree(Path("two"), {"train": {"ab": 1, "Ab": 2}, "val": {"AB": 3}}))


@pytest.mark.parametrize(("split", "names"), [("train", (NFC, NFD)), ("train", ("x", "x ")), ("val", ("x", "X"))])
def test_two_folders_of_one_class_are_both_named(split: str, names: Sequence[str]) -> None:
    tree = {"train": {"x": 1, "y": 1}, "val": {"x": 1}} | {split: {"y": 1} | dict.fromkeys(names, 1)}
    with pytest.raises(DataError) as caught:
        list_images(write_tree(Path("root"), tree))
    for name in names:
        assert ascii(name) in caught.value.message


# --- files that are none, names that are no text, folders that cannot be listed


@pytest.fixture
def odd() -> Iterator[Path]:
    """A tree with a pipe, a socket and a device among its images."""
    root = write_tree(Path("root"), {"a": 2, "b": 2})
    os.mkfifo(root / "a/pipe.jpg")
    (root / "a/zero.png").symlink_to("/dev/zero")
    (root / "b/terminal.tif").symlink_to("/dev/tty")
    with closing(socket.socket(socket.AF_UNIX)) as stream:
        stream.bind("root/b/sock.png")
        yield root


def test_pipes_sockets_and_devices_are_counted_and_never_opened(odd: Path) -> None:
    content = read(odd)
    assert len(content.labels) == 4
    (note,) = [note for note in content.notes if "not read" in note]
    assert all(words in note for words in ("4 files", "2 device", "1 pipe", "1 socket"))


@pytest.mark.parametrize("late", ["pipe.jpg", "zero.png"])
def test_what_takes_a_files_place_after_the_listing_is_an_error(odd: Path, late: str) -> None:
    (odd / "a" / late).rename("aside")
    (odd / "a" / late).touch()
    listing = list_images(odd)
    (odd / "a" / late).unlink()
    Path("aside").rename(odd / "a" / late)
    files = OnDemand(listing.root, listing.files, 8)
    kind = "a pipe" if late == "pipe.jpg" else "a device"
    for use in (
        lambda: load(listing, 8),
        lambda: decode(listing.files, 8),
        files.sha256_of_names,
        lambda: files[:],
    ):
        with pytest.raises(DataError, match=f"1 of 5 images cannot be read.*{late}: {kind}, not a file"):
            use()


def test_a_file_that_vanishes_after_the_listing_is_named() -> None:
    listing = list_images(write_tree(Path("root"), {"a": 2, "b": 2}))
    (listing.root / "a/001.png").unlink()
    for use in (lambda: load(listing, 8), lambda: decode(listing.files, 8)):
        with pytest.raises(DataError, match=r"1 of 4 images cannot be read.*/a/001\.png: No such file"):
            use()


@pytest.mark.parametrize("where", ["root", "root/a", "root/a/inner"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG])
def test_a_folder_that_cannot_be_listed_is_named(monkeypatch: pytest.MonkeyPatch, where: str, number: int) -> None:
    write_tree(Path("root"), {"a": 2, "b": 2})
    Path("root/a/inner").mkdir()
    scan = os.scandir

    def fails(path: str | Path) -> Any:
        if Path(path).absolute() == Path(where).absolute():
            raise OSError(number, os.strerror(number))
        return scan(path)

    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(DataError, match=f"{where}: the folder cannot be listed: {os.strerror(number)}"):
        list_images(Path("root"))


def test_folders_lie_as_deep_as_they_like() -> None:
    root = write_tree(Path("root"), {"a": 1, "b": 1})
    deep = root / ("a" + "/d" * 300)
    deep.mkdir(parents=True)
    shutil.copy(root / "b/000.png", deep / "deep.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        listing = list_images(root)
    finally:
        sys.setrecursionlimit(limit)
    assert len(listing.files) == 3


def test_a_path_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(Path("root"), {"a": 1, "b": 1}).absolute()
    monkeypatch.chdir(root / "a")
    for _ in range(17):  # 4,267 bytes; the system opens paths of 4,095
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    monkeypatch.chdir(root.parent)
    try:
        with pytest.raises(DataError, match="cannot be listed: File name too long"):
            list_images(root)
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # pytest leaves what it cannot remove
    for name in ("x" * 300, "x/" * 3000):
        for listed in (list_images, class_names):
            with pytest.raises(DataError, match="expected a folder of"):
                listed(Path(name))


def test_a_class_whose_name_is_no_text_is_refused_with_its_bytes(capsys: Captured) -> None:
    root = write_tree(Path("root"), {"train": {"a": 5, "b": 5}, "val": {"a": 1}})
    (root / "train/b").rename(root / "train" / os.fsdecode(b"caf\xe9"))
    for listed in (list_images, class_names):
        with pytest.raises(DataError, match=r"root/train/caf\\xe9: .*not UTF-8") as caught:
            listed(root)
        caught.value.message.encode()
    answer = ask(capsys, "distill", "data.name=folder", "data.root=root", "data.image_size=8")
    assert (answer.code, answer.out) == (2, "")
    assert r"caf\xe9" in answer.err


def test_a_class_of_another_split_whose_name_is_no_text_is_refused_too() -> None:
    root = write_tree(Path("root"), {"train": {"a": 1, "b": 1}, "val": {"a": 1}})
    (root / "val" / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(DataError) as caught:
        list_images(root)
    caught.value.message.encode()


def test_one_long_name_costs_its_own_length_alone() -> None:
    names = [b"%d.png" % i for i in range(10_000)] + [b"x/" * 2000 + b"y.png"]
    paths = Paths(Path("root"), names)
    assert list(paths.names()) == names
    assert paths[-1] == Path("root", os.fsdecode(names[-1]))
    assert [path.name for path in paths[5:8]] == ["5.png", "6.png", "7.png"]
    assert [path.name for path in paths.take([9, 0, 9])] == ["9.png", "0.png", "9.png"]
    with pytest.raises(IndexError):
        paths[len(names)]
    assert len(paths._text) == sum(map(len, names))


# --- damaged images


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_damaged_images_are_left_out_and_named_and_the_rest_is_as_without_them() -> None:
    tree = {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}}
    root = write_tree(Path("root"), tree)
    bad = ["train/a/001.png", "train/b/003.png", "val/a/000.png", "train/a/zz.png"]
    for name in bad[:3]:
        spoil(root / name)
    (root / bad[3]).symlink_to("nowhere")
    with pytest.raises(DataError, match="cannot be read") as caught:
        read(root)
    assert "data.skip_damaged" in caught.value.hint
    for _ in range(2):  # decoded, and from the cache
        content = read(root, skip_damaged=True)
        assert sorted(line.partition(": ")[0] for line in content.skipped) == sorted(bad)
        assert any("4 of 13 images are damaged" in note for note in content.notes)
        assert content.parts == {"train": range(6), "val": range(6, 9)}
    assert any("from the cache" in note for note in content.notes)
    with pytest.raises(DataError, match="3 of 12 images cannot be read"):  # the cache does not hide them
        (root / bad[3]).unlink()
        read(root)
    for name in bad[:3]:
        (root / name).unlink()
    clean = read(root)
    assert np.array_equal(pixels(clean), pixels(content))
    assert np.array_equal(clean.labels, content.labels)
    assert clean.fingerprint == content.fingerprint
    assert clean.skipped == ()


@pytest.mark.parametrize("gone", [[], [0], [4], [0, 1, 4], [1, 2, 3], [2]])
def test_pixels_move_up_in_place(gone: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from okdc.data import decoding

    monkeypatch.setattr(decoding, "_MOVED_BYTES", 25)
    array = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    expected = np.delete(array, gone, axis=0)
    result = decoding._without(array, gone)
    assert np.array_equal(result, expected)
    assert np.shares_memory(result, array) or not len(result)


@pytest.mark.parametrize(("split", "said"), [("train", "of class 'a' is left in train"), ("val", "at all")])
def test_no_class_and_no_split_becomes_empty_in_silence(split: str, said: str) -> None:
    root = write_tree(Path("root"), {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    for path in [*(root / split / "a").iterdir(), *((root / "val/b").iterdir() if split == "val" else ())]:
        spoil(path)
    with pytest.raises(DataError, match=said) as caught:
        read(root, skip_damaged=True)
    assert all("root" in line for line in caught.value.details)
    if split == "val":
        shutil.copy(root / "train/b/000.png", root / "val/b/000.png")
        assert any("all images of class 'a' in val" in note for note in read(root, skip_damaged=True).notes)


@pytest.mark.parametrize("call", ["stat", "open"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_an_image_that_the_system_fails_to_read_is_never_left_out(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """It may be read at the next start, which would then train on other images."""
    root = write_tree(Path("root"), {"a": 2, "b": 2})
    asked = getattr(os, call)

    def fails(path: Any, *rest: Any, **more: Any) -> Any:
        if not isinstance(path, int) and os.fsdecode(path).endswith("a/001.png"):
            raise OSError(number, os.strerror(number))
        return asked(path, *rest, **more)

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(DataError, match=os.strerror(number)) as caught:
        read(root, skip_damaged=True)
    monkeypatch.undo()
    assert "system" in caught.value.hint


@pytest.mark.parametrize("name", ["imagenet", "digits", "cifar10", "mine:load"])
def test_a_data_set_that_cannot_leave_images_out_says_why(capsys: Captured, name: str) -> None:
    write_tree(Path("root"), {"a": 2, "b": 2})
    words = ["data.root=root"] if name != "digits" else []
    answer = ask(capsys, "distill", f"data.name={name}", "data.skip_damaged=true", "data.image_size=32", *words)
    assert answer.code == 2
    assert "data.skip_damaged: " in answer.err
