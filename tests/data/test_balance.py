"""Classes of unequal size: how often an epoch shows each, and what its images count for."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import tried
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_imagenet
from reading import read_data
from torch import Tensor

from okdc.data import balance
from okdc.data.augmentation import Augmentation
from okdc.data.batches import Normalise, TrainBatches, rows_of_epoch
from okdc.data.datasets import Dataset
from okdc.data.streaming import StreamBatches
from okdc.distributed import Ranks
from okdc.recipe.schema import Augment

RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def unequal(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Rows 5, 6, ... of classes of these sizes, in a mixed order, and their labels."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return torch.arange(len(labels))[mixed] + 5, labels[mixed]


@given(sizes=SIZES, epoch=st.integers(0, 3), seed=st.integers(0, 3), data=st.data())
@tried
def test_each_class_comes_equally_often_in_every_beginning_of_an_epoch(
    sizes: list[int], epoch: int, seed: int, data: st.DataObject
) -> None:
    rows, labels = unequal(sizes)
    class_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    order = balance.order(rows, labels, epoch, seed).tolist()
    assert len(order) == len(rows)
    cut = data.draw(st.integers(0, len(order)))
    counts = [sum(class_of[row] == c for row in order[:cut]) for c in range(len(sizes))]
    assert max(counts) - min(counts) <= 1


@given(sizes=SIZES)
@tried
def test_an_image_comes_again_only_after_all_of_its_class(sizes: list[int]) -> None:
    rows, labels = unequal(sizes)
    class_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    order = balance.order(rows, labels, 0, 0).tolist()
    for c, size in enumerate(sizes):
        own = [row for row in order if class_of[row] == c]
        for start in range(0, len(own), size):
            part = own[start : start + size]
            assert len(set(part)) == len(part)


def test_the_classes_of_a_round_come_in_an_order_of_its_own() -> None:
    """Else the last batch of an epoch would always lack the same."""
    rows, labels = unequal([10, 10, 10, 10])
    class_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    order = [class_of[row] for row in balance.order(rows, labels, 0, 0).tolist()]
    rounds = [tuple(order[n : n + 4]) for n in range(0, 40, 4)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in rounds)
    assert len(set(rounds)) > 5


def test_it_follows_from_seed_and_epoch_alone() -> None:
    rows, labels = unequal([20, 3, 7])
    torch.manual_seed(1)
    first = balance.order(rows, labels, 2, 3)
    torch.manual_seed(2)
    assert torch.equal(balance.order(rows, labels, 2, 3), first)
    assert not torch.equal(balance.order(rows, labels, 1, 3), first)
    assert not torch.equal(balance.order(rows, labels, 2, 4), first)


def test_over_epochs_every_image_of_a_large_class_comes_about_as_often() -> None:
    rows, labels = unequal([60, 20, 10])
    counts = torch.zeros(95)
    for epoch in range(100):
        counts += torch.bincount(balance.order(rows, labels, epoch, 0), minlength=95)
    for c, size in enumerate((60, 20, 10)):
        own = counts[rows[labels == c]]
        assert own.sum() == pytest.approx(3000, abs=100)
        assert own.min() > 0.6 * 3000 / size
        assert own.max() < 1.4 * 3000 / size


@given(rows=st.lists(st.integers(0, 5), max_size=30))
@tried
def test_times_before_counts_the_same_row(rows: list[int]) -> None:
    expected = [rows[:n].count(row) for n, row in enumerate(rows)]
    assert balance.times_before(torch.tensor(rows, dtype=torch.int64)).tolist() == expected


@given(sizes=SIZES)
@tried
def test_weights_are_n_over_k_times_the_class_and_make_all_classes_count_the_same(sizes: list[int]) -> None:
    _, labels = unequal(sizes)
    weights = balance.class_weights(labels, len(sizes))
    assert weights.dtype == torch.float32
    expected = [len(labels) / (len(sizes) * n) for n in sizes]
    assert weights.tolist() == pytest.approx(expected)
    assert weights[labels].mean().item() == pytest.approx(1)


def test_a_class_without_an_image_weighs_nothing() -> None:
    assert balance.class_weights(torch.tensor([0, 0, 2]), 3).tolist() == [0.5, 0, 1]


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def dataset() -> Dataset:
    rows, labels = unequal([20, 3, 7])
    every = torch.zeros(40, dtype=torch.int64)
    every[rows] = labels
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 4, 4, 3).contiguous()
    none = torch.empty(0, dtype=torch.int64)
    return Dataset("made", ("a", "b", "c"), images, every, rows.sort().values, none, none, "")


def test_resident_batches_are_balanced_and_shared_by_processes() -> None:
    of = dataset()
    batches = TrainBatches(of, 6, Augmentation(Augment(padding=0, flip=False)), RAW, 0, balanced=True)
    assert batches.steps == 5
    parts = [
        list(TrainBatches(of, 6, batches.augmentation, RAW, 0, Ranks(rank, 2), balanced=True).epoch(1))
        for rank in (0, 1)
    ]
    rows = rows_of_epoch(of, 1, 0, balanced=True)
    for step, (images, labels, *_) in enumerate(batches.epoch(1)):
        assert torch.bincount(labels).tolist() == [2, 2, 2]
        assert images[:, 0, 0, 0].round().long().tolist() == rows[6 * step : 6 * step + 6].tolist()
        assert torch.equal(images, torch.cat([parts[rank][step][0] for rank in (0, 1)]))
    assert len(list(batches.epoch(1, 3))) == 2


def test_without_it_an_epoch_is_the_shuffle_that_it_was() -> None:
    of = dataset()
    rows = rows_of_epoch(of, 1, 0, balanced=False)
    assert rows.sort().values.tolist() == of.train.tolist()


def test_a_streamed_image_that_comes_again_is_cropped_anew(tmp_path: Path) -> None:
    data = read_data("imagenet", write_imagenet(tmp_path / "imagenet"), 32, 36)
    kept = torch.cat([data.train[data.labels[data.train] == 0][:2], data.train[data.labels[data.train] != 0]])
    data.__dict__["train"] = kept  # of one class two images
    augmentation = Augmentation(Augment(crop="resized"))
    with closing(StreamBatches(data, 8, augmentation, RAW, 0, 0, balanced=True)) as batches:
        rows = rows_of_epoch(data, 0, 0, balanced=True)
        images = torch.cat([images for images, *_ in batches.epoch(0)])
        labels = torch.cat([labels for _, labels, *_ in batches.epoch(0)])
        again = torch.cat([images for images, *_ in batches.epoch(0)])
    assert torch.equal(images, again)
    counts = torch.bincount(labels, minlength=len(data.classes))
    assert counts.max() - counts.min() <= 1
    repeated = [row for row in kept[:2].tolist() if rows.tolist().count(row) > 1]
    assert repeated
    for row in repeated:
        places = [n for n, other in enumerate(rows.tolist()[: len(images)]) if other == row]
        crops = {np.asarray(images[n]).tobytes() for n in places}
        assert len(crops) == len(places)
