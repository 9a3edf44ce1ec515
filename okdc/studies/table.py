"""The table of a study: each cell's errors at the last epoch, beside what a paper prints for it.

An error is 100 - top-1 in percent, as the papers print it. A cell has the mean over its seeds, every seed's value and a
95 % interval that holds the chance of the seeds and of the images. Two differences are taken: to the paper's number,
which is one number without a spread and mostly the best of several runs, and to the study's baseline, paired by seed
and image. Either is called resolved only from three seeds on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from okdc.comparison import comparable, stats
from okdc.comparison.compare import another_cell
from okdc.comparison.finished import Finished
from okdc.errors import RunError
from okdc.recipe.schema import Paper
from okdc.runs.accuracy import CONFIDENCE_PCT
from okdc.studies import price, standing
from okdc.studies.schema import TEACHERS, Study
from okdc.studies.standing import Standing

T = TypeVar("T")

STUDENT = "student"


def table(study: Study, stood: Sequence[Standing]) -> dict[str, Any]:
    """The report that `okdc study --json` prints: one row a column, method and head, the price in a cell's first one.

    A run that is not complete leaves its seed out of the cell, and is named.
    """
    cells: dict[tuple[str, str], list[Finished]] = {}
    macs: dict[tuple[str, str], int | None] = {}  # of a training of each cell
    for each in stood:
        cell = each.run.column, each.run.method
        if each.finished and each.run.column != TEACHERS:
            cells.setdefault(cell, []).append(each.finished)
            if cell not in macs:
                macs[cell] = price.training_macs(each.run, each.finished)
    needed = {run.folder for run in standing.left(stood)}
    left_out = [
        {"run": each.run.name, "folder": str(each.run.folder), "state": each.state, "why": _why(each)}
        for each in stood
        if each.state != "complete" and (each.state not in standing.LEFT or each.run.folder in needed)
    ]
    rows, notes = [], []
    for column in study.columns:
        runs_of_column = [run for method in study.methods for run in cells.get((column, method), [])]
        alike, lines = _notes(study, column, runs_of_column)
        notes += lines
        for method in study.methods_of(column):
            runs_of_cell = cells.get((column, method), [])
            base = _base(study, column, runs_of_cell, cells) if alike else []
            of_cell = _rows(study, column, method, runs_of_cell, base)
            of_cell[0] |= {"training_macs": macs.get((column, method)), "training_seconds": _seconds(runs_of_cell)}
            rows += of_cell
    return {
        "schema": 1,
        "title": study.title,
        "remarks": list(study.remarks),
        "seeds": list(study.seeds),
        "baseline": study.baseline,
        "confidence_pct": CONFIDENCE_PCT,
        "columns": list(study.columns),
        "methods": {name: list(words) for name, words in study.methods.items()},
        "rows": rows,
        "runs": [_run(each.run.name, each.finished) for each in stood if each.finished],
        "made_by": _made_by([each.finished for each in stood if each.finished]),
        "left_out": left_out,
        "notes": list(dict.fromkeys(notes)),
    }


def _seconds(runs: Sequence[Finished]) -> float | None:
    """The mean over the seeds."""
    return round(fmean(run.result.seconds for run in runs), 3) if runs else None


def _run(name: str, run: Finished) -> dict[str, Any]:
    """What a repetition of a run has to give again, and what it took."""
    result = run.result
    return {
        "run": name,
        "recipe_sha256": result.recipe_sha256,
        "data_sha256": result.data_sha256,
        "weights_sha256": result.weights_sha256,
        "top1_pct": result.kept.top1_pct,
        "seconds": result.seconds,
    }


def _made_by(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Each machine with its versions and settings, and how many runs it trained."""
    makers = [
        {key: getattr(run.info, key) for key in ("versions", "platform", "processor", "gpu")}
        | {"settings": run.info.settings.to_json()}
        for run in runs
    ]
    unlike = list({json.dumps(maker, sort_keys=True): maker for maker in makers}.values())
    return [{"runs": makers.count(maker)} | maker for maker in unlike]


def _why(each: Standing) -> str:
    return ": ".join(filter(None, (each.why, "; ".join(each.details))))


def _base(
    study: Study, column: str, runs: Sequence[Finished], cells: Mapping[tuple[str, str], Sequence[Finished]]
) -> Sequence[Finished]:
    """The baseline's runs of a column. A column without any, as `where` may say, has those of another one that were
    judged by the same images.
    """
    if study.baseline is None or (column, study.baseline) in study.cells():
        return cells.get((column, study.baseline or ""), [])
    others = [cells.get((other, study.baseline), []) for other in study.where[study.baseline]]
    judging = {run.judging_sha256 for run in runs}
    return next((base for base in others if base and {run.judging_sha256 for run in base} == judging), [])


def _notes(study: Study, column: str, runs: Sequence[Finished]) -> tuple[bool, list[str]]:
    """Whether the runs of a column compare, and what differs between them beside method, seed and what the study's
    methods say.
    """
    if len(runs) < 2:
        return True, []
    try:
        comparable.refuse(runs, study.stated)
    except RunError as error:
        lines = [f"{column}: {line}" for line in (error.message, *error.details)]
        lines.append(f"{column}: so no difference to the baseline is taken")
        return False, lines
    return True, [f"{column}: {note}" for note in comparable.notes(runs)]


