"""The one training loop: epochs of steps, validation, a checkpoint after each epoch and at a signal.

It knows `Method.forward` and nothing of any method. starts.py is how it begins, step.py what it repeats, keep.py what
is kept, result.py reads the test split at the end, ends.py is how it ends early.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch

from okdc.assembly import student as kept
from okdc.assembly.job import Job
from okdc.data.batches import EVAL_BATCH, Batches, Normalise, batches_of, eval_batches
from okdc.data.workers import cores
from okdc.distributed import ALONE, Ranks
from okdc.errors import DeviceError
from okdc.progress import Listener
from okdc.recipe.schema import Recipe
from okdc.runs.files import read_json, write_json
from okdc.runs.run import Run
from okdc.training import checkpoint, device, optim, result
from okdc.training import selection as keep
from okdc.training.device import Settings
from okdc.training.interrupts import StopRequest, attempt, fail, interrupt, stop_if_bad, until_asked
from okdc.training.metrics import Summary, Totals, count
from okdc.training.step import TrainStep


@dataclass
class Position:
    """Where a training is: all of it goes into a checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    totals: Totals | None = None  # of an epoch that was interrupted
    best: list[keep.Record] = field(default_factory=list)  # one a student, none before the first validation
    seconds: float = 0.0  # in training steps, over all starts
    log_rows: int = 0


def train(
    job: Job,
    run: Run,
    settings: Settings,
    at: Position,
    state: dict[str, Any] | None,
    tell: Listener,
    ranks: Ranks = ALONE,
) -> None:
    """Train from `at` (with the tensors of `state`) to the last epoch, then judge and write the result.

    Of several processes each comes here with its rank; the first one writes.
    """
    recipe = job.recipe
    device.apply(settings, recipe.deterministic)
    train_step = TrainStep(job.method, recipe.optim, settings, ranks)
    if state is not None:
        train_step.load(state)
    method = train_step.method

    dataset = job.dataset.to(settings.torch_device)
    assert recipe.data.mean is not None
    assert recipe.data.std is not None
    normalise = Normalise(recipe.data.mean, recipe.data.std, settings.torch_device, settings.torch_memory_format)
    batches = batches_of(dataset, recipe.data, recipe.optim.batch_size, normalise, recipe.seed, settings.workers, ranks)
    steps, epochs = batches.steps, recipe.optim.epochs
    whole = steps * epochs

    def save(totals: list[dict[str, Any]] | None) -> None:
        place = {
            "epoch": at.epoch,
            "step": at.step,
            "totals": totals,
            "best": at.best,
            "seconds": at.seconds,
            "log_rows": at.log_rows,
        }
        checkpoint.save(run, place | train_step.state())

    def record(trained: Summary, validated: Summary | None, began: float) -> None:
        """Keep what an epoch came to."""
        if validated:
            at.best = keep.best(job, at.epoch, validated, at.best)
            if keep.chosen(job, at.best)["epoch"] == at.epoch:
                keep.write_kept(run, job, at.best)
        run.append(_row(at, recipe, trained, validated, batches, time.perf_counter() - began))
        at.log_rows += 1
        save(None)

    def pause(totals: Totals, began: float) -> None:
        """Save what was trained up to here, between two steps."""
        stop_if_bad(totals.read(ranks), run, steps, ranks)
        at.seconds += time.perf_counter() - began
        parts = ranks.gathered(totals.state())
        ranks.first_does(lambda: save(parts))

    def leave(number: int) -> NoReturn:
        interrupt(number, run, at.epoch, at.step, ranks)

    text = ""
    with StopRequest(ranks, tell.note if settings.compiled else None) as stop, tell.training() as bar, closing(batches):
        while at.epoch < epochs:
            # One epoch. Training mode is set anew each time: validation left eval mode behind.
            method.train()
            totals = at.totals or Totals(settings.torch_device)
            at.totals = None
            began = time.perf_counter()
            reading = batches.epoch(at.epoch, at.step)
            for images, labels in until_asked(reading, stop, run, partial(pause, totals, began), leave):
                done = at.epoch * steps + at.step
                try:
                    step = train_step(images, labels, done / whole)
                except DeviceError:  # Ctrl-C in a terminal ends the compiler too
                    stop.heard()
                    raise
                totals.add(step, labels, done)
                at.step += 1
                bar(done + 1, whole, text)
            number = at.epoch + 1

            # The device is waited for here, once an epoch.
            trained = totals.read(ranks)
            at.seconds += time.perf_counter() - began
            stop_if_bad(trained, run, steps, ranks)
            if not torch.stack([p.isfinite().all() for p in train_step.parameters]).all():
                fail(run, f"a weight is not finite after epoch {number}", ranks)
            validated = None
            if len(dataset.val):
                train_step.share_statistics()
                reading = eval_batches(dataset, dataset.val, normalise, EVAL_BATCH, ranks)
                with settings.autocast():
                    counted, _ = attempt(
                        partial(count, method, reading, settings.torch_device),
                        stop, run, partial(pause, totals, time.perf_counter()),
                    )  # fmt: skip
                validated = counted.read(ranks)
                if validated.bad:
                    fail(run, f"validation after epoch {number}: {validated.bad[1]} is not finite", ranks)
            at.epoch, at.step = number, 0
            ranks.first_does(partial(record, trained, validated, began))
            text = _line(at, epochs, trained, validated)
            bar(at.epoch * steps, whole, text)
            if asked := stop.asked():
                leave(asked)

    if ranks.first:  # the others have nothing to add, and leave it their cores
        if not ranks.alone and recipe.engine.threads == "auto":
            torch.set_num_threads(max(settings.threads, cores()))  # torchrun gives each process one
        _finish(job, run, batches, at, tell)


def _finish(job: Job, run: Run, batches: Batches, at: Position, tell: Listener) -> None:
    """Write every student, read the test split once, and write the result."""
    if not at.best:  # no validation images: every student at the last epoch
        at.best = keep.best(job, at.epoch, None, ())
    keep.write_all(run, job, at.best)
    split, rows = job.dataset.final_split
    tell.note(f"judging on the {len(rows):,} {split} images, in float32")
    found = result.judge(job, run, batches, at.seconds)
    judged = {"judged_on": found["judged_on"], "images": found["images"]}
    for student in found["cohort"]:
        _, path = kept.files(run, student["student"])
        write_json(path, read_json(path) | judged | {"top1_pct": student["top1_pct"]})
    write_json(run.result, found)  # last: it is what makes a run complete


# ---------------------------------------------------------------------------------------------------------------------
# What an epoch is remembered by


def _row(
    at: Position, recipe: Recipe, trained: Summary, validated: Summary | None, batches: Batches, seconds: float
) -> dict[str, Any]:
    steps = batches.steps
    return {
        "epoch": at.epoch,
        "lr": optim.rate(recipe.optim, (at.epoch * steps - 1) / (recipe.optim.epochs * steps)),
        "loss": sum(trained.losses.values()),
        "losses": trained.losses,
        "train_top1_pct": trained.top1_pct,
        "val_top1_pct": validated.top1_pct if validated else {},
        "seconds": round(seconds, 3),
    }


def _line(at: Position, epochs: int, trained: Summary, validated: Summary | None) -> str:
    text = f"epoch {at.epoch}/{epochs}  loss {sum(trained.losses.values()):.3f}"
    if validated:
        text += "  val " + " ".join(f"{name} {value:.1f}" for name, value in validated.top1_pct.items())
    return text
