"""A study's runs, trained where they are missing: one after the other here, or several side by side as processes.

Each run goes through the start and the continuation that every run has: whatever ends a study, the next call goes on
with what is left. A run whose loss is not finite has failed, and the others go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from okdc import signals
from okdc.data.workers import cores
from okdc.errors import Interrupted, RunError, TrainingError, UsageError
from okdc.progress import Progress
from okdc.runs.artefacts import Provenance
from okdc.runs.run import RunDir
from okdc.studies.plan import LEFT, Planned, check_brought
from okdc.training import start

POLL_S = 0.2  # how often processes are looked at
LOGS = "logs"  # the folder of what processes print


def check(runs: Sequence[Planned], jobs: int) -> None:
    """Raises RecipeError for a recipe that cannot be trained, RunError for a folder that holds another run, UsageError
    for more jobs than cores.
    """
    if jobs > cores():
        raise UsageError(f"--jobs {jobs}: expected {cores()} at most, as many as there are cores")
    for run in runs:
        check_brought(run, run.resolved())


def train(runs: Sequence[Planned], jobs: int, made_by: Provenance, tell: Progress, go_on: str) -> None:
    """Train what is missing of `runs`, in their order. Each is then complete, failed, or trained by somebody else.

    `go_on` is the command that continues the study. Raises Interrupted at a signal, and what a start raises but for
    TrainingError.
    """
    left = [run for run in runs if run.state() in LEFT]
    tell.note(f"{len(runs) - len(left)} of {len(runs)} runs are there; to train: {len(left)}")
    if not left:
        return
    try:
        if jobs == 1:
            _one_by_one(left, len(runs), made_by, tell)
        else:
            _side_by_side(left, len(runs), jobs, tell)
    except Interrupted as error:
        raise Interrupted(error.message, exit_code=error.exit_code, hint=go_on, run=error.run) from None


def _one_by_one(left: Sequence[Planned], count: int, made_by: Provenance, tell: Progress) -> None:
    with signals.raised():  # between two trainings; the loop, which saves first, notes signals itself
        try:
            for number, run in enumerate(left, count - len(left) + 1):
                tell.note(f"{run.name}: {number} of {count}")
                _one(run, made_by, tell)
        except KeyboardInterrupt as stop:
            number = signals.signal_of(stop)
            raise Interrupted(f"{number.name}: the study can be continued", exit_code=128 + number) from None


def _without_teacher(run: Planned) -> str:
    """Why a run cannot be trained, where its teacher has not come to its end; nothing otherwise."""
    if run.teacher is None or (state := RunDir(run.teacher).state()) == "complete":
        return ""
    return f"{run.name} is left out: its teacher {run.teacher} is {state}"


def _one(run: Planned, made_by: Provenance, tell: Progress) -> None:
    """Raises what a start raises, but for a training that failed and a run that another process has taken."""
    if reason := _without_teacher(run):
        tell.note(reason)
        return
    there = RunDir(run.folder)
    try:
        if there.is_begun():
            start.resume(there, tell)
        else:
            start.start(run.resolved(), run.folder, made_by, tell)
    except TrainingError as error:  # the run remembers it; others may do better
        tell.note(f"{run.name} failed: {error.message}")
    except RunError as error:
        if run.state() not in ("running", "complete"):
            raise
        tell.note(f"{run.name}: {error.message}; another process trains it")


# ---------------------------------------------------------------------------------------------------------------------
# Side by side


@dataclass
class _Child:
    run: Planned
    process: subprocess.Popen[bytes]
    log: Path


def _side_by_side(left: Sequence[Planned], count: int, jobs: int, tell: Progress) -> None:
    """Each run is a process of its own with its share of the cores; what it prints goes to a file."""
    threads = max(1, cores() // jobs)
    tell.note(f"{jobs} runs side by side, {threads} thread{'s' if threads > 1 else ''} each")
    waiting, children, done = list(left), list[_Child](), count - len(left)
    unfinished = {run.folder for run in left}  # teachers among these come before what they teach
    with signals.raised():
        try:
            while waiting or children:
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    done += 1
                    unfinished.discard(child.run.folder)
                    _say_end(child, done, count, tell)
                for run in [run for run in waiting if run.teacher not in unfinished]:
                    if reason := _without_teacher(run):
                        waiting.remove(run)
                        tell.note(reason)
                    elif len(children) < jobs:
                        waiting.remove(run)
                        children.append(_begun(run, threads))
                        tell.note(f"{run.name} begins")
                time.sleep(POLL_S)
        except KeyboardInterrupt as stop:
            number = signals.signal_of(stop)
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(number)
            for child in children:
                child.process.wait()
            raise Interrupted(f"{number.name}: all runs have saved their states", exit_code=128 + number) from None
        except BaseException:
            for child in children:
                child.process.send_signal(signal.SIGTERM)
            raise


def _begun(run: Planned, threads: int) -> _Child:
    """A process that trains a run, or continues it. Ctrl-C in a terminal does not reach it: it is told once."""
    there = RunDir(run.folder)
    words = ["resume", str(run.folder)] if there.is_begun() else ["distill", *run.words, "-o", str(run.folder)]
    log = run.folder.parents[2] / LOGS / f"{run.column}-{run.method}-seed{run.seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "okdc", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
        )
    return _Child(run, process, log)


def _say_end(child: _Child, done: int, count: int, tell: Progress) -> None:
    """A line for a run that came to its end. Raises RunError where its process could not do it."""
    run, state = child.run, child.run.state()
    if state == "complete":
        kept = RunDir(run.folder).read_result().kept
        tell.note(f"{run.name}: {kept.top1_pct:.2f} % ({done} of {count})")
    elif state in ("failed", "running"):
        tell.note(f"{run.name}: {state} ({done} of {count}); {child.log} says why")
    else:
        raise RunError(f"{run.name}: its process ended with {child.process.returncode}", hint=f"see {child.log}")
