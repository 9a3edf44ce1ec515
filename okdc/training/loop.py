"""The one training loop: epochs of steps, validation, and a checkpoint after each epoch and at a signal.

    for each epoch
        for each batch          images and labels -> the method's loss terms -> one backward -> one optimiser step
        read the counts         the only time in an epoch that the host waits for the device
        validate                every head on the validation split
        keep, log, save         each student's best epoch, a line of log.jsonl, checkpoint.pt
        stop early              where validation has been no better for long enough
    read the test split once, write the result

The log tells the seconds of an epoch apart, over all starts: of steps, of waiting for batches, of validation. They are
the host's: a GPU works behind it, and where the host waits for it at the end of an epoch, that belongs to the steps.

The loop calls `Method.forward` and knows no method by name. start.py says how a training begins, interrupts.py how it
ends early, checkpoint.py what has to be saved, averaging.py what is kept beside the weights, selection.py which epoch
and which student are kept, stopping.py when there was no better one for long enough, result.py what the test split is
read for. step.py has the step itself, recording.py how the loop takes it, which `okdc bench` times.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import torch

from okdc import signals
from okdc.assembly.job import Job
from okdc.data.augmentation import Augmentation
from okdc.data.batches import EVAL_BATCH, Normalise, eval_batches
from okdc.data.placement import place
from okdc.data.streaming import batches_of
from okdc.data.workers import cores
from okdc.distributed import ALONE, Ranks
from okdc.errors import DeviceError
from okdc.progress import Progress
from okdc.runs.artefacts import RunSettings
from okdc.runs.run import RunDir
from okdc.tracking import trackers
from okdc.tracking.trackers import Logged
from okdc.training import checkpoint, cost, device, optim, result, selection, stopping
from okdc.training.checkpoint import Position
from okdc.training.device import Settings
from okdc.training.interrupts import Stops, fail, stop_if_bad
from okdc.training.metrics import Summary, Totals, count
from okdc.training.pace import Pace, Work
from okdc.training.recording import CountedStep, Inputs
from okdc.training.step import TrainStep

SKIPPED = "skipped_steps"  # a key of the log


def train(
    job: Job,
    run: RunDir,
    settings: Settings,
    position: Position,
    state: dict[str, Any] | None,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> None:
    """Train from `position` to the last epoch, then read the test split and write the result. Trackers follow.

    `state`: the checkpoint that `position` comes from, or None for a new run. Each of several processes calls this with
    its rank; the first one writes. Raises Interrupted, TrainingError, DataError, DiskError, DeviceError and
    OutOfMemoryError.
    """
    following = trackers.of(job.recipe.engine, progress, job.dataset) if ranks.first else []
    with trackers.following(following, run, position.rows, progress.note) as logged:
        Training(job, run, settings, position, state, progress, ranks, logged).train()


class Training:
    """What the parts of the loop share. Only `position`, the weights and the optimiser change while it runs."""

    def __init__(
        self,
        job: Job,
        run: RunDir,
        settings: Settings,
        position: Position,
        state: dict[str, Any] | None,
        progress: Progress,
        ranks: Ranks,
        logged: Logged = lambda _: None,
    ) -> None:
        recipe = job.recipe
        self.job, self.run, self.settings, self.position = job, run, settings, position
        self.progress, self.ranks, self.logged = progress, ranks, logged
        device.apply(settings, recipe.deterministic)
        self.work = work(job)  # of the method as it was built

        # The method moves to the device before the optimiser exists, and takes its saved tensors before the first step:
        # torch.compile and DistributedDataParallel wrap it there.
        self.train_step = TrainStep(job.method, recipe.optim, settings, ranks, job.steps, job.finetuned)
        if state is not None:
            self.train_step.load(state)
        self.method = self.train_step.method

        # All images move to the device once, as uint8. Those too large for that stay in memory or in files, and their
        # labels move. The networks are there already: what is free is for the images and the steps.
        self.dataset, where = place(job.dataset, settings.torch_device)
        if where:
            progress.note(where)
        self.normalise = Normalise(*job.normalisation, settings.torch_device, settings.torch_memory_format)
        self.batches = batches_of(
            self.dataset,
            recipe.optim.batch_size,
            Augmentation(recipe.augment),
            self.normalise,
            recipe.seed,
            settings.workers,
            ranks,
            balanced=recipe.optim.sampler == "balanced",
            views=self.method.views,
        )
        self.step = CountedStep(self.train_step, self.batches, recipe.seed, progress.note)
        self.steps, self.epochs = self.batches.steps, recipe.optim.epochs
        self.pace = Pace(recipe.optim.batch_size, len(self.dataset.val), len(self.dataset.final_split[1]))
        self._counted = time.perf_counter()  # when `position.seconds` was brought up to date

    def train(self) -> None:
        """Run every epoch that is left, then write the result."""
        position, ranks, whole, text = self.position, self.ranks, self.steps * self.epochs, ""
        with (
            signals.noted(self._say_signal if self.settings.compiled else None, insist=ranks.alone) as received,
            self.progress.training() as show,
            closing(self.batches),
        ):
            self.train_step.without_compiler = partial(self._go_on_without_compiler, received)
            stops = Stops(
                self.run, position, ranks, received, self._save_steps, unreadable=self.dataset.files is not None
            )
            while position.epoch < self.epochs and not self._stalled():
                # Steps. Training mode is set in each epoch, since validation leaves the method in evaluation mode. A
                # resumed epoch continues with the counts and at the step where it was interrupted.
                if changed := self.step.begin(position.epoch):
                    self.progress.note(changed)
                position.totals = totals = position.totals or Totals(self.settings.torch_device)
                self._counted = time.perf_counter()
                self.pace.begin()
                inputs = self._timed(self.step.inputs(position.epoch, position.step))
                for drawn in stops.between_steps(inputs):
                    done = position.epoch * self.steps + position.step
                    try:
                        # The losses are counted on the device: nothing is read before the epoch is over.
                        self.step(drawn, done / whole, totals, done)
                    except DeviceError:
                        received.raise_for_signal()  # Ctrl-C in a terminal goes to the compiler too, which then fails
                        raise
                    position.step += 1
                    if self.pace.step(self.work.of(done)):
                        self._tell_time_left(done + 1)
                    show(done + 1, whole, text)

                # Counts. Here the host waits for the device, once an epoch. A loss or a weight that is not finite ends
                # the run before anything of it is saved: the last checkpoint is from before that.
                trained = totals.read(ranks)
                self._count_seconds()
                self.pace.end()
                stop_if_bad(trained, self.run, self.steps, ranks)
                if not torch.stack([p.isfinite().all() for p in self.train_step.parameters]).all():
                    fail(self.run, f"a weight is not finite after epoch {position.epoch + 1}", ranks)
                if (scaler := self.train_step.scaler) and (reason := scaler.stuck(whole)):
                    why = f"gradients are not finite in float16 after epoch {position.epoch + 1}: {reason}"
                    fail(self.run, why, ranks, hint="a new run with engine.dtype=float32, or a lower optim.lr")

                # Validation chooses epoch and student. It teaches nothing, not even batch statistics.
                began = time.perf_counter()
                validated = self._validate(stops) if len(self.dataset.val) else None
                seconds = {
                    "seconds_steps": position.seconds_epoch - position.seconds_data,
                    "seconds_data": position.seconds_data,
                    "seconds_validation": time.perf_counter() - began,
                }

                # The epoch is over: from here on a checkpoint holds no counts of it.
                position.epoch, position.step, position.totals = position.epoch + 1, 0, None
                position.seconds_epoch = position.seconds_data = 0.0
                ranks.first_does(partial(self._record, trained, validated, seconds))
                if ranks.first:
                    self.logged(position.rows[-1])
                if validated:
                    self.pace.validated(seconds["seconds_validation"])
                self._tell_time_left(position.epoch * self.steps)
                text = self._line(trained, validated)
                show(position.epoch * self.steps, whole, text)
                if number := stops.requested():
                    stops.leave(number)

        self.step.close()
        if ranks.first:  # the other processes end here and leave it their cores
            if not ranks.alone and self.job.recipe.engine.threads == "auto":
                torch.set_num_threads(max(self.settings.threads, cores()))  # torchrun gives each process one
            self._write_result()

    def _stalled(self) -> bool:
        """Whether validation has been no better for as many epochs as the recipe waits: the same in all processes."""
        job, rows = self.job, self.position.rows
        return job.recipe.optim.patience > 0 and self.ranks.first_does(partial(stopping.stalled, job, rows))

    def _validate(self, stops: Stops) -> Summary:
        """Losses and accuracies of every head on the validation images, each process on its part of them."""
        classes = len(self.dataset.classes) if self.job.recipe.cohort.keep_metric == "balanced" else 0
        self.train_step.share_statistics()  # or each process would judge with the batch statistics of its own images
        batches = eval_batches(self.dataset, self.dataset.val, self.normalise, EVAL_BATCH, self.ranks)
        with self.settings.autocast():
            work = partial(count, self.method, batches, self.settings.torch_device, self.train_step.average, classes)
            totals, _ = stops.attempt(work)
        validated = totals.read(self.ranks)
        if validated.bad:
            where = f"validation after epoch {self.position.epoch + 1}"
            fail(self.run, f"{where}: {validated.bad[1]} is not finite", self.ranks)
        return validated

    def _record(self, trained: Summary, validated: Summary | None, seconds: Mapping[str, float]) -> None:
        """Keep what an epoch came to, in the first process: student file, line of the log, checkpoint.

        The checkpoint comes last: a process that dies before it trains the epoch again and overwrites the other two.
        """
        position, job = self.position, self.job
        if validated:
            position.best = selection.best(job, position.epoch, validated, position.best, self.train_step.average)
            if selection.chosen(job, position.best)["epoch"] == position.epoch:
                selection.write_kept(self.run, job, position.best)
        last_step = position.epoch * self.steps - 1
        position.rows.append(
            {
                "epoch": position.epoch,
                "lr": optim.rate(job.recipe.optim, last_step / job.steps, job.steps),
                "loss": sum(trained.losses.values()),
                "losses": trained.losses,
                "train_top1_pct": trained.top1_pct,
                "val_top1_pct": validated.top1_pct if validated else {},
                **({"val_balanced_pct": validated.balanced_pct} if validated and validated.balanced_pct else {}),
                "seconds": round(sum(seconds.values()), 3),
                **{name: round(value, 3) for name, value in seconds.items()},
                **self._skipped_steps(),
            }
        )
        self.run.append(position.rows[-1])
        checkpoint.save(self.run, position.state([]) | self.train_step.state())

    def _tell_time_left(self, done: int) -> None:
        """After so many steps: of those that follow, and of the validations of this epoch and of all after it."""
        if (seconds := self.pace.left(self.work.left(done), self.epochs - self.position.epoch)) is not None:
            self.progress.remaining(seconds)

    def _skipped_steps(self) -> dict[str, int]:
        """For the log: the steps of an epoch whose gradients overflowed. Nothing where nothing is scaled."""
        if not (scaler := self.train_step.scaler):
            return {}
        return {SKIPPED: scaler.skipped - sum(row[SKIPPED] for row in self.position.rows)}

    def _save_steps(self) -> None:
        """Write a checkpoint within an epoch. Every process calls this, since each has counted other images.

        The losses are looked at first: a state that is ruined must not pass for a good one.
        """
        totals = self.position.totals
        assert totals is not None
        stop_if_bad(totals.read(self.ranks), self.run, self.steps, self.ranks)
        self._count_seconds()
        counts = self.ranks.gathered(totals.state())
        self.ranks.first_does(
            lambda: checkpoint.save(self.run, self.position.state(counts) | self.train_step.state()),
        )

    def _count_seconds(self) -> None:
        """Add the time since the last call, or since the epoch began, to the seconds of the training."""
        now = time.perf_counter()
        self.position.seconds += now - self._counted
        self.position.seconds_epoch += now - self._counted
        self._counted = now

    def _timed(self, inputs: Iterator[Inputs]) -> Iterator[Inputs]:
        """The inputs of each step; the time that each is waited for is added to the seconds of data."""
        while True:
            began = time.perf_counter()
            try:
                drawn = next(inputs, None)
            finally:
                self.position.seconds_data += time.perf_counter() - began
            if drawn is None:
                return
            yield drawn

    def _go_on_without_compiler(self, received: signals.Received, settings: Settings) -> None:
        """Say and record that the compiler failed, before the first step is taken without it."""
        received.raise_for_signal()  # Ctrl-C in a terminal goes to the compiler too, which then fails
        self.settings = settings
        self.progress.note(settings.reasons[-1])
        recorded = RunSettings.model_validate(settings.saved())
        self.ranks.first_does(lambda: self.run.note(settings=recorded, reasons=settings.reasons))

    def _say_signal(self, number: signal.Signals) -> None:
        """Answer a signal at once: a step that is being compiled takes a minute."""
        again = "; another one stops at once" if self.ranks.alone else ""
        self.progress.note(f"{number.name}: stopping after this step, which may still be compiling{again}")

    def _write_result(self) -> None:
        """Write every student, read the test split once, and write the result."""
        job, run, position = self.job, self.run, self.position
        if skipped := sum(row.get(SKIPPED, 0) for row in position.rows):
            taken = self.steps * position.epoch
            self.progress.note(f"{skipped:,} of {taken:,} steps were skipped, whose gradients overflowed in float16")
        if position.epoch < self.epochs:
            self.progress.note(stopping.reason(job, position.rows))
        if not position.best:  # no validation images: every student is kept as the last epoch left it
            position.best = selection.best(job, position.epoch, None, (), self.train_step.average)
        selection.write_all(run, job, position.best)
        run.restore_rows(position.rows)  # the result records the log's hash
        split, rows = job.dataset.final_split
        kept = selection.chosen(job, position.best)["student"]
        where = f", student{kept} on the CPU" if self.settings.torch_device.type == "cuda" else ""
        self.progress.note(f"judging on the {len(rows):,} {split} images, in float32{where}")
        result.judge(job, run, self.batches, kept, position, self.train_step.average)

    def _line(self, trained: Summary, validated: Summary | None) -> str:
        text = f"epoch {self.position.epoch}/{self.epochs}  loss {sum(trained.losses.values()):.3f}"
        if validated:
            metric = self.job.recipe.cohort.keep_metric
            text += f"  {'balanced' if metric == 'balanced' else 'val'} {_in_words(validated.accuracy_pct(metric))}"
        return text


def _in_words(accuracies: Mapping[str, float]) -> str:
    """`students 91.2 90.8 fused 92.0`: short enough for a line of 80 columns."""
    students = [name for name in accuracies if re.fullmatch("student[0-9]+", name)]
    words = [f"{name} {value:.1f}" for name, value in accuracies.items() if name not in students]
    if len(students) < 2:
        return " ".join([*(f"{name} {accuracies[name]:.1f}" for name in students), *words])
    return " ".join(["students", *(f"{accuracies[name]:.1f}" for name in students), *words])


def work(job: Job) -> Work:
    """What the steps cost beside each other, where the method does something else from an epoch on."""
    epochs, macs = job.recipe.optim.epochs, None
    if len(firsts := job.method.first_epochs(epochs)) > 1:
        macs = cost.part_macs(job.method, job.recipe.optim.batch_size, [first / epochs for first in firsts])
    return Work(job.steps, [first * (job.steps // epochs) for first in firsts], macs)
