"""Further views of an image: each is an augmentation of its own, wherever the images lie, and the first is as ever."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batching import same
from pictures import write_imagenet
from reading import read_data
from torch import Tensor

from okdc.data.augmentation import Augmentation, Examples, order
from okdc.data.batches import Normalise, TrainBatches
from okdc.data.datasets import Dataset
from okdc.data.streaming import StreamBatches
from okdc.distributed import ALONE, Ranks
from okdc.recipe.schema import Augment

SIZE = 32
RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # pixels as they are, as floats
KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "reflected": {"padding_mode": "reflect"},
    "varied": {"rotation": 20.0, "hue": 0.2, "blur": 0.3, "erasing": 0.5, "policy": "trivial"},
    "resized": {"crop": "resized", "padding": 0},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def resident(tree: Path) -> Dataset:
    return read_data("folder", tree, SIZE)


def batches(of: Dataset, views: int, seed: int = 3, ranks: Ranks = ALONE, **keys: Any) -> TrainBatches:
    return TrainBatches(of, 8, Augmentation(Augment(**keys)), RAW, seed, ranks, views=views)


def all_views(examples: Examples) -> list[Tensor]:
    return [examples.images, *examples.views]


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_a_view_is_the_augmentation_of_its_own_draws_and_the_first_is_that_of_a_run_without_others(
    resident: Dataset, keys: dict[str, Any]
) -> None:
    augmentation, plain = Augmentation(Augment(**keys)), list(batches(resident, 0, **keys).epoch(1))
    rows = order(resident.train, 1, 3)
    draws = [augmentation.draw(rows, 1, 3, (SIZE, SIZE), view) for view in range(3)]
    for i, examples in enumerate(batches(resident, 2, **keys).epoch(1)):
        assert same([examples._replace(views=())], [plain[i]])
        assert len(examples.views) == 2
        for view, images in enumerate(all_views(examples)):
            part = draws[view][8 * i : 8 * i + 8]
            assert torch.equal(images, augmentation.of_batch(resident.images, part, RAW))


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_views_differ_from_each_other_and_from_epoch_to_epoch(resident: Dataset, keys: dict[str, Any]) -> None:
    first, second = (next(batches(resident, 2, **keys).epoch(epoch)) for epoch in (0, 1))
    shown = [*all_views(first), *all_views(second)]
    for i, view in enumerate(shown):
        assert view.shape == (8, 3, SIZE, SIZE)
        assert not any(torch.equal(view, other) for other in shown[:i])


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_files_give_the_views_of_resident_images_and_workers_those_of_none(tree: Path, keys: dict[str, Any]) -> None:
    """But for the crop `resized`, which is taken of a file at its full resolution."""
    augmentation, dataset = Augmentation(Augment(**keys)), read_data("imagenet", tree, SIZE)
    alone = list(StreamBatches(dataset, 8, augmentation, RAW, 3, 0, views=2).epoch(1))
    with closing(StreamBatches(dataset, 8, augmentation, RAW, 3, 2, views=2)) as helped:
        assert same(list(helped.epoch(1, 2)), alone[2:])
    plain = list(StreamBatches(dataset, 8, augmentation, RAW, 3, 0).epoch(1))
    assert same([examples._replace(views=()) for examples in alone], plain)
    for examples in alone:
        first, *further = all_views(examples)
        assert len(further) == 2
        assert not torch.equal(first, further[0])
        assert not torch.equal(*further)
    if augmentation.keys.crop == "pad":
        resident = TrainBatches(read_data("folder", tree, SIZE), 8, augmentation, RAW, 3, views=2)
        assert same(alone, list(resident.epoch(1)))


def test_several_processes_have_parts_of_the_views_of_one(resident: Dataset) -> None:
    whole = list(batches(resident, 1).epoch(0))
    parts = [list(batches(resident, 1, ranks=Ranks(rank, 2)).epoch(0)) for rank in range(2)]
    for of_one, *of_two in zip(whole, *parts, strict=True):
        for view, images in enumerate(all_views(of_one)):
            assert torch.equal(images, torch.cat([all_views(part)[view] for part in of_two]))


class HostSender:
    """A sender to a device that is the host."""

    def filled(self, shape: tuple[int, ...], fill: Any) -> Tensor:
        pixels = torch.empty(shape, dtype=torch.uint8)
        fill(pixels)
        return pixels


def test_images_that_are_sent_batch_by_batch_are_sent_once_for_all_views(resident: Dataset) -> None:
    sent = replace(resident, sender=HostSender())  # type: ignore[arg-type]
    source = batches(sent, 2)
    assert same(list(source.epoch(1)), list(batches(resident, 2).epoch(1)))
    pixels, table = next(source.drawn(1))
    assert (len(pixels), len(table)) == (8, 24)
