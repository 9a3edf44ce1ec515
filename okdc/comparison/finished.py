"""Finished runs, found and read. A damaged one is named and hides no other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from okdc.errors import OkdcError, RunError
from okdc.recipe.draft import Draft, check
from okdc.recipe.schema import Recipe
from okdc.runs import predictions
from okdc.runs.artefacts import Result, RunInfo
from okdc.runs.predictions import Answers, Bits, Predictions
from okdc.runs.run import INFO, RECIPE, RESULT, ROOT, SERIES, RunDir

DEPTH = 2  # a folder of runs, or a folder of series of runs


@dataclass(frozen=True)
class Finished:
    """One complete run."""

    path: Path
    result: Result
    info: RunInfo
    recipe: Recipe
    right: Mapping[str, Bits]  # whether each answer to the images that judge was right, by the names of `top1_pct`
    judging_sha256: str  # of the rows and labels of these images

    @property
    def seed(self) -> int:
        return self.result.seed

    def top1_pct(self) -> dict[str, float]:
        """Accuracies by name: `kept`, one `student` and, as `last NAME`, each head at the last epoch."""
        heads = self.result.heads_last_epoch_top1_pct
        return {
            "kept": self.result.kept.top1_pct,
            "student": heads[self.result.leading_head],
            **{f"last {name}": value for name, value in heads.items()},
        }


def find(paths: Sequence[Path]) -> tuple[list[Finished], list[dict[str, str]]]:
    """The finished runs that are named or lie up to two folders deep in a folder that is; each once.

    Raises RunError for a run that is named and not complete, and where nothing is left; a run below a folder that is
    not complete is left out: `{"run": ..., "why": ...}`.
    """
    finished: dict[Path, Finished] = {}
    left_out: list[dict[str, str]] = []
    for path in paths or [ROOT]:
        if path.is_dir() and not _holds_run(path):
            for inside in _below(path, DEPTH):
                try:
                    finished.setdefault(inside.resolve(), load(inside))
                except OkdcError as error:
                    left_out.append({"run": str(inside), "why": error.message})
        elif paths or path.exists():
            finished.setdefault(path.resolve(), load(path))
    if not finished:
        where = ", ".join(str(path) for path in paths) if paths else str(ROOT.absolute())
        raise RunError(
            f"no complete run in {where}",
            hint="start one: okdc distill",
            details=[each["why"] for each in left_out],
        )
    return list(finished.values()), left_out


def load(path: Path) -> Finished:
    """Raises RunError, or RecipeError, for a folder that is no run, not complete or damaged."""
    run = RunDir.open(path)
    state = run.state()
    if state != "complete":
        reason = f": {run.read_info().failed}" if state == "failed" else ""  # raises where run.json is damaged
        hint = {"resumable": run.resume_command(), "running": "wait for it"}.get(state, "start another run")
        raise RunError(f"{path} is not complete: {state}{reason}", hint=hint)
    recipe, problems = check(Draft(run.recipe, run.read_recipe()))
    if recipe is None:
        raise RunError(f"{run.recipe} is damaged: {'; '.join(problems)}")
    result, info = run.read_result(), run.read_info()
    if result.seed != recipe.seed or result.method != recipe.method["name"] or result.epochs != recipe.optim.epochs:
        raise RunError(f"{path}: recipe.toml and result.json are not of one run: seed, method or epochs differ")
    answers = predictions.read(run.predictions, result)
    return Finished(path, result, info, recipe, _right(answers, result), _digest(answers.judging))


def _right(answers: Predictions, result: Result) -> dict[str, Bits]:
    return {
        "kept": answers.students[result.kept.student],
        "student": answers.heads[result.leading_head],
        **{f"last {name}": bits for name, bits in answers.heads.items()},
    }


def _digest(judging: Answers) -> str:
    """Image i of one run is image i of another where this is the same, and the images are."""
    return hashlib.sha256(judging.rows.tobytes() + judging.labels.tobytes()).hexdigest()


def _holds_run(path: Path) -> bool:
    """Half a run counts: it is named as damaged, not passed over. A series is a folder of runs, with a recipe."""
    if (path / SERIES).is_file():
        return False
    return any((path / name).is_file() for name in (INFO, RECIPE, RESULT))


def _below(path: Path, depth: int) -> Iterator[Path]:
    for inside in sorted(path.iterdir()):
        if not inside.is_dir() or inside.name.startswith("."):
            continue
        if _holds_run(inside):
            yield inside
        elif depth > 1:
            yield from _below(inside, depth - 1)
