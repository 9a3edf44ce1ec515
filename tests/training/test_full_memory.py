"""A full memory, wherever a training meets it: one error that names device and amounts, and a run that can go on."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import fakegpu
import pytest
import torch
from harness import outcome, resume, start, uninterrupted

from okdc.errors import OutOfMemoryError
from okdc.runs.run import RunDir
from okdc.training import loop, result
from okdc.training.step import TrainStep

TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 10.50 MiB is"


def full_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, error: Exception) -> None:
    """One call of a function finds no memory."""
    real: Callable[..., object] = getattr(owner, name)
    calls = 0

    def wrapped(*args: object, **keys: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return real(*args, **keys)

    monkeypatch.setattr(owner, name, wrapped)


PLACES = {
    "moving the images": (loop, "place", 1, False),
    "a step": (TrainStep, "_learn", 2, False),
    "a later step": (TrainStep, "_learn", 8, True),
    "validation": (loop, "count", 2, True),
    "the judgement": (result, "_answers", 1, True),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_gpu_is_one_error_and_the_run_goes_on_from_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    owner, name, call, saved = PLACES[place]
    with monkeypatch.context() as patched:
        full_at(patched, owner, name, call, torch.OutOfMemoryError(TEXT))
        with pytest.raises(OutOfMemoryError) as caught:
            start(out=Path("run"))
    error = caught.value
    assert (error.kind, error.exit_code) == ("memory", 2)
    for part in ("cuda:0", "2.00 GiB", "10.50 MiB", "15.77 GiB"):
        assert part in error.message
    for part in ("okdc resume run", "optim.batch_size", "image_size", "--dtype", "--device cpu"):
        assert part in error.hint
    assert ("checkpoint" in error.hint) == saved
    run = RunDir.open(Path("run"))
    assert run.state() == "resumable"
    assert outcome(resume(run.path)) == uninterrupted()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate 4294967296 bytes.")]
)
def test_a_full_cpu_is_the_same_error_and_no_other_device_helps(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    full_at(monkeypatch, TrainStep, "_learn", 2, error)
    with pytest.raises(OutOfMemoryError, match="on cpu") as caught:
        start(out=Path("run"))
    assert ("4.00 GiB" in caught.value.message) == isinstance(error, RuntimeError)
    assert "okdc resume run" in caught.value.hint
    assert "--device" not in caught.value.hint


def test_the_error_keeps_no_tensor_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the memory would stay full in a notebook, which keeps its last error."""
    steps: list[weakref.ref[TrainStep]] = []

    def full(self: TrainStep, *_: object) -> None:
        steps.append(weakref.ref(self))
        raise torch.OutOfMemoryError(TEXT)

    monkeypatch.setattr(TrainStep, "_learn", full)
    with pytest.raises(OutOfMemoryError) as caught:
        start(out=Path("run"))
    gc.collect()
    assert caught.value.__cause__ is not None
    assert steps[0]() is None


@pytest.fixture
def small_gpu() -> Iterator[None]:
    """torch may take 48 MB of the GPU beside what the process holds already, such as cuBLAS's workspaces."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 48e6) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.usefixtures("small_gpu")
def test_a_batch_that_is_too_large_for_a_gpu() -> None:
    words = ("engine.device=cuda", "engine.compile=off", "data.train_images=900", "optim.batch_size=900")
    with pytest.raises(OutOfMemoryError, match=r"cuda:0: .* asked for, .* free") as caught:
        start(*words, out=Path("run"))
    assert "okdc resume run" in caught.value.hint
    free = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    assert free > 24e6  # what the training took is free again


@pytest.mark.skipif(bool(fakegpu.missing()), reason=fakegpu.missing())
@pytest.mark.parametrize(("before", "warned"), [("", True), ("main._quieten_torch()", False)])
def test_torch_warns_of_nothing_that_okdc_says(before: str, warned: bool) -> None:
    code = f"from okdc import __main__ as main\n{before}\nimport torch\ntorch.empty(3 << 30, device='cuda')"
    environment = {name: value for name, value in fakegpu.environ(GB=1).items() if name != "TORCH_CPP_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "OutOfMemoryError" in done.stderr
    assert ("CUDACachingAllocator" in done.stderr.partition("Traceback")[0]) == warned
