from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import tried, write_tree
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reading import read_data
from sklearn.datasets import load_digits
from torch import Tensor

from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.data.datasets import Dataset, divide, same_classes, stratified
from okdc.data.digits import CLASSES, arrays
from okdc.data.source import fingerprint_of
from okdc.errors import DataError
from okdc.progress import WARNING
from okdc.recipe.draft import load


def synthetic(sizes: list[int], seed: int = 0, test: int = 0) -> Dataset:
    """Images of so many of each class, in a random order; the last `test` of them are the test split."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    everything = torch.arange(len(labels))
    return Dataset(
        name="made",
        classes=tuple(f"class{c}" for c in range(len(sizes))),
        images=torch.zeros(len(labels), 4, 4, 3, dtype=torch.uint8),
        labels=labels,
        train=everything[: len(labels) - test],
        val=torch.empty(0, dtype=torch.int64),
        test=everything[len(labels) - test :],
        fingerprint="",
    )


def counts(of: Dataset, rows: Tensor) -> list[int]:
    return torch.bincount(of.labels[rows], minlength=len(of.classes)).tolist()


def splits(of: Dataset) -> list[list[int]]:
    return [of.train.tolist(), of.val.tolist(), of.test.tolist()]


# --- digits


def test_the_digits_are_those_that_training_reads() -> None:
    pixels, labels = arrays()
    whole = read_data("digits")
    np.testing.assert_array_equal(pixels, whole.images.numpy())
    np.testing.assert_array_equal(labels, whole.labels.numpy())
    assert whole.classes == CLASSES
    assert whole.fingerprint == hashlib.sha256(pixels[..., 0].tobytes() + labels.tobytes()).hexdigest()


def test_the_digits_are_scikit_learns_as_eight_bit_grey() -> None:
    dataset, source = read_data("digits"), load_digits()
    assert dataset.images.shape == (1797, 8, 8, 3)
    assert dataset.images.dtype == torch.uint8
    grey = np.round(source.images * 255 / 16)
    for channel in range(3):
        assert np.array_equal(dataset.images[..., channel].numpy(), grey)
    assert dataset.images.max() == 255
    assert dataset.labels.tolist() == source.target.tolist()
    assert dataset.classes == tuple("0123456789")
    assert dataset.size == (3, 8, 8)


def test_the_digits_are_the_same_where_scikit_learn_keeps_its_table_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = arrays()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = arrays()
    assert [part.dtype for part in result] == [part.dtype for part in expected]
    assert np.array_equal(result[0], expected[0])
    assert np.array_equal(result[1], expected[1])


def test_the_default_recipe_has_300_digits_to_train_700_to_choose_and_797_to_judge() -> None:
    data = assembly.dataset(resolve(load([])))
    assert [len(data.train), len(data.val), len(data.test)] == [300, 700, 797]
    assert sorted(chain(*splits(data))) == list(range(1797))
    for rows in (data.train, data.val, data.test):
        share = np.array(counts(data, rows)) / len(rows)
        whole = np.array(counts(data, torch.arange(1797))) / 1797
        assert np.abs(share - whole).max() <= 1.1 / len(rows)


def test_the_test_digits_are_the_same_ones_for_ever() -> None:
    """Numbers of different versions can be compared only while this holds."""
    indices = ",".join(map(str, read_data("digits").test.tolist()))
    assert hashlib.sha256(indices.encode()).hexdigest()[:16] == "b9c978540ddb483d"


def test_digits_of_other_seeds_differ_only_in_the_training_subset() -> None:
    whole = [divide(read_data("digits"), 0.3, None, seed) for seed in (0, 1)]
    assert splits(whole[0]) == splits(whole[1])
    subset = [divide(read_data("digits"), 0.3, 100, seed) for seed in (0, 1, 0)]
    assert splits(subset[0]) == splits(subset[2])
    assert splits(subset[0])[1:] == splits(subset[1])[1:]
    assert splits(subset[0])[0] != splits(subset[1])[0]
    assert set(splits(subset[0])[0]) <= set(splits(whole[0])[0])


# --- splitting

SIZES = st.lists(st.integers(5, 40), min_size=2, max_size=6)


@given(sizes=SIZES, fraction=st.floats(0, 0.8), seed=st.integers(0, 2**63 - 1))
@tried
def test_a_stratified_subset_has_its_share_of_every_class(sizes: list[int], fraction: float, seed: int) -> None:
    whole = synthetic(sizes)
    rows = whole.train
    count = round(fraction * len(rows))
    picked = stratified(whole.labels, rows, count, seed, "val")
    assert len(picked) == count
    assert picked.tolist() == sorted(set(picked.tolist()))
    assert set(picked.tolist()) <= set(rows.tolist())
    for size, taken in zip(sizes, counts(whole, picked), strict=True):
        assert abs(taken - count * size / len(rows)) < 1  # never a whole image off
    assert torch.equal(picked, stratified(whole.labels, rows, count, seed, "val"))


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), data=st.data())
@tried
def test_no_class_is_emptied_by_a_split_nor_missing_in_a_subset(sizes: list[int], data: st.DataObject) -> None:
    whole = synthetic(sizes)
    held_out = data.draw(st.integers(0, sum(sizes) - len(sizes)))
    taken = counts(whole, stratified(whole.labels, whole.train, held_out, 0, "val"))
    assert sum(taken) == held_out
    assert all(n < size for n, size in zip(taken, sizes, strict=True))
    kept = data.draw(st.integers(len(sizes), sum(sizes)))
    taken = counts(whole, stratified(whole.labels, whole.train, kept, 0, "train_images", everyone=True))
    assert sum(taken) == kept
    assert min(taken) >= 1


@given(
    sizes=SIZES,
    test=st.integers(0, 3),
    fraction=st.floats(0, 0.6),
    subset=st.none() | st.integers(6, 8),
    seed=st.integers(0, 99),
)
@tried
def test_the_splits_never_share_an_image(
    sizes: list[int], test: int, fraction: float, subset: int | None, seed: int
) -> None:
    whole = synthetic([n + 15 for n in sizes], test=test)
    dataset = divide(whole, fraction, subset, seed)
    train, val, judged = (set(rows) for rows in splits(dataset))
    assert not train & val
    assert not train & judged
    assert not val & judged
    assert judged == set(whole.test.tolist())  # the test split is nobody's to cut
    assert len(val) == round(fraction * len(whole.train))
    assert train | val == set(whole.train.tolist()) or len(train) == subset
    assert dataset.val.tolist() == divide(whole, fraction, subset, seed + 1).val.tolist()


def test_a_validation_split_that_the_data_brings_is_used_as_it_is() -> None:
    whole = synthetic([20, 20])
    brought = replace(whole, train=torch.arange(30), val=torch.arange(30, 40))
    dataset = divide(brought, 0.5, None, 0)
    assert splits(dataset) == splits(brought)
    assert dataset.notes == ()


def test_holding_images_out_is_noted_with_its_seed() -> None:
    (note,) = divide(synthetic([20, 20]), 0.1, None, 0).notes
    assert note == "4 training images are held out for validation, drawn with seed 0"


def test_more_training_images_than_there_are_is_an_error_and_all_of_them_is_not() -> None:
    assert len(divide(synthetic([20, 20]), 0.0, 40, 0).train) == 40
    with pytest.raises(DataError, match=r"data\.train_images: expected at most 40, found 41"):
        divide(synthetic([20, 20]), 0.0, 41, 0)


@pytest.mark.parametrize(
    ("fraction", "subset", "said"), [(0.99, None, "val: .* of 40 .* 40 "), (0.0, 1, "train_images: .* 1 ")]
)
def test_a_split_that_would_leave_a_class_without_images_is_refused(
    fraction: float, subset: int | None, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        divide(synthetic([20, 20]), fraction, subset, 0)
    assert "data.val_fraction" in caught.value.hint


# --- folders


def test_a_tree_becomes_a_dataset_with_its_own_splits() -> None:
    tree = {"train": {"cat": 4, "dog": 3}, "valid": {"dog": 2}, "test": {"cat": 1, "dog": 2}}
    dataset = read_data("folder", write_tree(Path("root"), tree), 8)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (7, 2, 3)
    assert counts(dataset, dataset.val) == [0, 2]  # by name: dog is 1 there too
    assert sorted(chain(*splits(dataset))) == list(range(12))
    for rows, paths in (
        (dataset.train, [f"train/cat/{i:03}.png" for i in range(4)] + [f"train/dog/{i:03}.png" for i in range(3)]),
        (dataset.test, ["test/cat/000.png", "test/dog/000.png", "test/dog/001.png"]),
    ):
        for row, path in zip(rows.tolist(), paths, strict=True):
            with Image.open(Path("root") / path) as image:
                assert np.array_equal(dataset.images[row].numpy(), np.asarray(image))
    assert dataset.final_split[0] == "test"
    assert any("valid/cat: no images of this class" in note for note in dataset.notes)


def test_without_a_test_split_the_judge_is_called_validation() -> None:
    dataset = divide(read_data("folder", write_tree(Path("root"), {"train": {"a": 10, "b": 10}}), 8), 0.2, None, 0)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (16, 4, 0)
    name, rows = dataset.final_split
    assert name == "validation"
    assert torch.equal(rows, dataset.val)


def test_one_folder_of_classes_gives_a_fifth_of_each_to_a_fixed_test_split() -> None:
    root = write_tree(Path("root"), {"a": 20, "b": 10})
    dataset = read_data("folder", root, 8)
    assert counts(dataset, dataset.test) == [4, 2]
    assert sorted(chain(*splits(dataset))) == list(range(30))
    assert any("20% are the test split, drawn with seed 0" in note for note in dataset.notes)
    for seed in (0, 1):
        assert divide(dataset, 0.1, 12, seed).test.tolist() == read_data("folder", root, 8).test.tolist()


def test_classes_without_a_test_image_are_named() -> None:
    dataset = read_data("folder", write_tree(Path("root"), {"cat": 30, "dog": 1, "owl": 1}), 8)
    (note,) = (note for note in dataset.notes if note.startswith(WARNING))
    assert counts(dataset, dataset.test) == [6, 0, 0]
    assert "'dog', 'owl'" in note
    assert "cat" not in note


def test_the_fingerprint_is_that_of_the_contents_and_the_same_from_the_cache() -> None:
    root = write_tree(Path("root"), {"train": {"a": 2, "b": 2}})
    first, again = read_data("folder", root, 8), read_data("folder", root, 8)
    assert any("from the cache" in note for note in again.notes)
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.images, again.images)
    Image.new("RGB", (8, 8)).save(root / "train/a/000.png")
    assert read_data("folder", root, 8).fingerprint != first.fingerprint


def test_images_read_from_the_cache_can_be_cropped() -> None:
    """The loader hands numpy memory on: it has to be the data set's own, and writable as torch expects."""
    root = write_tree(Path("root"), {"train": {"a": 2, "b": 2}})
    read_data("folder", root, 8)
    images = read_data("folder", root, 8).images
    images += 1
    assert not torch.equal(images, read_data("folder", root, 8).images)


