"""A run is one directory: the recipe, where it came from, what happened, and what was kept.

    runs/<recipe>-<n>/  recipe.toml  run.json  log.jsonl  checkpoint.pt  student.safetensors  student.json  result.json

Every file is written aside and moved into place; a line of log.jsonl counts only once a checkpoint has counted it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from okdc import __version__
from okdc.errors import DiskError, RunError

ROOT = Path("runs")
State = Literal["complete", "resumable", "failed"]


@contextlib.contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror or error}", hint=hint) from error


def write(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Replace `path` by `content` in one step; what stood there moves to `previous` if that is given.

    A process that dies at any moment leaves the old file, the new one, or (with `previous`) the old one there.
    Raises DiskError with the old file in place.
    """
    aside = path.with_name(f".{path.name}.new")
    with writing(path, hint="nothing that was there is lost; free some space or choose another folder"):
        try:
            with aside.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if previous is None or not path.exists():
                aside.replace(path)
                return
            path.replace(previous)
            try:
                aside.replace(path)
            except OSError:
                previous.replace(path)
                raise
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def write_json(path: Path, facts: dict[str, Any]) -> None:
    write(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Raises RunError for a file that is missing or damaged."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path}: not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise RunError(f"{path}: expected a JSON object")
    return facts


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What made a run: the command, and the versions of what computes."""
    packages = ("torch", "numpy", "pillow", "scikit-learn")
    return {
        "command": list(command),
        "versions": {"okdc": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
    }


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its flags (none outside Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return facts.get("model name", platform.machine()), frozenset(facts.get("flags", "").split())


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
    def result(self) -> Path:
        return self.path / "result.json"

    @classmethod
    def create(cls, stem: str, recipe_text: str, info: dict[str, Any], out: Path | None = None) -> Run:
        """A new directory: `out`, else runs/<stem>-<n> with the first free n.

        Raises RunError where `out` holds anything, DiskError where it cannot be made.
        """
        refuse_taken(out)
        with writing(out or ROOT):
            path = out or _next(stem)
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        try:
            write(run.recipe, recipe_text.encode())
            write_json(run.info, info)
        except DiskError:
            run.discard()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Raises RunError for a directory that is no run."""
        run = cls(path)
        if not path.is_dir():
            raise RunError(f"{path}: no such run", hint=_known())
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
            return "failed" if "failed" in self.facts() else "resumable"
        except RunError:  # a damaged run.json: nothing can continue from it
            return "failed"

    @property
    def started_at(self) -> str:
        """When it was started, as text that sorts; nothing where run.json is damaged."""
        try:
            return str(self.facts().get("started_at", ""))
        except RunError:
            return ""

    def facts(self) -> dict[str, Any]:
        """run.json."""
        return read_json(self.info)

    def note(self, **facts: Any) -> None:
        """Add facts to run.json."""
        write_json(self.info, self.facts() | facts)

    def append(self, row: dict[str, Any]) -> None:
        """One line of log.jsonl, on disk when this returns."""
        hint = f"free some space, then: okdc resume {self.path}"
        with writing(self.log, hint=hint), self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """log.jsonl, without a last line that was cut short."""
        if not self.log.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def keep_rows(self, count: int) -> None:
        """Cut log.jsonl to what a checkpoint has counted: what came after it will come again."""
        lines = [json.dumps(row) + "\n" for row in self.rows()[:count]]
        write(self.log, "".join(lines).encode())

    def discard(self) -> None:
        """Remove a run that came to nothing before its first step."""
        shutil.rmtree(self.path, ignore_errors=True)


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
        raise RunError(f"{out} already holds a run", hint=f"choose another -o, or continue it: okdc resume {out}")
    raise RunError(f"{out} is not an empty folder", hint="choose another -o")


def runs(root: Path = ROOT) -> list[Run]:
    """All runs below `root`, the last started last."""
    if not root.is_dir():
        return []
    found = [Run(path) for path in root.iterdir() if (path / "run.json").is_file() and (path / "recipe.toml").is_file()]
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
