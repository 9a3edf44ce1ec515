from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from asking import tried
from batching import same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from okdc.data.augmentation import Augmentation, Draws, crops, order
from okdc.data.batches import Normalise, TrainBatches, eval_batches
from okdc.data.datasets import Dataset
from okdc.recipe.schema import Augment
from okdc.seeds import generator

RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # pixels as they are, as floats


def dataset(n: int = 40, height: int = 6, width: int = 5, seed: int = 0) -> Dataset:
    """Random pixels from 1 to 255, so that 0 is padding; the label of an image is its row."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.arange(n)
    return Dataset(
        name="made",
        classes=("a", "b"),
        images=torch.randint(1, 256, (n, height, width, 3), dtype=torch.uint8, generator=random),
        labels=rows.clone(),
        train=rows[: n - n // 4],
        val=rows[n - n // 4 :],
        test=torch.empty(0, dtype=torch.int64),
        fingerprint="",
    )


def train_batches(of: Dataset, batch_size: int = 4, padding: int = 2, flip: bool = True, seed: int = 0) -> TrainBatches:
    return TrainBatches(of, batch_size, Augmentation(Augment(padding=padding, flip=flip)), RAW, seed)


def drawn_of(keys: Augment, rows: Tensor, epoch: int, seed: int) -> Draws:
    return Augmentation(keys).draw(rows, epoch, seed, (6, 6))


def by_definition(images: Tensor, batch: Draws, padding: int, mode: str = "constant") -> npt.NDArray[np.uint8]:
    """Pad as numpy does, with zeros by default, cut the window, mirror it: one image after another."""
    height, width = images.shape[1:3]
    out = []
    columns = (batch.rows, batch.top, batch.left, batch.flip, batch.vertical_flip)
    for row, top, left, flip, vertical_flip in zip(*(column.tolist() for column in columns), strict=True):
        padded = np.pad(images[row].numpy(), ((padding, padding), (padding, padding), (0, 0)), mode)  # type: ignore[call-overload]
        window = padded[top : top + height, left : left + width]
        window = np.fliplr(window) if flip else window
        out.append(np.flipud(window) if vertical_flip else window)
    return np.stack(out)


# --- crop and flip


@given(height=st.integers(1, 9), width=st.integers(1, 9), data=st.data())
@tried
def test_crops_by_slices_and_by_gather_are_the_same_pixels(height: int, width: int, data: st.DataObject) -> None:
    padding = data.draw(st.integers(0, min(height, width)))
    images = dataset(7, height, width).images
    row, corner = st.integers(0, 6), st.integers(0, 2 * padding)
    drawn = data.draw(st.lists(st.tuples(row, corner, corner, st.booleans(), st.booleans()), min_size=1, max_size=9))
    batch = Draws.of(*(torch.tensor(values) for values in zip(*drawn, strict=True)))
    expected = by_definition(images, batch, padding)
    assert np.array_equal(crops._by_slices(images, batch, padding).numpy(), expected)
    assert np.array_equal(crops._by_gather(images, batch, padding).numpy(), expected)


@given(height=st.integers(2, 9), width=st.integers(2, 9), data=st.data())
@tried
def test_a_reflecting_crop_is_a_window_of_numpys_reflection(height: int, width: int, data: st.DataObject) -> None:
    padding = data.draw(st.integers(0, min(height, width) - 1))
    images = dataset(7, height, width).images
    row, corner = st.integers(0, 6), st.integers(0, 2 * padding)
    drawn = data.draw(st.lists(st.tuples(row, corner, corner, st.booleans(), st.booleans()), min_size=1, max_size=9))
    batch = Draws.of(*(torch.tensor(values) for values in zip(*drawn, strict=True)))
    expected = by_definition(images, batch, padding, "reflect")
    assert np.array_equal(crops.crop(images, batch, padding, "reflect").numpy(), expected)


@pytest.mark.parametrize("more", [{}, {"hue": 0.2}], ids=["crop alone", "and colours"])
def test_a_recipe_that_pads_by_reflection_shows_no_black(more: dict[str, float]) -> None:
    of = replace(dataset(40, 6, 6), images=torch.full((40, 6, 6, 3), 255, dtype=torch.uint8))
    for mode, least in (("zeros", 0.0), ("reflect", 255.0)):
        augmentation = Augmentation(Augment.model_validate({"padding": 2, "padding_mode": mode, **more}))
        shown = torch.cat([images for images, *_ in TrainBatches(of, 10, augmentation, RAW, 0).epoch(0)])
        assert float(shown.round().min()) == least


def test_without_padding_and_flip_a_batch_is_the_images() -> None:
    of = dataset()
    for images, labels, *_ in train_batches(of, padding=0, flip=False).epoch(0):
        assert torch.equal(images.round().byte().permute(0, 2, 3, 1), of.images[labels])


def test_what_a_crop_leaves_open_is_black_and_not_a_reflection() -> None:
    of = replace(dataset(400, 6, 6), images=torch.full((400, 6, 6, 3), 255, dtype=torch.uint8))
    drawn = drawn_of(Augment(padding=2, flip=False), order(of.train, 0, 0), 0, 0)
    shifted = torch.cat([images for images, *_ in train_batches(of, 300, padding=2, flip=False).epoch(0)])
    for i, image in enumerate(shifted):
        rows, columns = 6 - abs(int(drawn.top[i]) - 2), 6 - abs(int(drawn.left[i]) - 2)
        assert int((image[0] > 0).sum()) == rows * columns


# --- what an epoch draws


def test_shifts_are_uniform_and_independent_and_half_of_the_images_are_mirrored() -> None:
    n, padding = 50_000, 2
    drawn = drawn_of(Augment(padding=padding), torch.arange(n), 0, 0)
    cells = torch.bincount(drawn.top * 5 + drawn.left, minlength=25).double()
    assert len(cells) == 25
    expected = n / 25
    assert float(((cells - expected) ** 2 / expected).sum()) < 52.6  # chi-squared, 24 degrees, p = 0.0007
    assert abs(float(drawn.flip.double().mean()) - 0.5) < 0.01
    by_flip = [drawn.top[drawn.flip == side].double().mean() for side in (True, False)]
    assert abs(float(by_flip[0] - by_flip[1])) < 0.06  # the flip tells nothing about the shift


def test_no_flip_means_none() -> None:
    assert not drawn_of(Augment(padding=2, flip=False), torch.arange(1000), 0, 0).flip.any()


@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), epoch=st.integers(0, 5), seed=st.integers(0, 2**63 - 1))
@tried
def test_an_epoch_shows_each_training_image_once_but_for_a_partial_last_batch(
    n: int, batch_size: int, epoch: int, seed: int
) -> None:
    of = dataset(n)
    source = train_batches(of, batch_size, seed=seed)
    shown = [labels for _, labels, *_ in source.epoch(epoch)]
    assert [len(labels) for labels in shown] == [batch_size] * (len(of.train) // batch_size)
    assert source.steps == len(shown)
    rows = torch.cat(shown).tolist() if shown else []
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(of.train.tolist())
    if len(of.train) % batch_size == 0:
        assert sorted(rows) == of.train.tolist()


def test_an_epoch_is_a_function_of_seed_and_epoch_alone() -> None:
    source = train_batches(dataset())
    torch.manual_seed(1)
    first = list(source.epoch(3))
    torch.manual_seed(2)
    torch.rand(5)
    list(source.epoch(0)), list(source.epoch(1))  # what was shown before has no say
    assert same(first, list(source.epoch(3)))
    assert not same(first, list(source.epoch(4)))
    assert not same(first, list(replace(source, seed=1).epoch(3)))


def test_each_draw_is_another_one_in_another_epoch_and_with_another_seed() -> None:
    rows = torch.arange(50)
    first, later, other = (
        drawn_of(Augment(padding=2), order(rows, 0, 0), 0, 0),
        drawn_of(Augment(padding=2), order(rows, 1, 0), 1, 0),
        drawn_of(Augment(padding=2), order(rows, 0, 1), 0, 1),
    )
    for name in ("rows", "top", "left", "flip"):
        assert not torch.equal(getattr(first, name), getattr(later, name)), name
        assert not torch.equal(getattr(first, name), getattr(other, name)), name


def test_reading_batches_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(train_batches(dataset()).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


VARIED = Augment(padding=2, rotation=20.0, hue=0.2, blur=0.3, erasing=0.5, policy="trivial", mixup=0.4, cutmix=1.0)


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("keys", [Augment(padding=2), VARIED], ids=["usual", "varied"])
def test_an_epoch_continues_from_any_step_as_it_would_have(keys: Augment, start: int) -> None:
    source = replace(train_batches(dataset()), augmentation=Augmentation(keys))
    assert source.steps == 7
    assert same(list(source.epoch(2, start)), list(source.epoch(2))[start:])


def test_order_shift_and_flip_come_from_streams_of_their_own() -> None:
    """Turning one off must not change the others: two recipes then differ in one thing."""
    rows = torch.arange(50)
    both, unflipped, unpadded = (
        drawn_of(Augment(padding=2), order(rows, 1, 0), 1, 0),
        drawn_of(Augment(padding=2, flip=False), order(rows, 1, 0), 1, 0),
        drawn_of(Augment(padding=0), order(rows, 1, 0), 1, 0),
    )
    assert torch.equal(both.rows, unflipped.rows)
    assert torch.equal(both.top, unflipped.top)
    assert torch.equal(both.rows, unpadded.rows)
    assert torch.equal(both.flip, unpadded.flip)
    for other in ("order", "flip"):  # or an image's place in the epoch would tell its shift
        of_other = generator(0, "epoch", 1, other)
        assert not torch.equal(both.top, torch.randint(5, (len(rows),), generator=of_other))


# --- normalise


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalise_is_the_formula_in_the_memory_format_asked_for(layout: torch.memory_format) -> None:
    pixels = dataset(3).images
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    normalised = Normalise(mean, std, memory_format=layout)(pixels)
    expected = (pixels.numpy().astype(np.float64) / 255 - mean) / std
    assert normalised.dtype == torch.float32
    assert normalised.shape == (3, 3, 6, 5)
    assert normalised.is_contiguous(memory_format=layout)
    assert np.abs(normalised.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_takes_pixels_of_any_strides_and_leaves_them_as_they_are(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (5, 4, 6, 3), dtype=torch.uint8).to(dtype)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = (pixels.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    views: dict[str, Callable[[Tensor], Tensor]] = {
        "as they are": lambda x: x,
        "transposed": lambda x: x.transpose(1, 2),
        "every second column": lambda x: x[:, :, ::2],
        "planes": lambda x: x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        "one image": lambda x: x[:1].expand(5, -1, -1, -1),
        "none": lambda x: x[:0],
    }
    for what, view in views.items():
        before = pixels.clone()
        normalised = Normalise(mean, std)(view(pixels))
        assert torch.equal(normalised, view(expected).permute(0, 3, 1, 2)), what
        assert normalised.is_contiguous()
        assert torch.equal(pixels, before), what


def test_normalise_gives_the_same_bits_in_either_memory_format() -> None:
    pixels = dataset(3).images
    plain, last = (
        Normalise((0.4,) * 3, (0.3,) * 3, memory_format=f)(pixels)
        for f in (torch.contiguous_format, torch.channels_last)
    )
    assert torch.equal(plain, last)


# --- evaluation


@given(rows=st.lists(st.integers(0, 39), max_size=30), batch_size=st.integers(1, 12))
@tried
def test_evaluation_covers_all_rows_in_order_with_a_partial_last_batch(rows: list[int], batch_size: int) -> None:
    of = dataset()
    indices = torch.tensor(rows, dtype=torch.int64)
    batches = list(eval_batches(of, indices, RAW, batch_size))
    shown = torch.cat([labels for _, labels in batches]) if rows else torch.empty(0)
    assert shown.tolist() == rows
    images = torch.cat([x for x, *_ in batches]) if rows else torch.empty(0, 3, 6, 5)
    assert torch.equal(images.round().byte().permute(0, 2, 3, 1), of.images[indices])
    assert all(len(labels) == batch_size for _, labels in batches[:-1])


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gpu_gets_the_same_batches(layout: torch.memory_format) -> None:
    cuda = torch.device("cuda")
    of = dataset()
    on_cpu = replace(train_batches(of), normalise=Normalise((0.4,) * 3, (0.3,) * 3, memory_format=layout))
    on_gpu = replace(on_cpu, dataset=of.to(cuda), normalise=Normalise((0.4,) * 3, (0.3,) * 3, cuda, layout))
    for (x, y, *_), (u, v, *_) in zip(on_cpu.epoch(1, 2), on_gpu.epoch(1, 2), strict=True):
        assert u.device.type == v.device.type == "cuda"
        assert u.is_contiguous(memory_format=layout)
        assert torch.equal(y, v.cpu())
        assert torch.allclose(x, u.cpu(), atol=1e-6)
