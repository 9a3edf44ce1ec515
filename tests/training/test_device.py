from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest
import torch

from okdc.errors import DeviceError
from okdc.recipe.schema import Engine
from okdc.training import device
from okdc.training.device import Settings, choose, with_workers


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def processor(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(device, "processor", lambda: ("a processor", frozenset(flags)))


@pytest.mark.usefixtures("no_cuda")
def test_every_automatic_choice_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "avx2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = choose(Engine(), 32)
    assert (settings.device, settings.dtype, settings.memory_format) == ("cpu", "float32", "channels_last")
    assert settings.threads == torch.get_num_threads()
    assert settings.reasons == (
        "device cpu (no CUDA device)",
        "dtype float32 (the processor has no bfloat16 instructions)",
        "memory format channels_last (what oneDNN's convolutions want)",
        f"threads {settings.threads} (OMP_NUM_THREADS)",
    )


@pytest.mark.usefixtures("no_cuda")
def test_without_onednn_float32_stays_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    settings = choose(Engine(dtype="float32"), 32)
    assert settings.memory_format == "contiguous"
    assert "memory format contiguous (no oneDNN)" in settings.reasons
    assert choose(Engine(dtype="bfloat16"), 32).memory_format == "channels_last"


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16"])
def test_bfloat16_is_chosen_by_processor_flag_and_brings_channels_last(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, "avx2", flag)
    settings = choose(Engine(), 32)
    assert (settings.dtype, settings.memory_format) == ("bfloat16", "channels_last")
    assert f"dtype bfloat16 ({flag})" in settings.reasons
    assert settings.torch_memory_format == torch.channels_last


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", 1), ("float32", 0)])
def test_what_leaves_bfloat16_is_said_where_bfloat16_was_taken(
    dtype: Literal["bfloat16", "float32"], expected: int
) -> None:
    assert sum("depthwise" in reason for reason in choose(Engine(dtype=dtype), 32).reasons) == expected


@pytest.mark.usefixtures("no_cuda")
def test_tiny_images_stay_in_float32_whatever_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "amx_bf16")
    assert [choose(Engine(), size).dtype for size in (8, 15, 16)] == ["float32", "float32", "bfloat16"]
    assert "8×8" in choose(Engine(), 8).reasons[1]


@pytest.mark.usefixtures("no_cuda")
def test_what_is_asked_for_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    engine = Engine(device="cpu", dtype="bfloat16", memory_format="contiguous", threads=3, workers=2)
    settings = choose(engine, 8)
    assert settings.saved() == engine.model_dump(exclude={"track"})  # a tracker bears on no weight
    assert sum("as asked" in reason for reason in settings.reasons) == 4


@pytest.mark.usefixtures("no_cuda")
def test_saved_settings_choose_themselves_again_on_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "amx_bf16")
    first = choose(Engine(), 32)
    processor(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert choose(Engine.model_validate(first.saved()), 32).saved() == first.saved()


@pytest.mark.usefixtures("no_cuda")
def test_only_images_that_are_not_resident_get_workers_and_a_word_about_them(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    assert choose(Engine(), 32).workers == 0
    assert not any("workers" in reason for reason in choose(Engine(), 32).reasons)
    assert with_workers(choose(Engine(), 32), "auto", streamed=False) == choose(Engine(), 32)
    streamed = with_workers(choose(Engine(), 32), "auto", streamed=True)
    assert streamed.workers >= 1
    assert f"workers {streamed.workers} (cores)" in streamed.reasons
    assert "workers 0 (as asked)" in with_workers(choose(Engine(workers=0), 32), 0, streamed=True).reasons
    assert with_workers(choose(Engine(workers=5), 32), "auto", streamed=True).workers == 5, "a run keeps its number"


@pytest.mark.usefixtures("no_cuda")
def test_cuda_without_a_device_is_refused_with_the_way_out() -> None:
    with pytest.raises(DeviceError, match="no CUDA device") as caught:
        choose(Engine(device="cuda"), 32)
    assert "cpu" in caught.value.hint
    assert caught.value.exit_code == 2


def test_autocast_is_on_for_bfloat16_alone() -> None:
    x = torch.randn(4, 4)
    for dtype, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with Settings("cpu", dtype, "contiguous", 1).autocast():
            assert (x @ x).dtype == expected


def test_applied_threads_are_those_of_the_settings() -> None:
    device.apply(Settings("cpu", "float32", "contiguous", 2), deterministic=False)
    assert torch.get_num_threads() == 2


PAGES = """
import resource
import torch
from okdc.training import device

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 << 20)  # 48 MiB: 12,288 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = device.keep_memory()
calls = [pages() for _ in range(24)]  # the heap grows at first, where something small lies in what was freed
print(kept, min(calls[12:]), max(calls))
"""


def test_memory_of_maps_that_were_freed_is_not_fetched_again_page_by_page() -> None:
    """In a process of its own, as a training is. The heap grew for six calls in 12 of 180 of them, for more in none."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    kept, later, most = done.stdout.split()
    if kept == "False":
        pytest.skip("no glibc")
    assert int(later) < 1_000 < int(most)


@pytest.mark.gpu
def test_a_gpu_is_taken_where_there_is_one_and_named() -> None:
    settings = choose(Engine(), 32)
    assert settings.device == "cuda"
    assert settings.reasons[0] == f"device cuda ({torch.cuda.get_device_name()})"
