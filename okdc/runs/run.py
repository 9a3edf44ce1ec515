"""A run is one directory: the recipe, where it came from, what happened, and what was kept.

    runs/<recipe>-<n>/  recipe.toml  run.json  log.jsonl  checkpoint.pt  student.safetensors  student.json  result.json
                        students/  student<k>.safetensors  student<k>.json

student.* is the kept student, from the first validation on; students/ holds the others, once the training is over.

A series (`okdc.runs.series`) is a folder of runs, one a seed: runs/<recipe>-<n>/seed<k>/.
Every file is written aside and moved into place; a line of log.jsonl counts only once a checkpoint has counted it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from okdc.errors import DiskError, RunError
from okdc.recipe.draft import read
from okdc.runs import locks
from okdc.runs.files import read_json, write, write_json, writing

ROOT = Path("runs")
SERIES = "series.json"  # what makes a folder of runs a series
State = Literal["complete", "running", "resumable", "failed"]


@dataclass(frozen=True)
class Run:
    """One run's directory. `create` makes a new one, `open` takes one that exists."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def info(self) -> Path:
        return self.path / "run.json"

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
        """Where the weights and the description of a student lie that was not kept."""
        return self.students / f"student{student}.safetensors", self.students / f"student{student}.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @classmethod
    def create(cls, stem: str, recipe_text: str, info: dict[str, Any], out: Path | None = None) -> Run:
        """A new directory: `out`, else runs/<stem>-<n> with the first free n.

        Raises RunError where `out` holds anything, DiskError where it cannot be made.
        """
        run = cls(new_folder(stem, out))
        try:
            write(run.recipe, recipe_text.encode())
            write_json(run.info, info)
        except DiskError:
            run.discard()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Raises RunError for a directory that is no run, or a series of them."""
        run = cls(path)
        if not path.is_dir():
            raise RunError(f"{path}: no such run", hint=_known())
        refuse_series(path)
        if not run.info.is_file() or not run.recipe.is_file():
            raise RunError(f"{path} is not a run: expected run.json and recipe.toml in it", hint=_known())
        return run

    @classmethod
    def newest(cls, state: State, root: Path = ROOT) -> Run:
        """The run of `state` that was started last. Raises RunError where there is none."""
        found = [run for run in runs(root) if run.state == state]
        if not found:
            hint = "start one: okdc distill"
            if state == "complete" and any(run.state == "resumable" for run in runs(root)):
                hint = "one can be continued: okdc resume"
            raise RunError(f"no {state} run in {root.absolute()}", hint=hint)
        return found[-1]

    @property
    def state(self) -> State:
        if self.result.is_file():
            return "complete"
        try:
            if "failed" in self.facts():
                return "failed"
        except RunError:  # a damaged run.json: nothing can continue from it
            return "failed"
        return "running" if locks.is_held(self.path) else "resumable"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains this run while it is held. Raises RunError where another process holds it."""
        with locks.held(self.path):
            yield

    @property
    def started_at(self) -> str:
        """When it was started, as text that sorts; nothing where run.json is damaged."""
        try:
            return str(self.facts().get("started_at", ""))
        except RunError:
            return ""

    def facts(self, *keys: str) -> dict[str, Any]:
        """run.json. Raises RunError where it is damaged or lacks one of `keys`."""
        return read_json(self.info, *keys)

    @property
    def go_on(self) -> str:
        """The command that continues it, by as many processes as it had last: with others it is not exact."""
        count = here = 1
        with contextlib.suppress(RunError):
            count, here = (self.facts().get(key, 1) for key in ("processes", "processes_here"))
        command = f"okdc resume {shlex.quote(str(self.path))}"
        if count == 1:
            return command
        nodes = "--standalone" if count == here else f"--nnodes={count // here} ..."
        return f"torchrun {nodes} --nproc-per-node={here} -m {command}"

    def note(self, **facts: Any) -> None:
        """Add facts to run.json."""
        write_json(self.info, self.facts() | facts)

    def append(self, row: dict[str, Any]) -> None:
        """One line of log.jsonl, on disk when this returns."""
        try:
            with writing(self.log), self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except DiskError as error:
            raise DiskError(error.message, hint=f"free some space, then: {self.go_on}") from error

    def rows(self) -> list[dict[str, Any]]:
        """log.jsonl, without a last line that was cut short."""
        if not self.log.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def keep_rows(self, count: int) -> None:
        """Cut log.jsonl to what a checkpoint has counted: what came after it will come again."""
        lines = [json.dumps(row) + "\n" for row in self.rows()[:count]]
        write(self.log, "".join(lines).encode())

    def summary(self) -> dict[str, Any]:
        """A line of `okdc runs`. Raises RunError, or RecipeError, where the run's files are damaged."""
        recipe, state = read(self.recipe), self.state
        result = read_json(self.result, "kept", "judged_on") if state == "complete" else {}
        kept = result.get("kept", {})
        return {
            "run": str(self.path),
            "state": state,
            "method": recipe.get("method", {}).get("name", "?"),
            "epoch": len(self.rows()),
            "epochs": recipe.get("optim", {}).get("epochs", "?"),
            "kept": kept.get("architecture"),
            "top1_pct": kept.get("top1_pct"),
            "images": result.get("images"),
            "judged_on": result.get("judged_on"),
        }

    def discard(self) -> None:
        """Remove a run that came to nothing before its first step."""
        shutil.rmtree(self.path, ignore_errors=True)


