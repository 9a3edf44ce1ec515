"""Which GPU is taken, in which numbers, and why none is: by what torch would say of GPUs that this machine lacks, and
by the device that is not there.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakegpu
import pytest
import torch
from harness import Quiet, resume, signalled, start

from okdc.distributed import Ranks
from okdc.errors import DeviceError, Interrupted
from okdc.recipe.schema import Engine
from okdc.runs.artefacts import Provenance, RunSettings
from okdc.runs.provenance import differences
from okdc.runs.run import RunDir
from okdc.training import cards, device
from okdc.training.device import choose

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with so many GPUs of a compute capability, of which some take no kernel."""

    def gpus(count: int, capability: tuple[int, int] = (9, 0), unusable: tuple[int, ...] = ()) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: f"card {torch.device(card).index or 0}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(cards, "unusable", lambda card: "busy" if (card.index or 0) in unusable else "")

    yield gpus
    cards._warning.cache_clear()


def group(count: int) -> list[Ranks]:
    return [Ranks(rank, count, rank, count) for rank in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Which one


def test_auto_takes_the_first_gpu_and_a_number_names_another(machine: Machine) -> None:
    machine(2)
    assert (choose(Engine(), 32).device, choose(Engine(), 32).reasons[0]) == ("cuda", "device cuda (card 0)")
    settings = choose(Engine(device="cuda:1"), 32)
    assert settings.torch_device == torch.device("cuda", 1)
    assert settings.cuda
    assert RunSettings.model_validate(settings.saved() | {"compile": "off", "cuda_graph": "off"}).device == "cuda:1"


def test_a_number_that_is_not_there_is_refused_with_how_many_are(machine: Machine) -> None:
    machine(2)
    with pytest.raises(DeviceError, match=r"cuda:2 .* 2 CUDA devices") as caught:
        choose(Engine(device="cuda:2"), 32)
    assert "cuda:1" in caught.value.hint


def test_a_gpu_that_takes_no_kernel_is_left_by_auto_and_refused_where_it_was_asked_for(machine: Machine) -> None:
    machine(2, unusable=(0,))
    settings = choose(Engine(), 32)
    assert (settings.device, settings.reasons[0]) == ("cpu", "device cpu (busy)")
    for asked in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError, match=rf"{asked} cannot be used: busy"):
            choose(Engine(device=asked), 32)
    assert choose(Engine(device="cuda:1"), 32).device == "cuda:1"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate"), RuntimeError("CUDA error: busy\n")]
)
def test_an_error_of_the_first_launch_is_a_reason_in_a_line(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    """Memory that is full, or a GPU that another process holds for itself."""

    def fail(*_: object, **__: object) -> None:
        warnings.warn("a GPU that is too old", stacklevel=2)
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    monkeypatch.setattr(torch, "ones", fail)
    assert cards.unusable(torch.device("cuda")) == f"T4: {str(error).splitlines()[0]}"


def test_each_of_several_processes_tries_its_own_gpu_and_none_goes_to_the_cpu_alone(machine: Machine) -> None:
    machine(2, unusable=(1,))
    first, second = group(2)
    assert choose(Engine(), 32, ranks=first).device == "cuda"
    with pytest.raises(DeviceError, match="busy"):
        choose(Engine(), 32, ranks=second)
    with pytest.raises(DeviceError, match=r"3 processes .* 2 CUDA devices"):
        choose(Engine(), 32, ranks=group(3)[0])


def test_a_number_is_no_business_of_several_processes(machine: Machine) -> None:
    machine(2)
    with pytest.raises(DeviceError, match=r"cuda:1 .* 2 processes"):
        choose(Engine(device="cuda:1"), 32, ranks=group(2)[0])


@pytest.mark.parametrize(("gpus", "ranks", "expected"), [(2, 1, "cuda:1"), (1, 1, "cuda"), (2, 2, "cuda")])
def test_a_run_goes_on_with_its_gpu_or_any_other(machine: Machine, gpus: int, ranks: int, expected: str) -> None:
    machine(gpus)
    recorded = RunSettings.model_validate(
        choose(Engine(device="cpu"), 32).saved() | {"compile": "off", "cuda_graph": "off"}
    )
    there = recorded.model_copy(update={"device": "cuda:1"})
    assert device.continued(there, group(ranks)[0]).device == expected
    assert device.continued(recorded).model_dump(exclude={"track"}) == dict(recorded)
    replayed = recorded.model_copy(update={"cuda_graph": "on"})  # which several processes cannot do
    assert device.continued(replayed, group(ranks)[0]).cuda_graph == ("on" if ranks == 1 else "off")


def test_what_torch_warns_of_when_it_is_asked_for_gpus_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is asked in silence, whoever makes warnings errors. It warns once a process."""
    said = ["CUDA initialization: The driver is too old (found version 12040). Please update:\nwww"]

    def available() -> bool:
        if said:
            warnings.warn(said.pop(), stacklevel=2)
        return False

    cards._warning.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", available)
    for _ in range(2):
        assert choose(Engine(), 32).reasons[0] == "device cpu (The driver is too old (found version 12040))"
    with pytest.raises(DeviceError, match="too old"):
        choose(Engine(device="cuda"), 32)
    cards._warning.cache_clear()


# ---------------------------------------------------------------------------------------------------------------------
# In which numbers


@pytest.mark.parametrize(
    ("capability", "dtype", "layout"),
    [
        ((9, 0), "bfloat16", "channels_last"),
        ((8, 0), "bfloat16", "channels_last"),
        ((7, 5), "float16", "channels_last"),
        ((7, 0), "float16", "channels_last"),
        ((6, 1), "float32", "contiguous"),
    ],
)
def test_the_type_follows_from_what_the_gpu_has(
    machine: Machine, capability: tuple[int, int], dtype: str, layout: str
) -> None:
    machine(1, capability)
    settings = choose(Engine(), 32)
    assert (settings.dtype, settings.memory_format) == (dtype, layout)


def test_bfloat16_that_is_asked_for_is_taken_and_its_emulation_said(machine: Machine) -> None:
    asked = Engine(dtype="bfloat16")
    for capability, expected in (((7, 5), True), ((8, 0), False)):
        machine(1, capability)
        settings = choose(asked, 32)
        assert settings.dtype == "bfloat16"
        assert any("emulates" in reason for reason in settings.reasons) is expected


def test_float16_needs_a_gpu(machine: Machine) -> None:
    machine(0)
    with pytest.raises(DeviceError, match=r"engine\.dtype=float16 .* cpu"):
        choose(Engine(dtype="float16"), 32)
    machine(1)
    settings = choose(Engine(dtype="float16"), 32)
    assert settings.dtype == "float16"
    with settings.autocast():
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.float16


# ---------------------------------------------------------------------------------------------------------------------
# What is recorded


def test_another_gpu_and_other_libraries_are_told_by_name() -> None:
    then = Provenance(versions={"torch": "1", "cuda": "12.6", "cudnn": "9"}, processor="p", gpu="T4")
    assert differences(then, then) == []
    now = Provenance(versions={"torch": "1", "cuda": "13.0", "cudnn": "10"}, processor="p", gpu="V100")
    lines = differences(then, now)
    assert len(lines) == 3
    for line, words in zip(lines, (("cuda", "12.6", "13.0"), ("cudnn", "9", "10"), ("T4", "V100")), strict=True):
        assert all(word in line for word in words), line
    assert "GPU T4 then, none now" in differences(then, Provenance(versions=then.versions, processor="p"))


def test_a_gpu_is_recorded_with_its_libraries_and_a_cpu_adds_nothing(machine: Machine) -> None:
    machine(1)
    made_by = Provenance(versions={"torch": "1"})
    assert cards.recorded(made_by, torch.device("cpu")) is made_by
    found = cards.recorded(made_by, torch.device("cuda"))
    assert found.gpu == "card 0"
    assert found.versions.keys() == {"torch", "cuda", "cudnn"}


def test_a_resumed_run_says_that_another_gpu_emulates_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    path, tell = Path("run"), Quiet()
    with pytest.raises(Interrupted):
        start("engine.dtype=bfloat16", "optim.epochs=1", tell=signalled(2, signal.SIGINT), out=path)
    monkeypatch.setattr(device, "emulates", lambda *_: True)
    monkeypatch.setattr(cards, "recorded", lambda made_by, _: made_by.model_copy(update={"gpu": "T4"}))
    resume(path, tell)
    assert any(note.startswith("not exact to the bit: bfloat16") and "T4" in note for note in tell.notes)


def test_a_run_on_a_cpu_records_no_gpu() -> None:
    info = start("optim.epochs=1").read_info()
    assert info.gpu == ""
    assert not {"cuda", "cudnn"} & set(info.versions)


# ---------------------------------------------------------------------------------------------------------------------
# The device that is not there

TRIED = """
import json, sys
from okdc.errors import DeviceError
from okdc.recipe.schema import Engine
from okdc.training.device import apply, choose
import torch

def tried(**engine):
    try:
        settings = choose(Engine(**engine), 32)
    except DeviceError as error:
        return {"error": error.message}
    apply(settings, False)
    current = torch.cuda.current_device() if settings.cuda else None
    return settings.saved() | {"reason": settings.reasons[0], "current": current}

print(json.dumps([tried(**engine) for engine in json.loads(sys.argv[1])]))
"""


def tried(*engines: dict[str, str], **settings: object) -> list[dict[str, Any]]:
    """What each table of [engine] leads to, in a process that finds such a device, where warnings are errors."""
    if reason := fakegpu.missing():
        pytest.skip(reason)
    command = [sys.executable, "-W", "error", "-c", TRIED, json.dumps(engines)]
    done = subprocess.run(command, capture_output=True, text=True, env=fakegpu.environ(**settings))
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_gpu_without_kernels_is_none() -> None:
    auto, asked = tried({}, {"device": "cuda"}, NOKERNEL=1, CC=60, NAME="P100")
    assert auto["device"] == "cpu"
    for text in (auto["reason"], asked["error"]):
        assert "P100" in text
        assert "no kernel image" in text


def test_a_driver_that_is_too_old_is_told_by_torchs_own_reason() -> None:
    auto, asked = tried({}, {"device": "cuda"}, OLD_DRIVER=12040)
    assert auto["device"] == "cpu"
    assert all("driver" in text and "12040" in text for text in (auto["reason"], asked["error"]))


def test_a_gpu_by_its_number_is_the_one_that_cuda_works_on() -> None:
    second, third, first = tried({"device": "cuda:1"}, {"device": "cuda:2"}, {"device": "cuda:0"}, COUNT=2, CC=75)
    assert [(row["device"], row["current"], row["dtype"]) for row in (second, first)] == [
        ("cuda:1", 1, "float16"),
        ("cuda:0", 0, "float16"),
    ]
    assert "2 CUDA devices" in third["error"]


@pytest.mark.gpu
def test_a_run_of_a_gpu_that_is_not_there_goes_on_with_another_and_says_so() -> None:
    """It is no other GPU by name, so nothing is said to be inexact of it."""
    path, tell = Path("run"), Quiet()
    words = ("engine.device=cuda", "engine.compile=off", "optim.epochs=1")
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(2, signal.SIGINT), out=path)
    run = RunDir(path)
    run.note(settings=run.read_info().settings.model_copy(update={"device": f"cuda:{torch.cuda.device_count()}"}))
    resume(path, tell)
    assert any(note.startswith("device cuda (") and f"cuda:{torch.cuda.device_count()}" in note for note in tell.notes)
    assert not any("not exact to the bit: GPU" in note for note in tell.notes)
