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
from okdc.progress import EachNoteOnce, Progress
from okdc.runs.artefacts import Provenance
from okdc.runs.run import RunDir
from okdc.studies.plan import Planned
from okdc.studies.schema import LOGS
from okdc.training import start

POLL_S = 0.2  # how often processes are looked at


def check_jobs(jobs: int) -> None:
    """Raises UsageError for more jobs than cores."""
    if jobs > cores():
        raise UsageError(f"--jobs {jobs}: expected {cores()} at most, as many as there are cores")


def train(left: Sequence[Planned], jobs: int, made_by: Provenance, tell: Progress, go_on: str) -> None:
    """Train the runs that are left, in their order. Each is then complete, failed, or trained by somebody else.

    `go_on` is the command that continues the study. Raises Interrupted at a signal, and what a start raises but for
    TrainingError.
    """
    try:
        if jobs == 1:
            _one_by_one(left, made_by, EachNoteOnce(tell))
        else:
            _side_by_side(left, jobs, tell)
    except Interrupted as error:
        raise Interrupted(error.message, exit_code=error.exit_code, hint=go_on, run=error.run) from None


def _one_by_one(left: Sequence[Planned], made_by: Provenance, tell: Progress) -> None:
    with signals.raised():  # between two trainings; the loop, which saves first, notes signals itself
        try:
            for number, run in enumerate(left, 1):
                tell.note(f"{run.name}: {number} of {len(left)}")
                _one(run, made_by, tell)
        except KeyboardInterrupt as stop:
            number = signals.signal_of(stop)
            raise Interrupted(f"{number.name}: the study can be continued", exit_code=128 + number) from None


def _without_teacher(run: Planned) -> str:
    """Why a run cannot be trained, where its teacher has not come to its end; nothing otherwise."""
    if run.teacher is None:
        return ""
    teacher = RunDir(run.teacher)
    if (state := teacher.state()) != "complete":
        return f"{run.name} is left out: its teacher {run.teacher} is {state}"
    try:
        teacher.read_result()
    except RunError as error:
        return f"{run.name} is left out: its teacher is damaged: {error.message}"
    return ""


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
        if not there.is_begun() or there.state() not in ("running", "complete"):
            raise
        tell.note(f"{run.name} is left to another process: {error.message}")


# ---------------------------------------------------------------------------------------------------------------------
# Side by side


@dataclass
class _Child:
    run: Planned
    process: subprocess.Popen[bytes]
    log: Path


def _side_by_side(left: Sequence[Planned], jobs: int, tell: Progress) -> None:
    """Each run is a process of its own with its share of the cores; what it prints goes to a file."""
    threads = max(1, cores() // jobs)
    tell.note(f"{jobs} runs side by side, {threads} thread{'s' if threads > 1 else ''} each")
    waiting, children, done = list(left), list[_Child](), 0
    unfinished = {run.folder for run in left}  # teachers among these come before what they teach
    with signals.raised():
        try:
            while waiting or children:
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    done += 1
                    unfinished.discard(child.run.folder)
                    _say_end(child, done, len(left), tell)
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
            _end(children, number)
            raise Interrupted(f"{number.name}: all runs have saved their states", exit_code=128 + number) from None
        except BaseException:
            _end(children, signal.SIGTERM)
            raise


def _end(children: Sequence[_Child], number: signal.Signals) -> None:
    """Send the signal to all, and wait until each has saved its state."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)
    for child in children:
        child.process.wait()


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
    run, there = child.run, RunDir(child.run.folder)
    state = there.state() if there.is_begun() else "missing"
    if state == "complete":
        tell.note(f"{run.name}: {there.read_result().kept.top1_pct:.2f} % ({done} of {count})")
    elif state in ("failed", "running"):
        tell.note(f"{run.name}: {state} ({done} of {count}); {child.log} says why")
    else:
        raise RunError(f"{run.name}: its process ended with {child.process.returncode}", hint=f"see {child.log}")