def new_folder(stem: str, out: Path | None) -> Path:
    """A folder for a run or a series: `out`, else runs/<stem>-<n> with the first free n. Raises as `Run.create`."""
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
    if out is None or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / "run.json").exists():
        run, hint = Run(out), "choose another -o"
        more = f", or continue it: {run.go_on}" if run.state == "resumable" else ""
        raise RunError(f"{out} already holds a run, which is {run.state}", hint=hint + more)
    if (out / SERIES).exists():
        raise RunError(f"{out} already holds a series", hint=f"choose another -o, or continue it: okdc resume {out}")
    raise RunError(f"{out} is not an empty folder", hint="choose another -o")


def refuse_series(path: Path) -> None:
    """Raises RunError where `path` is a series: one of its runs has to be named."""
    if not (path / SERIES).is_file():
        return
    inside, chosen = runs(path), best(path)
    if chosen is None:
        raise RunError(f"{path} is a series, and none of its runs is complete yet", hint=f"okdc resume {path}")
    raise RunError(
        f"{path} is a series of {len(inside)} runs, expected one run",
        hint=f"the best of them on validation is {chosen.path}",
        details=[f"{run.path} ({run.state})" for run in inside],
    )


def best(root: Path) -> Run | None:
    """The complete run below `root` whose student is best on validation: at equal accuracy the first that was begun."""

    def validated(run: Run) -> float:  # below all others where nothing was validated, or result.json is damaged
        with contextlib.suppress(RunError):
            value = read_json(run.result, "kept")["kept"].get("val_top1_pct")
            return -1.0 if value is None else float(value)
        return -2.0

    return max((run for run in runs(root) if run.state == "complete"), key=validated, default=None)


def runs(root: Path = ROOT) -> list[Run]:
    """All runs below `root`, those of a series included, the last started last."""
    if not root.is_dir():
        return []
    folders = list(root.iterdir())
    folders += [inside for path in folders if (path / SERIES).is_file() for inside in path.iterdir()]
    found = [Run(path) for path in folders if (path / "run.json").is_file() and (path / "recipe.toml").is_file()]
    return sorted(found, key=lambda run: (run.started_at, run.path.name))


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


def _known() -> str:
    names = [str(run.path) for run in runs()]
    return "there is: " + ", ".join(names[-5:]) if names else "there is no run here yet; start one: okdc distill"
