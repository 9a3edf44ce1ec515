"""A run is one directory: its recipe, its origin, its log, and the students that it left.

    runs/<recipe>-<n>/  recipe.toml  run.json  log.jsonl  checkpoint.pt  student.safetensors  student.json  result.json
                        predictions.npz  students/  student<k>.safetensors  student<k>.json

student.* is the kept student, from the first validation on; students/ holds the others, once the training is over.

A series (`okdc.runs.series`) is a folder of runs, one a seed: runs/<recipe>-<n>/seed<k>/.
Every file is written aside and moved into place; a line of log.jsonl counts only once a checkpoint has counted it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from okdc.errors import DiskError, RunError
from okdc.runs import artefacts, locks
from okdc.runs.artefacts import Kept, Result, RunInfo, StudentInfo
from okdc.runs.files import write, writing
from okdc.runs.log import log_bytes, whole_rows
from okdc.runs.recipes import read_proven, write_recipe

ROOT = Path("runs")
INFO, RECIPE, RESULT = "run.json", "recipe.toml", "result.json"
SERIES = "series.json"  # makes a folder of runs a series
RECENT = 10  # epochs by which the time left is estimated
State = Literal["complete", "running", "resumable", "failed"]


@dataclass(frozen=True)
class RunDir:
    """One run's directory. `create` makes a new one, `open` takes one that exists."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / RECIPE

    @property
    def info(self) -> Path:
        return self.path / INFO

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        return self.path / "checkpoint.previous.pt"

    @property
    def weights(self) -> Path:
        return self.path / "student.safetensors"

    @property
    def student(self) -> Path:
        return self.path / "student.json"

    @property
    def students(self) -> Path:
        return self.path / "students"

    def files_of_other(self, student: int) -> tuple[Path, Path]:
        """The weights and the description of a student that was not kept."""
        return self.students / f"student{student}.safetensors", self.students / f"student{student}.json"

    @property
    def predictions(self) -> Path:
        """Read by `okdc.runs.predictions`."""
        return self.path / "predictions.npz"

    @property
    def result(self) -> Path:
        return self.path / RESULT

    @classmethod
    def create(cls, stem: str, info: RunInfo, out: Path | None = None) -> RunDir:
        """A new directory: `out`, else runs/<stem>-<n> with the first free n.

        Raises RunError where `out` holds anything, DiskError where it cannot be made.
        """
        run = cls(new_folder(stem, out))
        with locks.written(run.path):  # of two that begin in one folder the second finds the first one's run
            refuse_taken(run.path)
            try:
                artefacts.write(run.info, info)  # the first file makes it a run: the recipe is in it, too
                write_recipe(run.recipe, info.recipe)
            except DiskError:
                run.discard()
                raise
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Raises RunError for a directory that is no run, or a series of them, and for a run whose run.json or
        recipe.toml is damaged or was edited.
        """
        run = cls(path)
        if not path.is_dir():
            raise RunError(f"{path}: no such run", hint=_existing())
        refuse_series(path)
        if not run.is_begun():
            raise RunError(f"{path} is not a run: expected {INFO} in it", hint=_existing())
        run.read_recipe()
        return run

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether the folder holds a run.json."""
        return (path / INFO).is_file()

    def is_begun(self) -> bool:
        """Whether the first file of a run is there."""
        return self.info.is_file()

    @classmethod
    def newest(cls, state: State, root: Path = ROOT) -> RunDir:
        """The run of `state` that was started last. Raises RunError where there is none."""
        of_state = [run for run in runs(root) if run.state() == state]
        if not of_state:
            hint = "start one: okdc distill"
            if state == "complete" and any(run.state() == "resumable" for run in runs(root)):
                hint = "one can be continued: okdc resume"
            raise RunError(f"no {state} run in {root.absolute()}", hint=hint)
        return cls.open(of_state[-1].path)

    @classmethod
    def newest_complete(cls, note: Callable[[str], None]) -> RunDir:
        """The run of a command that names none, and a note that says so. Raises RunError where there is none."""
        run = cls.newest("complete")
        note(f"nothing named: {run.path} is the newest complete run")
        return run

    def state(self) -> State:
        """Read from the files; a run whose run.json is damaged cannot continue and counts as failed."""
        if self.result.is_file():
            return "complete"
        try:
            if self.read_info().failed is not None:
                return "failed"
        except RunError:
            return "failed"
        return "running" if locks.is_held(self.path) else "resumable"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains this run while it is held. Raises RunError where another process holds it."""
        with locks.held(self.path):
            yield

    def started_at(self) -> str:
        """The time of its start, as text that sorts; empty where run.json is damaged."""
        try:
            return self.read_info().started_at
        except RunError:
            return ""

    def read_info(self) -> RunInfo:
        """run.json. Raises RunError where it is damaged."""
        return artefacts.read(self.info, RunInfo)

    def read_recipe(self) -> dict[str, Any]:
        """The recipe's tables, proven to be those of run.json. Raises RunError that names the keys which differ."""
        return read_proven(self.recipe, self.read_info().recipe)

    def read_result(self) -> Result:
        """result.json. Raises RunError where it is damaged, or missing: the run is then not complete."""
        return artefacts.read(self.result, Result)

    def resume_command(self) -> str:
        """The command that continues it, with as many processes as it had last: with others it is not exact."""
        count = local = 1
        with contextlib.suppress(RunError):
            info = self.read_info()
            count, local = info.processes, info.processes_here
        command = f"okdc resume {shlex.quote(str(self.path))}"
        if count == 1:
            return command
        nodes = "--standalone" if count == local else f"--nnodes={count // local} ..."
        return f"torchrun {nodes} --nproc-per-node={local} -m {command}"

    def note(self, **values: Any) -> None:
        """Set keys of run.json."""
        artefacts.write(self.info, self.read_info().model_copy(update=values))

    def append(self, row: dict[str, Any]) -> None:
        """One line of log.jsonl, on disk when this returns."""
        try:
            with writing(self.log), self.log.open("a", encoding="utf-8") as stream:
                stream.write(log_bytes([row]).decode())
                stream.flush()
                os.fsync(stream.fileno())
        except DiskError as error:
            raise DiskError(error.message, hint=f"free some space, then: {self.resume_command()}") from error

    def rows(self) -> list[dict[str, Any]]:
        """log.jsonl: a row an epoch, as far as the file is whole.

        Raises RunError where the log of a complete run is not the one that the run recorded.
        """
        content = self._log_bytes()
        if self.result.is_file() and hashlib.sha256(content).hexdigest() != self.read_result().log_sha256:
            raise RunError(
                f"{self.log} is not the file that the run recorded",
                hint=f"{self.resume_command()} writes it again from the last checkpoint",
            )
        return whole_rows(content)

    def restore_rows(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Make log.jsonl those rows of a checkpoint: what came after them will come again.

        Returns whether the log had lost or changed any of them.
        """
        before, content = self._log_bytes(), log_bytes(rows)
        if before != content:
            write(self.log, content)
        return not before.startswith(content)

    def _log_bytes(self) -> bytes:
        try:
            return self.log.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RunError(f"{self.log}: cannot be read: {error.strerror}") from None

    def summary(self) -> dict[str, Any]:
        """A line of `okdc runs`. Raises RunError where the run's files are damaged or were edited.

        `best_val_pct` is the accuracy on validation by which the student was chosen that would be kept by now, of
        `best_epoch`; `seconds_left` an estimate, of a run that is being trained.
        """
        recipe, state = self.read_recipe(), self.state()
        result = self.read_result() if state == "complete" else None
        best: Kept | StudentInfo | None = result.kept if result else None
        if best is None and self.student.is_file():
            best = artefacts.read(self.student, StudentInfo)
        rows = [] if result else self.rows()
        epochs = recipe_value(recipe, "optim", "epochs")
        return {
            "run": str(self.path),
            "state": state,
            "method": recipe_value(recipe, "method", "name"),
            "epoch": result.last_epoch if result else len(rows),
            "epochs": epochs,
            "best_val_pct": best and best.chosen_by_pct,
            "best_epoch": best and best.epoch,
            "seconds_left": self._seconds_left(rows, epochs) if state == "running" else None,
            "kept": result and result.kept.architecture,
            "top1_pct": result and result.kept.top1_pct,
            "images": result and result.images,
            "judged_on": result and result.judged_on,
        }

    def _seconds_left(self, rows: Sequence[dict[str, Any]], epochs: object) -> float | None:
        """By the last epochs, less what the one under way has taken. None before the first epoch is over."""
        if not rows or not isinstance(epochs, int):
            return None
        epoch: float = statistics.median(row["seconds"] for row in rows[-RECENT:])
        under_way = min(epoch, max(0.0, time.time() - self.log.stat().st_mtime))
        return round(max(0.0, epoch * (epochs - len(rows)) - under_way), 1)

    def discard(self) -> None:
        """Remove a run that came to nothing before its first step."""
        shutil.rmtree(self.path, ignore_errors=True)


def recipe_value(tables: dict[str, Any], table: str, key: str, default: Any = None) -> Any:
    """A value of a recipe that nothing has checked."""
    values = tables.get(table)
    return values.get(key, default) if isinstance(values, dict) else default


def new_folder(stem: str, out: Path | None) -> Path:
    """A folder for a run or a series: `out`, else runs/<stem>-<n> with the first free n. Raises as `RunDir.create`."""
    refuse_taken(out)
    with writing(out or ROOT):
        path = out or _next(stem)
        path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_taken(out: Path | None) -> None:
    """Raises RunError or DiskError where a run may not go: asked before an hour of decoding, and when it is made."""
    target = (out or ROOT).absolute()
    place = next(p for p in (target, *target.parents) if p.exists())
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise DiskError(f"{target}: cannot be written: {place} is read-only", hint="choose another -o")
    if not place.is_dir() and place != target:
        raise DiskError(f"{target}: cannot be made: {place} is not a folder", hint="choose another -o")
    if out is None or not out.exists() or (out.is_dir() and is_empty(out)):
        return
    if (out / INFO).exists():
        run, state = RunDir(out), RunDir(out).state()
        more = f", or continue it: {run.resume_command()}" if state == "resumable" else ""
        raise RunError(f"{out} already holds a run, which is {state}", hint=f"choose another -o{more}")
    if (out / SERIES).exists():
        raise RunError(f"{out} already holds a series", hint=f"choose another -o, or continue it: okdc resume {out}")
    raise RunError(f"{out} is not an empty folder", hint="choose another -o")


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder but the half of a first file, which a kill left."""
    return all(path.name in (f".{INFO}.new", f".{SERIES}.new") for path in folder.iterdir())


def refuse_series(path: Path) -> None:
    """Raises RunError where `path` is a series: one of its runs has to be named."""
    if not (path / SERIES).is_file():
        return
    inside, chosen = runs(path), best(path)
    if chosen is None:
        raise RunError(f"{path} is a series, and none of its runs is complete yet", hint=f"okdc resume {path}")
    first = f"okdc profile {shlex.quote(str(chosen.path))}, as one of them: nothing was validated"
    raise RunError(
        f"{path} is a series of {len(inside)} runs, expected one run",
        hint=first if _validated(chosen) < 0 else f"the best of them on validation is {chosen.path}",
        details=[f"{run.path} ({run.state()})" for run in inside],
    )


def best(root: Path) -> RunDir | None:
    """The complete run below `root` whose student is best on validation: at equal accuracy the first that was begun."""
    return max((run for run in runs(root) if run.state() == "complete"), key=_validated, default=None)


def _validated(run: RunDir) -> float:
    """Of the kept student, in %: below 0 where nothing was validated, and lower where result.json is damaged."""
    with contextlib.suppress(RunError):
        value = run.read_result().kept.chosen_by_pct
        return -1.0 if value is None else value
    return -2.0


def runs(root: Path = ROOT) -> list[RunDir]:
    """All runs below `root`, those of a series included, the last started last."""
    if not root.is_dir():
        return []
    folders = list(root.iterdir())
    folders += [inside for path in folders if (path / SERIES).is_file() for inside in path.iterdir()]
    begun = [run for run in map(RunDir, folders) if run.is_begun()]
    return sorted(begun, key=lambda run: (run.started_at(), run.path.name))


def _next(stem: str) -> Path:
    ROOT.mkdir(parents=True, exist_ok=True)
    taken = [p.name.removeprefix(f"{stem}-") for p in ROOT.glob(f"{stem}-*")]
    n = max([int(name) for name in taken if name.isdigit()], default=0) + 1
    while True:
        path = ROOT / f"{stem}-{n}"
        try:
            path.mkdir()
        except FileExistsError:  # another process took it
            n += 1
        else:
            return path


def _existing() -> str:
    names = [str(run.path) for run in runs()]
    return "there is: " + ", ".join(names[-5:]) if names else f"there is no run in {ROOT}/ yet; start one: okdc distill"