def _rows(
    study: Study, column: str, method: str, runs: Sequence[Finished], base: Sequence[Finished]
) -> list[dict[str, Any]]:
    """One row a head: of unlike students one each, else the leading one; then the fused classifier, if there is one."""
    if not runs:
        return [_row(study, column, method, STUDENT, "", [], [], None)]
    first = runs[0]
    paper = _paper(first)
    students = first.result.students
    printed = _printed(paper.student_error if paper else {}, first, method)
    rows = []
    if len(set(students)) > 1:
        errors = printed if isinstance(printed, list) else [printed] * len(students)
        for k, network in enumerate(students):
            error = errors[k] if k < len(errors) else None
            rows.append(_row(study, column, method, f"student{k}", network, runs, base, error))
    else:
        error = printed if isinstance(printed, float) else None
        rows.append(_row(study, column, method, STUDENT, students[0], runs, base, error))
    fused = first.result.method_card.fused_head
    if fused in first.result.heads_last_epoch_top1_pct:
        error = _printed(paper.fused_error if paper else {}, first, method)
        rows.append(_row(study, column, method, fused, "", runs, base, error if isinstance(error, float) else None))
    return rows


def _printed(errors: Mapping[str, T], run: Finished, method: str) -> T | None:
    """What a paper prints for a run's variant; for another, what it prints for the method that the study's label is."""
    return errors.get(run.result.variant, errors.get(method))


def _paper(run: Finished) -> Paper | None:
    """What a paper prints for the cell, where the run is of its data and networks."""
    paper = run.recipe.about.paper
    return None if paper is None or another_cell(run, paper) else paper


def _row(
    study: Study,
    column: str,
    method: str,
    head: str,
    network: str,
    runs: Sequence[Finished],
    base: Sequence[Finished],
    printed: float | None,
) -> dict[str, Any]:
    key = STUDENT if head == STUDENT or not runs else f"last {runs[0].result.last_head(head)}"
    right = {run.seed: run.right[key] for run in runs if key in run.right}
    paper = _paper(runs[0]) if runs else None
    row: dict[str, Any] = {
        "column": column,
        "method": method,
        "variant": runs[0].result.variant if runs else None,
        "head": head,
        "network": network,
        "students": len(runs[0].result.students) if runs else None,
        "paper": {"source": paper.source, "error_pct": printed} if paper and printed is not None else None,
        "n": len(right),
        "error_pct_by_seed": {str(seed): round(100 - 100 * float(bits.mean()), 4) for seed, bits in right.items()},
        "error_pct": None,
        "interval_pct": None,
        "minus_paper": None,
        "minus_baseline": None,
        "training_macs": None,
        "training_seconds": None,
    }
    if right:
        row |= _error(right)
        if printed is not None:
            row["minus_paper"] = _minus_paper(row, printed)
    if base and method != study.baseline:
        row["minus_baseline"] = _minus_baseline(right, base, key)
    return row


def _error(right: Mapping[int, Any]) -> dict[str, Any]:
    """The mean error over seeds, in percent, and its interval; None of one seed."""
    wrong = 1 - np.stack([bits.astype(np.float64) for bits in right.values()])
    mean = float(wrong.mean())
    ends = None
    if len(wrong) > 1:
        reach = float(stats.half_width(wrong.mean(1), wrong.mean(0)))
        ends = [round(100 * end, 4) for end in (max(0.0, mean - reach), min(1.0, mean + reach))]
    return {"error_pct": round(100 * mean, 4), "interval_pct": ends}


def _minus_paper(row: Mapping[str, Any], printed: float) -> dict[str, Any]:
    """Our mean error less the paper's number, in points: resolved where our interval does not hold that number."""
    interval, n = row["interval_pct"], row["n"]
    ends = None if interval is None else (printed - interval[1], printed - interval[0])  # of the paper's above ours
    return {
        "points": round(row["error_pct"] - printed, 4),
        "interval_points": None if interval is None else [round(end - printed, 4) for end in interval],
        "verdict": stats.verdict(n, ends),  # better: a smaller error than the paper's
    }


def _minus_baseline(right: Mapping[int, Any], base: Sequence[Finished], key: str) -> dict[str, Any] | None:
    """The error less that of the baseline's student, in points, over the seeds that both have.

    Of unlike students each is compared with the same one, where the baseline has it.
    """
    unlike = key if key.startswith("last student") else STUDENT
    paired = stats.paired(right, {run.seed: run.right.get(unlike, run.right[STUDENT]) for run in base})
    if paired is None:
        return None
    interval = paired["interval_points"]
    return {
        "points": -paired["mean_points"] + 0.0,
        "interval_points": None if interval is None else [-interval[1] + 0.0, -interval[0] + 0.0],
        "n": paired["n"],
        "verdict": paired["verdict"],  # better: a smaller error
    }


# States: nothing is trained in the folder of such a run until it is moved.
IN_THE_WAY = ("failed", "damaged", "foreign")


def check(report: Mapping[str, Any]) -> None:
    """Raises RunError that names each run which no further call of the study trains, with the reason."""
    held = [each for each in report["left_out"] if each["state"] in IN_THE_WAY]
    if not held:
        return
    counts = {state: sum(each["state"] == state for each in held) for state in IN_THE_WAY}
    folder = shlex.quote(held[0]["folder"]) if len(held) == 1 else "a folder"
    again = "; with the same keys one that failed would fail again" if counts["failed"] else ""
    raise RunError(
        f"{len(held)} run{'s' if len(held) > 1 else ''} of the study cannot go on: "
        + ", ".join(f"{count} {state}" for state, count in counts.items() if count),
        hint=f"move {folder} away, and the study trains its run anew{again}",
        details=[each["why"] for each in held],
    )
