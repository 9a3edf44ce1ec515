"""A series is one recipe with several seeds: a folder of runs that is begun, continued and summed up as one.

    runs/<recipe>-<n>/  series.json  recipe.toml  seed0/  seed1/  seed2/

series.json is written first and never again. Each seed<k> is a run like any other, equal to that of
`okdc distill RECIPE seed=k`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from okdc.errors import DiskError, OkdcError, RunError, TrainingError, UsageError
from okdc.recipe.schema import Recipe
from okdc.runs import artefacts, locks
from okdc.runs.artefacts import Provenance, SeriesInfo, Settings
from okdc.runs.recipes import read_proven, write_recipe
from okdc.runs.run import RECIPE, ROOT, SERIES, RunDir, State, best, new_folder, recipe_value, refuse_taken, runs

MOST = 1000  # seeds of one series: more is a slip of the keyboard
LARGEST = 2**63 - 1  # seed that a recipe takes


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` or `0-4`, or both joined by commas. Raises UsageError for anything else, and for a seed named twice."""

    def refuse(reason: str) -> UsageError:
        return UsageError(f"--seeds {text!r}: {reason}", hint="distinct seeds, as in --seeds 0,1,2 or --seeds 0-4")

    seeds: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", part.strip())
        if not ends:
            raise refuse(f"expected integers from 0 on, found {part.strip()!r}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise refuse(f"expected a range that rises, found {part.strip()!r}")
        if last > LARGEST:
            raise refuse(f"expected at most {LARGEST}, found {last}")
        if len(seeds) + last - first >= MOST:
            raise refuse(f"expected at most {MOST} seeds")
        seeds += range(first, last + 1)
    twice = [seed for i, seed in enumerate(seeds) if seed in seeds[:i]]
    if twice:
        raise refuse(f"seed {twice[0]} is named twice")
    return tuple(seeds)


@dataclass(frozen=True)
class SeriesDir:
    """One series' directory. `create` makes a new one, `open` takes one that exists."""

    path: Path

    @property
    def info(self) -> Path:
        return self.path / SERIES

    @property
    def recipe(self) -> Path:
        """The resolved recipe, without a seed."""
        return self.path / RECIPE

    @classmethod
    def create(
        cls,
        stem: str,
        recipe: Recipe,
        seeds: tuple[int, ...],
        started_at: str,
        settings: Settings,
        provenance: Provenance,
        out: Path | None = None,
        export_check: bool = True,
    ) -> SeriesDir:
        """A new directory: `out`, else runs/<stem>-<n>. Raises as `RunDir.create`."""
        series = cls(new_folder(stem, out))
        tables = {key: value for key, value in recipe.tables().items() if key != "seed"}
        info = SeriesInfo(
            schema=1,
            seeds=seeds,
            recipe=tables,
            started_at=started_at,
            settings=settings,
            export_check=export_check,
            **dict(provenance),
        )
        with locks.written(series.path):
            refuse_taken(series.path)
            try:
                artefacts.write(series.info, info)  # the first file makes it a series: the recipe is in it, too
                write_recipe(series.recipe, tables)
            except DiskError:
                series.discard()
                raise
        return series

    @classmethod
    def open(cls, path: Path) -> SeriesDir:
        """Raises RunError where series.json is damaged, or the recipe is not the one that the series began with: its
        runs would not be comparable.
        """
        series = cls(path)
        series.read_recipe()
        return series

    @staticmethod
    def is_at(path: Path) -> bool:
        return (path / SERIES).is_file()

    def read_info(self) -> SeriesInfo:
        """series.json. Raises RunError where it is damaged."""
        return artefacts.read(self.info, SeriesInfo)

    def read_recipe(self) -> dict[str, Any]:
        """The recipe's tables, without a seed, proven to be those of series.json. Raises RunError as RunDir's."""
        return read_proven(self.recipe, self.read_info().recipe)

    def seeds(self) -> tuple[int, ...]:
        return self.read_info().seeds

    def run(self, seed: int) -> RunDir:
        """Where the run of a seed is, whether it was begun or not."""
        return RunDir(self.path / f"seed{seed}")

    def state_of(self, seed: int) -> State | None:
        """None: not begun."""
        run = self.run(seed)
        return run.state() if run.is_begun() else None

    def state(self) -> State:
        """Running while it is held, resumable while a seed is left to train, else failed if one failed."""
        if locks.is_held(self.path):
            return "running"
        try:
            states = [self.state_of(seed) for seed in self.seeds()]
        except RunError:  # a damaged series.json: nothing can continue from it
            return "failed"
        if None in states or "resumable" in states:
            return "resumable"
        return next((state for state in ("running", "failed") if state in states), "complete")

    def left(self) -> list[int]:
        """The seeds that are not begun or not at their end. Raises RunError where series.json is damaged."""
        return [seed for seed in self.seeds() if self.state_of(seed) in (None, "resumable")]

    def failure(self) -> TrainingError | None:
        """The error of a series in which seeds failed: which, and for what reason."""
        seeds = self.seeds()
        failed = [seed for seed in seeds if self.state_of(seed) == "failed"]
        if not failed:
            return None
        return TrainingError(
            f"{len(failed)} of {len(seeds)} seeds of {self.path} failed: {', '.join(map(str, failed))}",
            hint="a lower optim.lr, or optim.clip=1.0",
            details=[f"seed {seed}: {self._reason(seed)}" for seed in failed],
        )

    def _reason(self, seed: int) -> str:
        try:
            return str(self.run(seed).read_info().failed)
        except RunError as error:  # run.json is damaged
            return error.message

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains this series while it is held. Raises RunError where another process holds it."""
        with locks.held(self.path):
            yield

    def discard(self) -> None:
        """Remove a series that came to nothing before its first run."""
        shutil.rmtree(self.path, ignore_errors=True)

    def summary(self) -> dict[str, Any]:
        """What `okdc distill --seeds --json` prints: a row a seed, and the kept students' top-1 over the complete ones.

        `top1_pct_sd` is the standard deviation of the sample (n - 1), None below two. Raises RunError where files are
        damaged.
        """
        rows = [self._row(seed) for seed in self.seeds()]
        done = [row for row in rows if row["state"] == "complete"]
        accuracies = [row["top1_pct"] for row in done]
        return {
            "series": str(self.path),
            "state": self.state(),
            "method": recipe_value(self.read_recipe(), "method", "name"),
            "judged_on": done[0]["judged_on"] if done else None,
            "images": done[0]["images"] if done else None,
            "runs": rows,
            "n": len(accuracies),
            "top1_pct_mean": round(statistics.fmean(accuracies), 4) if accuracies else None,
            "top1_pct_sd": round(statistics.stdev(accuracies), 4) if len(accuracies) > 1 else None,
        }

    def next_command(self) -> str:
        """The command after a series: methods side by side where several share its setting, else its best run."""
        setting, methods, folders, others = _setting(self.read_recipe()), set(), [], 0
        trained: list[tuple[str, str]] = []
        for run in runs(self.path.parent):
            with contextlib.suppress(OkdcError):  # a damaged run beside it is no reason to stop here
                if run.state() != "complete":
                    continue
                tables, series = run.read_recipe(), owner(run)
                if _setting(tables) == setting:
                    methods.add(str(recipe_value(tables, "method", "name")))
                    trained.append((json.dumps(tables.get("method"), sort_keys=True), str(tables.get("seed", 0))))
                    folders.append(str(series.path if series else run.path))
                else:
                    others += 1
        if len(methods) > 1 and len(set(trained)) == len(trained):  # of two runs of one seed a comparison takes neither
            return (
                f"okdc compare {shlex.join(dict.fromkeys(folders)) if others else shlex.quote(str(self.path.parent))}"
            )
        chosen = best(self.path)
        return f"okdc profile {shlex.quote(str(chosen.path))}" if chosen else "okdc distill"

    def _row(self, seed: int) -> dict[str, Any]:
        run, state = self.run(seed), self.state_of(seed)
        result = run.read_result().to_json() if state == "complete" else {}
        kept = result.get("kept", {})
        return {
            "seed": seed,
            "run": str(run.path),
            "state": state or "not begun",
            "failed": self._reason(seed) if state == "failed" else None,
            **{key: kept.get(key) for key in ("student", "architecture", "epoch", "val_top1_pct", "top1_pct")},
            "balanced_accuracy_pct": kept.get("balanced_accuracy_pct"),
            **{key: result.get(key) for key in ("judged_on", "images", "largest_class_pct", "smallest_class_pct")},
            "weights_sha256": result.get("weights_sha256"),
        }


def _setting(tables: dict[str, Any]) -> dict[str, Any]:
    """The part of a recipe that compared runs share: all but the method, the seed and what follows from them."""
    data = tables.get("data")
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in ("root", "mean", "std")}
    return {"data": data, "students": recipe_value(tables, "cohort", "students"), "optim": tables.get("optim")}


def all_series(root: Path = ROOT) -> list[SeriesDir]:
    """All series below `root`."""
    return [SeriesDir(path) for path in sorted(root.iterdir()) if SeriesDir.is_at(path)] if root.is_dir() else []


def owner(run: RunDir) -> SeriesDir | None:
    """The series that a run is part of."""
    parent = run.path.parent
    return SeriesDir(parent) if SeriesDir.is_at(parent) else None


def newest_resumable(root: Path = ROOT) -> RunDir | SeriesDir:
    """The run or the series that was begun or worked on last, of those that can be continued.

    A run of a series counts for its series, unless series.json is damaged. Raises RunError where there is none.
    """
    resumable: list[tuple[str, RunDir | SeriesDir]] = []
    for run in runs(root):
        series = owner(run)
        if run.state() == "resumable" and (series is None or series.state() == "failed"):
            resumable.append((run.started_at(), run))
    for series in all_series(root):
        if series.state() == "resumable":
            times = [series.read_info().started_at, *(run.started_at() for run in runs(series.path))]
            resumable.append((max(times), series))
    if not resumable:
        raise RunError(f"no resumable run in {root.absolute()}", hint="start one: okdc distill")
    return max(resumable, key=lambda pair: (pair[0], str(pair[1].path)))[1]
