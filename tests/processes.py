"""Several processes that train one run together, as torchrun starts them, without the seconds that torchrun takes.

`together` is for the tests; the rest is what its processes do. Under torchrun itself this module is a command:
`-m processes okdc's words` is okdc, but each process tells its number, and waits in its second epoch for a signal.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import compilers
import numpy.typing as npt
import torch
from asking import Answer
from harness import STEPS, Quiet, built, recipe, signalled
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from okdc.__main__ import main
from okdc.assembly import job as assembly
from okdc.data.augmentation import Augmentation
from okdc.data.batches import Normalise, TrainBatches
from okdc.distributed import Ranks
from okdc.errors import DiskError, OkdcError
from okdc.methods.base import Batch, Step
from okdc.recipe.schema import Augment
from okdc.runs.artefacts import Provenance
from okdc.runs.run import RunDir
from okdc.training import checkpoint, compiling, device, interrupts
from okdc.training import start as starts
from okdc.training.metrics import Totals
from okdc.training.step import TrainStep


def together(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` returns in each of `count` processes that are one group; an exit code for one that was killed.

    `work` is of a module that is on the path. Each process has a folder of its own, rank0, rank1, ... in this one.
    """
    # As torchrun's agent does, who keeps the addresses of all: no port has to be guessed.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["okdc.training.series", "sklearn.datasets", "torch._dynamo", "processes"])
    started = []
    for rank in range(count):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OKDC_CACHE": os.environ["OKDC_CACHE"],
            "OMP_NUM_THREADS": "1",
        }
        folder = Path(f"rank{rank}").absolute()
        folder.mkdir(exist_ok=True)
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(there, folder, environment, work, args))
        process.start()
        there.close()
        started.append((process, here))
    found = []
    for process, here in started:
        try:
            found.append(here.recv())
        except EOFError:  # killed
            process.join()
            found.append(process.exitcode)
        process.join()
        process.close()
        here.close()
    if errors := [error for error in found if isinstance(error, _Failed)]:
        raise AssertionError("\n".join(error.text for error in errors))
    return found


@dataclass(frozen=True)
class _Failed:
    """A process ended by an error that is none of okdc's."""

    text: str


def _child(pipe: Connection, folder: Path, environment: dict[str, str], work: Callable[..., Any], args: Any) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # fvcore, as in pyproject.toml
    try:
        pipe.send(work(*args))
    except BaseException:
        pipe.send(_Failed(traceback.format_exc()))


# ---------------------------------------------------------------------------------------------------------------------
# A training


@dataclass(frozen=True)
class Told:
    """How a training ended in one process."""

    error: str = ""  # the class
    message: str = ""
    hint: str = ""
    code: int = 0
    notes: tuple[str, ...] = field(default=(), compare=False)
    calls: int = field(default=0, compare=False)  # of the progress bar
    threads: int = field(default=0, compare=False)  # that it had in the end


def training(
    out: Path,
    words: tuple[str, ...] = (),
    signals: dict[int, tuple[int, signal.Signals]] | None = None,
    asking_every: int = 1,
) -> Told:
    """Start the tiny recipe at `out`, or go on with it. `signals`: rank -> at which call of its bar it gets which.

    The processes ask each other for signals after so many steps.
    """
    interrupts.STEPS_OF_SIGNAL = asking_every
    ranks = Ranks.of_environment()
    tell = signalled(*signals[ranks.rank]) if signals and ranks.rank in signals else Quiet()
    error: OkdcError | None = None
    try:
        if (out / "run.json").exists():
            starts.resume(RunDir.open(out), tell, None, ranks)
        else:
            starts.start(replace(recipe(*words), stem="tiny"), out, Provenance(), tell, ranks)
    except OkdcError as caught:
        error = caught
    notes, calls = tuple(tell.notes), len(tell.counts)
    if error is None:
        return Told(notes=notes, calls=calls, threads=torch.get_num_threads())
    return Told(type(error).__name__, error.message, error.hint, error.exit_code, notes, calls)


def asked(*words: str) -> Answer:
    """okdc, asked in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return Answer(code, out.getvalue(), err.getvalue())


def damaged(out: Path, words: tuple[str, ...]) -> Answer:
    """okdc's distill, of images of which only the first few are looked at before the training."""
    from okdc.data import ondemand

    ondemand.PROBE = 1
    return asked("distill", *words, "-o", str(out))


