"""How long a training will take: its own steps, evaluation and checkpoint, a few of each, on its own images.

Nothing is kept of it. The job's method is trained a little and its batch statistics move, so that the job is used up.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from okdc.assembly.job import Job
from okdc.data.batches import EVAL_BATCH, eval_batches
from okdc.distributed import ALONE
from okdc.errors import DiskError
from okdc.progress import Progress
from okdc.runs.run import RunDir
from okdc.training import checkpoint, recording
from okdc.training.checkpoint import Position
from okdc.training.device import Settings
from okdc.training.loop import Training
from okdc.training.metrics import Totals, count
from okdc.training.pace import JUDGING
from okdc.training.recording import Inputs

SECONDS = 8.0  # for the timed steps, if they are short
FEWEST, MOST = 4, 400  # timed spans, however long or short they are
SPAN_S = 0.1  # the shortest span: a GPU is waited for only at the end of each
WARM = recording.WARM + 2  # steps before the first span: kernels are chosen, a compiler compiles, a GPU's step recorded
SLOW_S = 2.0  # a step as long as this is warm after the first


@dataclass(frozen=True)
class Spread:
    """Seconds of something that was timed: the median of n, and what a tenth of them is below and above."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        ordered = sorted(seconds)
        tenth = len(ordered) // 10
        return cls(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], len(ordered))

    def times(self, count: float, more: float = 0.0) -> Spread:
        """`count` of it, and `more` seconds beside."""
        return Spread(self.median * count + more, self.low * count + more, self.high * count + more, self.n)

    def __add__(self, other: Spread) -> Spread:
        """Both, one after the other: slow moments of a machine come to both alike."""
        return Spread(self.median + other.median, self.low + other.low, self.high + other.high, min(self.n, other.n))


@dataclass(frozen=True)
class Duration:
    """What a training takes, in seconds."""

    step: Spread  # with its batch, of the last epoch
    steps: int  # of an epoch
    epochs: int
    earlier: tuple[tuple[int, Spread], ...]  # of each earlier part: its epochs, and a step of them
    start: float  # what the first steps took longer: compiling, for one
    validation: float  # of an epoch
    saving: float  # of an epoch's checkpoint
    judging: float  # of the end

    @property
    def epoch(self) -> Spread:
        return self._epoch_of(self.step)

    @property
    def whole(self) -> Spread:
        learning = self.epoch.times(self.epochs - sum(n for n, _ in self.earlier), self.start + self.judging)
        for epochs, step in self.earlier:
            learning += self._epoch_of(step).times(epochs)
        return learning

    @property
    def mean_step(self) -> float:
        """Seconds of a step, the mean over all epochs of the medians."""
        last = self.epochs - sum(epochs for epochs, _ in self.earlier)
        return sum(epochs * step.median for epochs, step in (*self.earlier, (last, self.step))) / self.epochs

    def _epoch_of(self, step: Spread) -> Spread:
        return step.times(self.steps, self.validation + self.saving)


def measure(job: Job, settings: Settings, progress: Progress, seconds: float) -> tuple[Duration, Training]:
    """Time the parts of a job's training, on its device. The training is given back for what else it can tell.

    Raises what the first steps of a training raise.
    """
    nowhere = RunDir(Path("no run"))  # no step writes anything
    training = Training(job, nowhere, settings, Position(), None, progress, ALONE)
    wait: Callable[[], object] = torch.cuda.synchronize if settings.cuda else lambda: None
    firsts = job.changes
    with closing(training.batches):
        timed = [_steps(training, wait, seconds / len(firsts), first) for first in firsts]
        training.step.close()
    steps, start = [step for step, _ in timed], sum(more for _, more in timed)
    lengths = [following - first for first, following in itertools.pairwise(firsts)]
    dataset, rows = training.dataset, job.dataset.final_split[1]
    with settings.autocast():
        validation = _evaluation(training, dataset.val, wait, seconds / 4)
    judging = JUDGING * _evaluation(training, rows, wait, seconds / 4)
    saving = _saving(training)
    earlier = tuple(zip(lengths, steps[:-1], strict=True))
    took = Duration(steps[-1], training.steps, training.epochs, earlier, start, validation, saving, judging)
    return took, training


def _steps(training: Training, wait: Callable[[], object], seconds: float, epoch: int) -> tuple[Spread, float]:
    """Seconds of a step of an epoch in each timed span, and what the steps before the first span took longer."""
    training.step.begin(epoch)  # it may compute something else than the epochs before
    totals, whole = Totals(training.settings.torch_device), training.steps * training.epochs
    inputs, taken = _inputs(training), 0

    def take(steps: int) -> float:
        nonlocal taken
        began = time.perf_counter()
        for _ in range(steps):
            training.step(next(inputs), min(taken / whole, 1.0), totals, taken)
            taken += 1
        wait()
        return time.perf_counter() - began

    warming = [take(1)]
    while len(warming) < WARM and not (warming[-1] > SLOW_S and not training.settings.cuda):
        warming.append(take(1))
    span = max(1, round(SPAN_S / max(warming[-1], 1e-4)))
    spans: list[float] = []
    until = time.perf_counter() + seconds
    while len(spans) < FEWEST or (len(spans) < MOST and time.perf_counter() < until):
        spans.append(take(span) / span)
    step = Spread.of(spans)
    return step, max(0.0, sum(warming) - len(warming) * step.median)


def _saving(training: Training) -> float:
    """Seconds of a checkpoint; 0 where there is no room for one to try with."""
    began = time.perf_counter()
    with contextlib.suppress(OSError, DiskError), tempfile.TemporaryDirectory() as folder:
        checkpoint.save(RunDir(Path(folder)), training.position.state([]) | training.train_step.state())
        return time.perf_counter() - began
    return 0.0


def _inputs(training: Training) -> Iterator[Inputs]:
    """What the steps of one epoch after the other take, without end."""
    epoch = 0
    while True:
        yield from training.step.inputs(epoch, 0)
        epoch += 1


def _evaluation(training: Training, rows: Tensor, wait: Callable[[], object], seconds: float) -> float:
    """Seconds that all heads take for the images of `rows`: of some batches, and the rest in proportion."""
    if not len(rows):
        return 0.0
    evaluated, spent = 0, 0.0
    batches: Iterable[tuple[Tensor, Tensor]] = eval_batches(training.dataset, rows, training.normalise, EVAL_BATCH)
    iterator = iter(batches)
    while not evaluated or spent < seconds:
        began = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            break
        count(training.method, [batch], training.settings.torch_device, training.train_step.average)
        wait()
        spent += time.perf_counter() - began
        evaluated += len(batch[1])
    return spent * len(rows) / evaluated
