"""Where images lie, and that their batches are the same to the bit wherever that is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Quiet, no_waiting, outcome, resume, signalled, start
from PIL import Image
from torch import Tensor

from okdc.data import placement, sending
from okdc.data.augmentation import Augmentation, Examples
from okdc.data.batches import Normalise, TrainBatches, eval_batches
from okdc.data.datasets import Dataset
from okdc.data.ondemand import OnDemand
from okdc.data.placement import place
from okdc.data.sending import AHEAD, Sender
from okdc.data.streaming import batches_of
from okdc.distributed import Ranks
from okdc.errors import Interrupted
from okdc.recipe.schema import Augment

CPU = torch.device("cpu")
SIZE = (6, 5, 3)


class OnHost:
    """A sender whose device is the CPU."""

    def filled(self, shape: tuple[int, ...], fill: Callable[[Tensor], object]) -> Tensor:
        pixels = torch.zeros(shape, dtype=torch.uint8)
        fill(pixels)
        return pixels


def made(n: int = 40) -> Dataset:
    rows = torch.arange(n)
    return Dataset(
        name="made",
        classes=("a", "b"),
        images=torch.randint(1, 256, (n, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        labels=rows.clone(),
        train=rows[: n - n // 4],
        val=rows[n - n // 4 :],
        test=rows[:0],
        fingerprint="",
    )


def batches(dataset: Dataset, ranks: Ranks | None = None) -> TrainBatches:
    normalise = Normalise((0.4,) * 3, (0.3,) * 3, dataset.labels.device)
    source = TrainBatches(dataset, 4, Augmentation(Augment(padding=2)), normalise, 0)
    return replace(source, ranks=ranks) if ranks else source


def of_epoch(source: TrainBatches, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [(images.cpu(), labels.cpu()) for images, labels, *_ in source.epoch(1, start)]


def of_validation(dataset: Dataset) -> list[tuple[Tensor, Tensor]]:
    normalise = Normalise((0.4,) * 3, (0.3,) * 3, dataset.labels.device)
    return [(images.cpu(), labels.cpu()) for images, labels in eval_batches(dataset, dataset.val, normalise, 3)]


def assert_same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> None:
    assert len(a) == len(b) > 0
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_images_on_a_cpu_stay_where_they_are_and_nothing_is_said() -> None:
    dataset = made()
    placed, words = place(dataset, CPU)
    assert placed.images is dataset.images
    assert placed.sender is None
    assert words == ""


def test_images_may_take_half_of_the_free_memory_and_no_byte_more() -> None:
    assert placement.fits(50, 100)
    assert not placement.fits(51, 100)


@pytest.mark.parametrize(
    ("count", "words"), [(344_000, "0.3 MB"), (153_600_000, "154 MB"), (15e9, "15.0 GB"), (85.4e9, "85.4 GB")]
)
def test_sizes_are_said_in_three_digits(count: float, words: str) -> None:
    assert placement._size(int(count)) == words


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(rank=1, count=2, local=1, here=2)])
def test_batches_that_are_sent_are_those_of_resident_images(ranks: Ranks) -> None:
    dataset = made()
    sent = replace(dataset, sender=OnHost())  # type: ignore[arg-type]
    assert_same(of_epoch(batches(dataset, ranks), 2), of_epoch(batches(sent, ranks), 2))
    assert_same(of_validation(dataset), of_validation(sent))


def test_files_are_decoded_into_what_is_sent(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    files = OnDemand(tmp_path, paths, 8)
    dataset = replace(made(), images=torch.empty(0, 8, 8, 3, dtype=torch.uint8), files=files, sender=OnHost())  # type: ignore[arg-type]
    assert np.array_equal(dataset.pixels(torch.tensor([3, 1])).numpy(), pixels[[3, 1]])


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU


def full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A GPU that has so many bytes left."""
    monkeypatch.setattr(placement, "free_bytes", lambda device: free)  # noqa: ARG005


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    yield torch.device("cuda")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.gpu
def test_the_bytes_of_the_images_decide_where_they_lie(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made()
    for spare, resident in ((0, True), (-1, False)):
        full(monkeypatch, 2 * dataset.images.nbytes + spare)
        placed, words = place(dataset, cuda)
        assert placed.images.is_cuda == resident
        assert placed.labels.is_cuda
        assert (placed.sender is None) == resident
        assert ("pinned" in words) != resident


@pytest.mark.gpu
def test_memory_that_torch_keeps_for_reuse_counts_as_free(cuda: torch.device) -> None:
    before = placement.free_bytes(cuda)
    block = torch.empty(2**26, dtype=torch.uint8, device=cuda)
    assert placement.free_bytes(cuda) <= before - 2**26
    del block
    assert placement.free_bytes(cuda) == before


@pytest.mark.gpu
def test_batches_from_the_hosts_memory_are_the_resident_ones_to_the_bit(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = made()
    resident, _ = place(dataset, cuda)
    full(monkeypatch, 0)
    held, _ = place(dataset, cuda)
    for images, labels, *_ in batches(held).epoch(0):
        assert images.is_cuda
        assert labels.is_cuda
    assert_same(of_epoch(batches(resident)), of_epoch(batches(held)))
    with torch.inference_mode():  # as validation: buffers that it makes are written in the next epoch
        assert_same(of_validation(resident), of_validation(held))
    assert_same(of_epoch(batches(resident), 3), of_epoch(batches(held), 3))


@pytest.mark.gpu
def test_batches_go_through_a_few_pinned_buffers_and_the_host_waits_for_no_copy(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: list[Tensor] = []
    real = sending.buffer

    def buffer(count: int) -> Tensor:
        buffers.append(real(count))
        return buffers[-1]

    monkeypatch.setattr(sending, "buffer", buffer)
    full(monkeypatch, 0)
    held, _ = place(made(), cuda)
    drawn = iter(batches(held).epoch(0))
    next(drawn)
    with no_waiting():
        assert len(list(drawn)) == 6
    assert len(buffers) == AHEAD
    assert all(each.is_pinned() for each in buffers)


@pytest.mark.gpu
@pytest.mark.card("nothing is ever late there")
def test_a_buffer_is_not_written_before_the_device_has_read_it(cuda: torch.device) -> None:
    """The device is kept busy; the host is ahead of it."""
    sender = Sender(cuda)
    busy = torch.zeros(2**24, device=cuda)
    sent = []
    for number in range(4 * AHEAD):
        for _ in range(20):
            busy = busy + 1
        sent.append(sender.filled((2**16,), lambda out, number=number: out.fill_(number)) + 0)  # type: ignore[misc]
    assert [pixels.cpu().unique().tolist() for pixels in sent] == [[number] for number in range(4 * AHEAD)]


@pytest.mark.gpu
def test_without_pinned_memory_batches_are_the_same_and_it_is_said(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.empty

    def refused(*size: object, pin_memory: bool = False, **options: object) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return real(*size, **options)  # type: ignore[call-overload, no-any-return]

    dataset = made()
    resident, _ = place(dataset, cuda)
    expected = of_epoch(batches(resident))
    monkeypatch.setattr(torch, "empty", refused)
    full(monkeypatch, 0)
    held, words = place(dataset, cuda)
    assert "no pinned memory" in words
    assert_same(expected, of_epoch(batches(held)))


@pytest.mark.gpu
def test_files_are_pinned_and_sent(cuda: torch.device, tmp_path: Path) -> None:
    n = 12
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(n)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    rows = torch.arange(n)
    dataset = replace(
        made(n),
        images=torch.empty(0, 8, 8, 3, dtype=torch.uint8),
        files=OnDemand(tmp_path, paths, 8),
        train=rows,
        val=rows,
    )
    placed, words = place(dataset, cuda)
    assert "pinned" in words
    assert placed.labels.is_cuda
    raw = {device: Normalise((0.0,) * 3, (1 / 255,) * 3, torch.device(device)) for device in ("cpu", "cuda")}
    here = batches_of(dataset, 4, Augmentation(Augment(padding=0)), raw["cpu"], 0, 0)
    there = batches_of(placed, 4, Augmentation(Augment(padding=0)), raw["cuda"], 0, 0)
    assert_same(as_pixels(here.epoch(0)), as_pixels(there.epoch(0)))
    evaluated, sent = (
        eval_batches(each, rows, raw[device], 5) for device, each in (("cpu", dataset), ("cuda", placed))
    )
    assert_same(as_pixels(evaluated), as_pixels(sent))


def as_pixels(batches: Iterator[Examples] | Iterator[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """A GPU divides by 255 in another way than a CPU."""
    return [(images.cpu().round().byte(), labels.cpu()) for images, labels, *_ in batches]


ON_GPU = ("engine.device=cuda", "engine.compile=off")


@pytest.mark.gpu
@pytest.mark.parametrize("free", [0, 2**40])
def test_a_run_that_goes_on_where_the_images_lie_elsewhere_has_the_same_numbers(
    cuda: torch.device,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    free: int,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    words = (*ON_GPU, "deterministic=true")
    try:
        full(monkeypatch, free)
        whole, tell = Quiet(), signalled(6, signal.SIGINT)
        expected = outcome(start(*words, tell=whole, out=Path("whole")))
        assert any("images" in note and ("pinned" in note) == (free == 0) for note in whole.notes)
        with pytest.raises(Interrupted):
            start(*words, tell=tell, out=Path("parts"))
        full(monkeypatch, 2**40 - free)
        assert outcome(resume(Path("parts"))) == expected
    finally:
        torch.use_deterministic_algorithms(False)