def broken(where: str, rank: int, out: Path) -> Answer:
    """okdc's distill of the tiny recipe, of which one process alone meets something at its second epoch."""
    recipe()
    if Ranks.of_environment().rank == rank:
        calls = 0

        def breaks(*_: Any, **__: Any) -> None:
            nonlocal calls
            calls += 1
            if where == "disk":
                raise DiskError("no space left", hint="free some")
            if where == "bug":
                raise ZeroDivisionError("of one process")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

        if where == "disk":
            checkpoint.save = breaks
        elif where == "bug":
            TrainStep.__call__ = breaks  # type: ignore[assignment, method-assign]
        else:
            assembly.job = breaks  # type: ignore[assignment]
    return asked("distill", "tiny.toml", "-o", str(out))


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def plain(num_classes: int = 10) -> nn.Module:
    """A student that normalises nothing, so that an image has no say in what becomes of another."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 8, 1), (8, 16, 2), (16, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Learned:
    """What some steps came to in one process."""

    weights: Arrays
    buffers: Arrays  # and the averages of statistics, where the first process's were given to all
    momenta: list[npt.NDArray[Any]]
    losses: dict[str, float]  # means over all processes
    layouts: set[tuple[int, ...]]  # strides of the momenta of 3×3 convolutions, sorted
    compile: str  # on or off, in the end


def stepped(cases: dict[str, tuple[str, ...]], steps: int = 3) -> dict[str, Learned]:
    """The first steps of each recipe, by this process and those that it is connected with."""
    ranks = Ranks.of_environment()
    with ranks.joined("cpu"):
        return {name: _learned(words, steps, ranks) for name, words in cases.items()}


def thawed(cases: dict[str, tuple[str, ...]], share: bool = True) -> dict[str, Learned]:
    """Three steps of an epoch, and three of a second: with it the backbones learn, or a part of the method begins.

    `share`: the first process's statistics are given to all in the end, as before a validation.
    """
    ranks = Ranks.of_environment()
    with ranks.joined("cpu"):
        return {name: _learned(words, 3, ranks, epochs=2, share=share) for name, words in cases.items()}


def traced(cases: dict[str, tuple[str, ...]]) -> dict[str, Learned]:
    """The same, compiled by the tracer alone."""
    from okdc.training import step

    step.compiled = compilers.traced
    compiling.without_compiler = lambda device: ""  # noqa: ARG005
    return stepped({name: (*words, "engine.compile=on") for name, words in cases.items()})


FALLEN = {
    "the first process": (0, 1, "forward"),
    "the second process": (1, 1, "backward"),
    "the second process, at its second step": (1, 3, "backward"),  # two calls a step, while it is tried
    "both": (None, 1, "forward"),
}


def fallen_back(words: tuple[str, ...]) -> dict[str, Learned]:
    """What steps come to for which the compiler fails in some process, and without one."""
    from okdc.training import step

    ranks = Ranks.of_environment()
    with ranks.joined("cpu"):
        found = {"eager": _learned(words, 3, ranks)}
        for name, (rank, call, where) in FALLEN.items():
            fails = rank in (None, ranks.rank)
            step.compiled = compilers.failing_at(call, where) if fails else lambda method, *_: method
            found[name] = _learned(words, 3, ranks, compile="on", may_fall_back=True)
    return found


def _learned(
    words: tuple[str, ...], steps: int, ranks: Ranks, epochs: int = 1, *, share: bool = True, **changes: Any
) -> Learned:
    job = built(recipe(*words))
    settings = starts.decided(device.choose(job.recipe.engine, job.recipe.data.image_size, ranks=ranks), job, ranks)
    settings = replace(settings, **changes)
    step = TrainStep(job.method, job.recipe.optim, settings, ranks, finetuned=job.finetuned)
    normalise = Normalise(*job.normalisation, memory_format=settings.torch_memory_format)
    augmentation = Augmentation(Augment(padding=1))
    size, views = job.recipe.optim.batch_size, job.method.views
    source = TrainBatches(job.dataset, size, augmentation, normalise, 0, ranks, views=views)
    for epoch in range(epochs):
        step.begin(epoch)
        totals = Totals(torch.device("cpu"))
        for i, examples in zip(range(steps), source.epoch(epoch), strict=False):
            totals.add(step(Batch(*examples), i / steps), examples.labels, i)
    if share:
        step.share_statistics()
    statistics = step.average.statistics() if step.average else []
    momenta = [step.optimizer.state[p]["momentum_buffer"] for p in step.parameters]
    return Learned(
        {name: p.detach().numpy() for name, p in job.method.named_parameters()},
        {name: b.numpy() for name, b in job.method.named_buffers()}
        | {f"average {n}": b.numpy() for n, b in enumerate(statistics)},
        [m.numpy() for m in momenta],
        totals.read(ranks).losses,
        {tuple(sorted(m.stride())) for m in momenta if m.shape[2:] == (3, 3)},
        step.settings.compile,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Under torchrun


def _hold() -> None:
    """Before each step of the second epoch, wait for a signal, if there is a file that says so."""
    step, count = TrainStep.__call__, 0
    interrupts.STEPS_OF_SIGNAL = 1

    def held(self: TrainStep, batch: Batch, done: float) -> Step:
        nonlocal count
        count += 1
        if count == STEPS + 2 and Path("hold").exists():
            Path(f"waiting{self.ranks.rank}").write_text(str(os.getpid()), encoding="utf-8")
            _await_signal()
        return step(self, batch, done)

    TrainStep.__call__ = held  # type: ignore[method-assign]


def _await_signal() -> None:
    """Wait until the loop's own handler of a signal has been called."""
    received: list[int] = []
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, frame: types.FrameType | None) -> None:
        handlers[number](number, frame)
        received.append(number)

    for number in handlers:
        signal.signal(number, receive)
    until = time.monotonic() + 300  # nobody may be left to send one
    while not received and time.monotonic() < until:
        time.sleep(0.01)
    for number, handler in handlers.items():
        signal.signal(number, handler)


if __name__ == "__main__":
    _hold()
    sys.exit(main())
