"""What `okdc new` sees of a folder: counts as a training divides them, sizes from headers, equal files."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from asking import picture, tried, write_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from reading import read_data

from okdc.data import datasets, files
from okdc.data.splits import apportion, most_outside
from okdc.errors import DataError
from okdc.survey import folder as folders
from okdc.survey.folder import division, look

TREES: dict[str, dict[str, dict[str, int] | int]] = {
    "one folder": {"cat": 30, "dog": 11, "eel": 7},
    "two splits": {"train": {"cat": 12, "dog": 31}, "test": {"cat": 4, "dog": 5}},
    "three splits": {"train": {"cat": 12, "dog": 9}, "valid": {"cat": 2, "dog": 2}, "test": {"cat": 4}},
    "no test": {"train": {"cat": 12, "dog": 9}},
}


@pytest.mark.parametrize("name", TREES)
def test_the_images_are_counted_as_a_training_divides_them(tmp_path: Path, name: str) -> None:
    root = write_tree(tmp_path / "root", TREES[name])
    divided = division(look(str(root)), 0.1)
    dataset = datasets.divide(read_data("folder", root), divided.val_fraction, None, seed=0)
    for split, counts in divided.counts().items():
        labels = dataset.labels[getattr(dataset, split)]
        assert counts == tuple(int((labels == c).sum()) for c in range(len(dataset.classes))), split


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6), share=st.floats(0, 1), everyone=st.booleans())
@tried
def test_a_split_has_each_class_in_proportion(sizes: list[int], share: float, everyone: bool) -> None:
    count = round(share * sum(sizes))
    fits = sum(map(bool, sizes)) <= count if everyone else count <= most_outside(sizes)
    if not fits or not sum(sizes):
        return
    taken = apportion(sizes, count, "test", everyone)
    assert sum(taken) == count
    for size, part in zip(sizes, taken, strict=True):
        least, most = (min(1, size), size) if everyone else (0, max(size - 1, 0))
        assert least <= part <= most


@given(counts=st.lists(st.integers(1, 9), min_size=2, max_size=5))
@settings(tried, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_any_folder_is_divided_or_refused_for_its_few_images(counts: list[int], tmp_path: Path) -> None:
    root = tmp_path / "-".join(map(str, counts))
    if not root.exists():
        write_tree(root, {f"c{i}": count for i, count in enumerate(counts)}, size=4)
    try:
        divided = division(look(str(root)), 0.1)
    except DataError:
        assert most_outside(counts) < round(0.2 * sum(counts)) or sum(counts) < 3
        return
    dataset = datasets.divide(read_data("folder", root), divided.val_fraction, None, seed=0)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [
        sum(part) for part in divided.counts().values()
    ]
    assert all(divided.train)


ONE_EACH = {f"c{i:02}": 1 for i in range(30)}


@pytest.mark.parametrize(
    ("tree", "held_out"),
    [({"cat": 3, "dog": 3}, 1), ({"train": ONE_EACH | {"c00": 2}, "test": {"c00": 1}}, 1), ({"cat": 50, "dog": 50}, 8)],
    ids=["a tenth is none", "classes keep theirs", "a tenth"],
)
def test_as_many_are_held_out_as_the_classes_allow(
    tmp_path: Path, tree: dict[str, dict[str, int] | int], held_out: int
) -> None:
    root = write_tree(tmp_path / "root", tree, size=4)
    divided = division(look(str(root)), 0.1)
    dataset = datasets.divide(read_data("folder", root), divided.val_fraction, None, seed=0)
    assert sum(divided.val) == len(dataset.val) == held_out


def test_sizes_and_colours_are_read_from_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, (width, height) in enumerate([(10, 40), (30, 20), (50, 50)]):
        for name in ("cat", "dog"):
            path = tmp_path / "root" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(i, height, width)[:, :, 0]).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("an image was decoded"))
    seen = look(str(tmp_path / "root"))
    assert seen.shorter_sides == (10, 10, 20, 20, 50, 50)
    assert (seen.shorter_side, seen.one_size, seen.grey) == (20, None, True)
    assert seen.cut_away_pct == pytest.approx(100 / 3)


def test_of_very_many_files_a_sample_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "root", {"cat": 20, "dog": 20})
    monkeypatch.setattr(folders, "MOST", 10)
    seen = look(str(root))
    assert len(seen.headers) == 10
    assert sum(seen.counts["all"]) == 40


def test_a_file_that_is_no_image_is_left_out_and_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"cat": 5, "dog": 5})
    (root / "cat" / "a.jpg").write_bytes(b"no image")
    (root / "dog" / "b.jpg").write_bytes(b"")
    (root / "dog" / os.fsdecode(b"caf\xe9.png")).symlink_to("nowhere")
    seen = look(str(root))
    assert [line.partition(":")[0] for line in seen.damaged] == ["cat/a.jpg", "dog/b.jpg", "dog/caf\\xe9.png"]
    assert seen.counts == {"all": (5, 5)}


def test_files_with_the_same_bytes_are_found_and_told_apart_by_where_they_are(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}})
    for source, copy in (
        ("train/cat/000.png", "test/cat/copy.png"),
        ("train/cat/001.png", "train/dog/copy.png"),
        ("train/cat/002.png", "train/cat/copy.png"),
    ):
        shutil.copy(root / source, root / copy)
    seen = look(str(root))
    named = {where: [[seen.name(row) for row in rows] for rows in groups] for where, groups in seen.alike().items()}
    assert named == {
        "splits": [["train/cat/000.png", "test/cat/copy.png"]],
        "classes": [["train/cat/001.png", "train/dog/copy.png"]],
        "class": [["train/cat/002.png", "train/cat/copy.png"]],
    }


def test_files_are_compared_to_their_last_byte(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"cat": 1, "dog": 3})
    beginning = np.random.default_rng(0).bytes(folders.BEGINNING)
    image = (root / "dog" / "000.png").read_bytes()
    for name, end in (("x.png", b"\0"), ("y.png", b"\1"), ("z.png", b"\0")):
        (root / "dog" / name).write_bytes(image + beginning + end)
    seen = look(str(root))
    assert [[seen.name(row) for row in rows] for rows in seen.repeated] == [["dog/x.png", "dog/z.png"]]


def test_a_file_of_a_size_of_its_own_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "root", {"cat": 3, "dog": 3})
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        path.write_bytes(path.read_bytes() + bytes(i))
    sizes = [path.stat().st_size for path in root.rglob("*.png")]
    if len(set(sizes)) < len(sizes):  # pragma: no cover  (compression happened to agree)
        pytest.skip("two files happen to have one size")
    opened: list[Path] = []
    before = files.opened

    def noted(path: Path) -> AbstractContextManager[tuple[BinaryIO, os.stat_result]]:
        opened.append(path)
        return before(path)

    monkeypatch.setattr(files, "opened", noted)
    look(str(root))
    assert len(opened) == len(sizes)  # each once, for its header


def test_a_folder_that_a_recipe_cannot_name_is_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path / os.fsdecode(b"caf\xe9"), {"cat": 3, "dog": 3})
    with pytest.raises(DataError, match=r"caf\\xe9.*UTF-8"):
        look(str(root))


@pytest.mark.parametrize(
    "tree", [{"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}, {"train": {"a": 1, "b": 1}}]
)
def test_too_few_images_are_refused(tmp_path: Path, tree: dict[str, int]) -> None:
    with pytest.raises(DataError, match="too few"):
        division(look(str(write_tree(tmp_path / "root", tree))), 0.1)
