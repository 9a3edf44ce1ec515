"""`okdc study`: a study from its file to its table, and what can be asked of it without training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from okdc.errors import UsageError
from okdc.progress import Progress
from okdc.runs.artefacts import Provenance
from okdc.runs.files import write, write_json
from okdc.studies import estimate as estimates
from okdc.studies import markdown, plot, run, standing, table
from okdc.studies.opened import PLOT, TABLE, TABLE_JSON, Opened, is_anothers, remember
from okdc.studies.plan import chosen


def train(study: Opened, only: Sequence[str], jobs: int, made_by: Provenance, tell: Progress) -> dict[str, Any]:
    """Train what is missing, then write and return the table.

    Raises RecipeError for a recipe that cannot be trained, RunError for a folder that holds another run, UsageError for
    a pattern that matches nothing or too many jobs, and what `run.train` raises.
    """
    run.check_jobs(jobs)
    wanted = {each.folder for each in chosen(study.runs, only)}
    stood = standing.standings(study.runs)  # also of those that are not trained now: all are of one table
    standing.refuse_foreign(stood)
    of_wanted = [each for each in stood if each.run.folder in wanted]
    left = standing.left(of_wanted)
    for each in left:
        each.resolved()
    remember(study)  # only now: a study whose runs are others' leaves the folder as it is
    complete = sum(each.state == "complete" for each in of_wanted)
    tell.note(f"{complete} of {len(of_wanted)} runs are there; to train: {len(left)}")
    run.train(left, jobs, made_by, tell, f"okdc study {shlex.quote(str(study.folder))}")
    return written(study)


def written(study: Opened, only: Sequence[str] = ()) -> dict[str, Any]:
    """The table of what there is, also in the study's folder: Markdown, JSON and, where it is asked for, the plot.

    The folder of a study that was last asked for with other keys keeps the table of those.

    Raises RecipeError for a recipe that nobody can train, UsageError for patterns: a table has all cells.
    """
    if only:
        raise UsageError("--only chooses what is trained, and the table has all runs", hint="leave --only out")
    report = table.table(study.study, standing.standings(study.runs))
    if not study.folder.is_dir() or is_anothers(study):
        return report
    write(study.folder / TABLE, markdown.markdown(report).encode())
    write_json(study.folder / TABLE_JSON, report)
    if study.study.plot:
        write(study.folder / PLOT, plot.over_students(report))
    return report


def dry_run(study: Opened, only: Sequence[str], tell: Progress) -> dict[str, Any]:
    """What a training of the study would do: each run with its state, hours and bytes.

    Raises as `train` does before it trains, but for images that are not there.
    """
    stood = standing.standings(chosen(study.runs, only))
    standing.refuse_foreign(stood)
    left = standing.left(stood)
    costs = estimates.estimate(left, study.runs, tell)
    rows = []
    for each in stood:
        cost = costs.get(each.run.name)
        rows.append(
            {
                "run": each.run.name,
                "state": each.state,
                "why": each.why,
                "seconds": round(cost.seconds, 1) if cost else None,
                "disk_bytes": cost.disk_bytes if cost else None,
                "command": each.run.command,
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

    Raises as `dry_run`.
    """
    stood = standing.standings(chosen(study.runs, only))
    standing.refuse_foreign(stood)
    left = standing.left(stood)
    teachers = {each.teacher for each in left}
    return [(each.command, each.folder in teachers) for each in left]
