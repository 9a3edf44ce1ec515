"""Finished runs, found and read. What is wrong with one is said and hides no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from okdc.errors import OkdcError, RunError
from okdc.recipe.draft import Draft, check, read
from okdc.recipe.explain import explain
from okdc.recipe.schema import Recipe
from okdc.runs import run as runs_
from okdc.runs.files import read_json
from okdc.runs.run import Run

DEPTH = 2  # a folder of runs, or a folder of series of runs


class Facts(BaseModel):
    """A part of a JSON file: types are checked, and keys that nobody asks for here may stand beside."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1)]
Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]  # JSON has arrays, not tuples


class Kept(Facts):
    student: int
    architecture: str
    epoch: int
    val_top1_pct: Percent | None
    top1_pct: Percent
    params: Count
    macs: Count


class MethodCard(Facts):
    """What the method's class says of itself."""

    fused_head: str
    reference: bool


class Teacher(Facts):
    architecture: str
    weights_sha256: str


class Result(Facts):
    """Of result.json what a comparison needs."""

    variant: str
    method: str
    method_card: MethodCard
    students: Texts
    share: Literal["none", "low", "stem1"]
    teacher: Teacher | None
    leader: int | None = None
    dataset: str
    data_sha256: str
    seed: int
    judged_on: str
    images: Count
    heads_last_epoch_top1_pct: dict[str, Percent]
    kept: Kept
    seconds: Annotated[float, Field(ge=0)]
    epochs: Count


class Info(Facts):
    """Of run.json what a comparison needs."""

    classes: Texts
    settings: dict[str, Any]
    versions: dict[str, str] = {}
    processor: str = ""
    processes: int = 1
    processes_before: list[int] = []

    @property
    def trained_by(self) -> str:
        """How many processes, and how many after a resume."""
        return ", then ".join(map(str, (*self.processes_before, self.processes)))


@dataclass(frozen=True)
class Finished:
    """One complete run."""

    path: Path
    result: Result
    info: Info
    recipe: Recipe

    @property
    def seed(self) -> int:
        return self.result.seed

    def top1_pct(self) -> dict[str, float]:
        """Accuracies by what they are of: `kept`, one `student` and, as `last NAME`, each head at the last epoch."""
        heads = self.result.heads_last_epoch_top1_pct
        one = f"student{self.result.leader or 0}"
        return {"kept": self.result.kept.top1_pct, "student": heads[one]} | {
            f"last {name}": value for name, value in heads.items()
        }


def find(paths: Sequence[Path]) -> tuple[list[Finished], list[dict[str, str]]]:
    """The finished runs that are named or lie up to two folders deep in a folder that is; each once.

    Raises RunError for a run that is named and not complete, and where nothing is left; what is not complete below a
    folder is left out: `{"run": ..., "why": ...}`.
    """
    found: dict[Path, Finished] = {}
    left_out: list[dict[str, str]] = []
    for path in paths or [runs_.ROOT]:
        if path.is_dir() and not _holds_run(path):
            for inside in _below(path, DEPTH):
                try:
                    found.setdefault(inside.resolve(), load(inside))
                except OkdcError as error:
                    left_out.append({"run": str(inside), "why": error.message})
        elif paths or path.exists():
            found.setdefault(path.resolve(), load(path))
    if not found:
        where = ", ".join(str(path) for path in paths) if paths else str(runs_.ROOT.absolute())
        raise RunError(
            f"no complete run in {where}",
            hint="start one: okdc distill",
            details=[each["why"] for each in left_out],
        )
    return list(found.values()), left_out


def load(path: Path) -> Finished:
    """Raises RunError, or RecipeError, for what is no run, not complete or damaged."""
    run = Run.open(path)
    state = run.state
    if state != "complete":
        why = f": {run.facts().get('failed')}" if state == "failed" else ""  # raises where run.json is damaged
        hint = {"resumable": run.go_on, "running": "wait for it"}.get(state, "start another run")
        raise RunError(f"{path} is not complete: {state}{why}", hint=hint)
    recipe, problems = check(Draft(run.recipe, read(run.recipe)))
    if recipe is None:
        raise RunError(f"{run.recipe} is damaged: {'; '.join(problems)}")
    result, info = _part(run.result, Result), _part(run.info, Info)
    if result.seed != recipe.seed or result.method != recipe.method["name"] or result.epochs != recipe.optim.epochs:
        raise RunError(f"{path}: recipe.toml and result.json are not of one run: seed, method or epochs differ")
    one = f"student{result.leader or 0}"
    if one not in result.heads_last_epoch_top1_pct:
        raise RunError(f"{run.result} is damaged: heads_last_epoch_top1_pct.{one} missing")
    return Finished(path, result, info, recipe)


Model = TypeVar("Model", bound=Facts)


def _part(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise RunError(
            f"{path} is damaged, or of another version of okdc: {'; '.join(explain(error, model))}"
        ) from None


def _holds_run(path: Path) -> bool:
    """Half a run counts: it is named as damaged, not passed over. A series is a folder of runs, with a recipe."""
    if (path / runs_.SERIES).is_file():
        return False
    return any((path / name).is_file() for name in ("run.json", "recipe.toml", "result.json"))


def _below(path: Path, depth: int) -> Iterator[Path]:
    for inside in sorted(path.iterdir()):
        if not inside.is_dir() or inside.name.startswith("."):
            continue
        if _holds_run(inside):
            yield inside
        elif depth > 1:
            yield from _below(inside, depth - 1)
