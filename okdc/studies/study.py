"""`okdc study`: a study from its file to its table, and what can be asked of it without training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from okdc.errors import RecipeError
from okdc.progress import Progress
from okdc.runs.artefacts import Provenance
from okdc.runs.files import write, write_json
from okdc.studies import estimate as estimates
from okdc.studies import markdown, plot, run, table
from okdc.studies.plan import LEFT, Planned, chosen, planned
from okdc.studies.schema import FILE, Study, find, read

ROOT = Path("studies")
TABLE, TABLE_JSON, PLOT = "table.md", "table.json", "students.svg"


@dataclass(frozen=True)
class Opened:
    """A study and the folder of its runs."""

    study: Study
    folder: Path
    runs: tuple[Planned, ...]
    words: tuple[str, ...]  # of the command


def opened(words: Sequence[str], out: Path | None) -> Opened:
    """The study that the first word names, with KEY=VALUE words behind it.

    Raises RecipeError for a word that names no study, and for a wrong file.
    """
    word, *overrides = words
    if wrong := [each for each in overrides if "=" not in each]:
        raise RecipeError(f"{wrong[0]}: expected one study, then KEY=VALUE words", hint="okdc study lists them")
    path = find(word)
    study = read(path)
    folder = path.parent if path.name == FILE else out or ROOT / path.stem
    study = study.model_copy(update={"overrides": (*study.overrides, *overrides)})
    return Opened(study, folder, tuple(planned(study, folder)), tuple(words))


def train(study: Opened, only: Sequence[str], jobs: int, made_by: Provenance, tell: Progress) -> dict[str, Any]:
    """Train what is missing, then write and return the table. Raises as `run.check` and `run.train`."""
    runs = chosen(study.runs, only)
    run.check(study.runs, jobs)  # also those that are not trained now: all are of one table
    _remember(study)  # only now: a study whose runs are others' leaves the folder as it is
    run.train(runs, jobs, made_by, tell, f"okdc study {shlex.quote(str(study.folder))}")
    return written(study)


def _remember(study: Opened) -> None:
    """Write the study into its folder, so that the folder alone continues it. Raises DiskError."""
    text = tomli_w.dumps(study.study.model_dump(exclude_none=True, exclude_defaults=True)).encode()
    study.folder.mkdir(parents=True, exist_ok=True)
    if not (study.folder / FILE).is_file() or (study.folder / FILE).read_bytes() != text:
        write(study.folder / FILE, text)


def written(study: Opened) -> dict[str, Any]:
    """The table of what there is, also in the study's folder: Markdown, JSON and, where it is asked for, the plot."""
    report = table.table(study.study, study.runs)
    study.folder.mkdir(parents=True, exist_ok=True)
    write(study.folder / TABLE, markdown.markdown(report).encode())
    write_json(study.folder / TABLE_JSON, report)
    if study.study.plot:
        write(study.folder / PLOT, plot.over_students(report))
    return report


def dry_run(study: Opened, only: Sequence[str], tell: Progress) -> dict[str, Any]:
    """What a training of the study would do: each run with its state, hours and bytes. Raises RecipeError."""
    runs = chosen(study.runs, only)
    left = [each for each in runs if each.state() in LEFT]
    costs = estimates.estimate(left, study.runs, tell)
    rows = []
    for each in runs:
        cost = costs.get(each.name)
        rows.append(
            {
                "run": each.name,
                "state": each.state(),
                "seconds": round(cost.seconds, 1) if cost else None,
                "disk_bytes": cost.disk_bytes if cost else None,
                "command": each.command,
            }
        )
    known = [cost for cost in costs.values() if cost]
    return {
        "schema": 1,
        "title": study.study.title,
        "folder": str(study.folder),
        "runs": rows,
        "left": len(left),
        "unknown": sum(cost is None for cost in costs.values()),
        "seconds": round(sum(cost.seconds for cost in known), 1),
        "disk_bytes": sum(cost.disk_bytes for cost in known),
    }


def commands(study: Opened, only: Sequence[str]) -> list[tuple[str, bool]]:
    """The command of each run that is left, and whether others need it first: teachers come first.

    Raises RecipeError where one of them could not be trained.
    """
    left = [each for each in chosen(study.runs, only) if each.state() in LEFT]
    teachers = {each.teacher for each in left}
    for each in left:
        each.resolved(needs_data=False)
    return [(each.command, each.folder in teachers) for each in left]
