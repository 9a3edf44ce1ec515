"""Shared fixtures. Every test runs offline, on one thread, in a folder of its own.

What the fixtures need of okdc they import themselves: a worker that only reads recipes pays for nothing else.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: two workers share two cores

import functools
import gc
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakegpu
import pytest
import torch
from sharing import Shared

if TYPE_CHECKING:
    from okdc.runs.run import RunDir

torch.set_num_threads(1)

# A shell starts what runs in its background deaf to Ctrl-C, and so would be every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What torch holds lives as long as the process. Looking through it took 4.5 of 62 CPU seconds of three files.
gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """runs/, the cache and the working directory of a test are its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OKDC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OKDC_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("OKDC_DATA_ROOT", raising=False)
    yield
    torch.set_num_threads(1)


# The longest first, so that no worker is left with one at the end.
FIRST = ("test_compiling.py", "test_any_network.py", "test_every_network.py", "test_faults.py", "test_adapters.py")
LATE = ("test_every_method.py", "test_every_pair.py")  # whether it runs at all: after whether it computes what it says
BY_CASE = (*LATE, "test_gpu.py", "test_gpu_methods.py", "test_recording.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path.name))
    for item in items:
        if "long" in item.keywords and "long" not in config.getoption("-m"):
            item.add_marker(pytest.mark.skip(reason="takes long: pytest -m long"))
        if "gpu" in item.keywords and (reason := _no_gpu(item)):
            item.add_marker(pytest.mark.skip(reason=reason))


def _place(name: str) -> int:
    if name in LATE:
        return LATE.index(name) + 1
    return FIRST.index(name) - len(FIRST) if name in FIRST else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes whole files: what a module's fixtures and caches hold is made once.

    Of the last ones it takes all cases of one method, network or recipe, and the workers end together. The gpu tests
    are a run of their own.
    """
    from xdist.scheduler import LoadScopeScheduling

    def scope(nodeid: str) -> str:
        file, _, case = nodeid.partition("::")
        return f"{file} {case.split('-')[0]}" if file.endswith(BY_CASE) else file

    config.option.loadscopereorder = False  # not by the number of tests
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope
    return scheduler


def _no_gpu(item: pytest.Item) -> str:
    """Why a test of a GPU cannot be run on what there is, or nothing."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if (card := item.get_closest_marker("card")) and fakegpu.present():
        return f"not on tests/fakegpu: {card.args[0]}"
    if item.get_closest_marker("fakegpu") and not fakegpu.present():
        return "only on the device that is not there: python tests/fakegpu pytest -m gpu"
    return ""


@pytest.fixture(autouse=True)
def _operators_once() -> None:
    """torch reads the source of all of its ONNX operators for every export, which takes half a second.

    Where a process has exported before, its other exports share what was read; another process reads it anew.
    """
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module and not isinstance(module.ONNXRegistry.from_torchlib, functools._lru_cache_wrapper):
        module.ONNXRegistry.from_torchlib = staticmethod(functools.cache(module.ONNXRegistry.from_torchlib))


@pytest.fixture(autouse=True)
def _numbers(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the device that is not there the CPU computes for its kernels, but where a compiler would see that."""
    if not fakegpu.present():
        yield
    elif "unmirrored" in request.keywords:
        # How much is printed of a tensor depends on its numbers, and anything may stand there.
        request.getfixturevalue("monkeypatch").setattr(torch.Tensor, "__repr__", lambda t: f"<{t.dtype} {t.shape}>")
        yield
    else:
        from fakegpu.mirror import mirrored

        with mirrored():
            yield


# One short real run and one export of it, for all tests of what comes after training.


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    own = tmp_path_factory.getbasetemp()
    return Shared((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared")


@pytest.fixture(scope="session")
def finished(shared: Shared) -> RunDir:
    """A complete run on the digits; tests that write into it take `run` instead."""
    from okdc.__main__ import main
    from okdc.runs.run import RunDir

    def train(path: Path) -> None:
        assert main(["distill", "optim.epochs=8", "-o", str(path)]) == 0

    return RunDir.open(shared.made("run", train))


@pytest.fixture
def run(finished: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the finished run, the test's own."""
    shutil.copytree(finished.path, tmp_path / "run")
    return type(finished).open(tmp_path / "run")


@pytest.fixture(scope="session")
def blob(finished: RunDir, shared: Shared) -> bytes:
    """The run's student as an ONNX file: an export takes seconds, so there is one."""
    from okdc.assembly import student as students
    from okdc.deploy import onnx

    def export(path: Path) -> None:
        student = students.load(finished)
        path.write_bytes(onnx.to_onnx(student.network, student.info))

    return shared.made("student.onnx", export).read_bytes()


@pytest.fixture
def exported(run: RunDir, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle of a run, made by the command from the one export."""
    from okdc.__main__ import main
    from okdc.deploy import onnx

    monkeypatch.setattr(onnx, "to_onnx", lambda *_: blob)
    assert main(["export", str(run.path), "--onnx"]) == 0
    return run.path / "bundle"


@pytest.fixture(scope="session")
def shipped(finished: RunDir, shared: Shared) -> Path:
    """The digits' bundle with all three models; tests that write into it take `bundle` instead."""

    from okdc.__main__ import main

    def export(folder: Path) -> None:
        run = shutil.copytree(finished.path, folder / "run")
        assert main(["export", str(run), "--onnx", "--int8", "--fp16"]) == 0

    return shared.made("shipped", export) / "run" / "bundle"