# --- moments


@pytest.mark.parametrize("seed", range(3))
def test_the_moments_are_numpys_over_the_training_images_alone(seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = (random.random((300, 5, 7, 3)) ** [0.3, 1, 4] * 255).astype(np.uint8)
    whole = replace(synthetic([150, 150]), images=torch.from_numpy(pixels), train=torch.arange(0, 200))
    mean, std = whole.moments()
    x = pixels[:200].astype(np.float64) / 255
    assert mean == pytest.approx(x.mean((0, 1, 2)), abs=1e-6)
    assert std == pytest.approx(x.std((0, 1, 2)), abs=1e-6)
    assert all(value == round(value, 6) for value in mean + std)


@pytest.mark.parametrize(("count", "height", "width"), [(700, 64, 2), (3, 20_000, 1)])
def test_the_brightest_images_do_not_overflow_the_sums(count: int, height: int, width: int) -> None:
    pixels = torch.full((count, height, width, 3), 255, dtype=torch.uint8)
    pixels[:, ::2] = 253
    whole = replace(synthetic([count - 1, 1]), images=pixels)
    mean, std = whole.moments()
    assert mean == (round(254 / 255, 6),) * 3
    assert std == (round(1 / 255, 6),) * 3


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    whole = synthetic([5, 5])
    whole.images[..., 0] = 255
    mean, std = whole.moments()
    assert mean == (1.0, 0.0, 0.0)
    assert min(std) > 0


# --- the classes of a run


def test_other_classes_than_a_run_was_trained_on_are_shown_side_by_side() -> None:
    same_classes(["class0", "class1"], synthetic([1, 1]), "runs/a-1")
    for other in (["class0", "class1", "class2"], ["class1", "class0"], ["class0"]):
        with pytest.raises(DataError, match=r"runs/a-1 was trained on \d classes") as caught:
            same_classes(other, synthetic([1, 1]), "runs/a-1")
        assert caught.value.details == (f"trained: {', '.join(other)}", "found: class0, class1")


def test_a_file_that_changes_its_class_or_its_split_is_other_data(tmp_path: Path) -> None:
    """Every byte of every image stays, and their order too."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (i * 40, 90, 30)).save(tmp_path / split / name / f"{i}.png")
    seen = {read_data("folder", tmp_path, 8).fingerprint}
    assert read_data("folder", tmp_path, 8).fingerprint in seen
    (tmp_path / "train/a/3.png").rename(tmp_path / "train/b/!.png")  # the last of a, the first of b
    seen.add(read_data("folder", tmp_path, 8).fingerprint)
    (tmp_path / "train/b/3.png").rename(tmp_path / "test/a/!.png")  # the last of train, the first of test
    seen.add(read_data("folder", tmp_path, 8).fingerprint)
    assert len(seen) == 3


def test_the_fingerprint_knows_the_classes_the_labels_and_where_the_splits_end() -> None:
    labels = np.array([0, 1, 0, 1])
    splits = {"train": range(3), "test": range(3, 4)}
    seen = {
        fingerprint_of("content", ["a", "b"], labels, splits),
        fingerprint_of("other", ["a", "b"], labels, splits),
        fingerprint_of("content", ["b", "a"], labels, splits),
        fingerprint_of("content", ["a", "b"], 1 - labels, splits),
        fingerprint_of("content", ["a", "b"], labels, {"train": range(2), "test": range(2, 4)}),
        fingerprint_of("content", ["a", "b"], labels, {"train": range(3), "val": range(3, 4)}),
    }
    assert len(seen) == 6
