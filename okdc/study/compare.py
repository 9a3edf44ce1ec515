"""Finished runs as one row a variant: means over seeds, differences paired by seed, what a paper prints beside them.

Columns never mix what was chosen with what was not: `kept` is the student and epoch that did best on validation, which
is what ships; the heads are read at the last epoch. Every number is of the split that judged, read once a run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from okdc.figures import standard_error_pct
from okdc.recipe.schema import Paper
from okdc.runs.run import RECIPE, SERIES
from okdc.study import comparable as alike
from okdc.study import stats
from okdc.study.finished import find
from okdc.study.require import judged, parse
from okdc.study.rows import KEPT, STUDENT, Row, called, grouped

ENOUGH = 3  # seeds, below which an interval says little


def compare(paths: Sequence[Path], baseline: str | None = None, require: Sequence[str] = ()) -> dict[str, Any]:
    """The facts of `okdc compare`; `paths` are runs or folders of them, none: ./runs.

    Raises RunError for runs that are missing, not complete or not comparable, UsageError for rows that are not there.
    """
    asked = [parse(text) for text in require]
    runs, left_out = find(paths)
    alike.refuse(runs)
    rows = grouped(runs)
    notes = alike.notes(runs)
    base = _baseline(rows, baseline, notes)
    rows.sort(key=lambda row: (row is not base, -fmean(row.accuracy(KEPT).values()), row.name))
    one = runs[0]
    return {
        "schema": 1,
        "dataset": one.result.dataset,
        "data_sha256": one.result.data_sha256,
        "image_size": one.recipe.data.image_size,
        "classes": len(one.info.classes),
        "judged_on": one.result.judged_on,
        "images": one.result.images,
        "epochs": one.result.epochs,
        "keep": sorted({str(run.recipe.cohort.keep) for run in runs}),
        "validated": all(run.result.kept.val_top1_pct is not None for run in runs),
        "confidence_pct": stats.CONFIDENCE_PCT,
        "baseline": base.name if base else None,
        "rows": [_facts(row, base, notes) for row in rows],
        "required": [judged(*words, rows) for words in asked],
        "notes": list(dict.fromkeys(notes)),
        "left_out": left_out,
    }


def next_step(facts: Mapping[str, Any]) -> str:
    """More seeds where a row has fewer than three, else the export of the student that is best on validation."""
    rows = facts["rows"]
    fewest = min(rows, key=lambda row: row["n"])
    if fewest["n"] < ENOUGH:
        wanted = [*dict.fromkeys(seed for row in rows for seed in row["seeds"]), *range(ENOUGH)]
        missing = [seed for seed in dict.fromkeys(wanted) if seed not in fewest["seeds"]][: ENOUGH - fewest["n"]]
        folder = Path(fewest["runs"][0]["run"])
        if (folder.parent / SERIES).is_file():  # its recipe is of no seed: a seed's has that one's mean
            folder = folder.parent
        recipe = folder / RECIPE
        beside = next(path for n in count(2) if not (path := folder.with_name(f"{folder.name}-{n}")).exists())
        seeds = ",".join(map(str, missing))
        return f"okdc distill {shlex.quote(str(recipe))} --seeds {seeds} -o {shlex.quote(str(beside))}"
    # By validation: the test accuracies of this table would choose on the test split.
    run = max((run for row in rows for run in row["runs"]), key=lambda run: run["kept"]["val_top1_pct"] or 0.0)
    return f"okdc export {shlex.quote(run['run'])} --onnx"


def _baseline(rows: Sequence[Row], asked: str | None, notes: list[str]) -> Row | None:
    if asked is not None:
        return called(asked, rows, "--baseline")
    found = [row for row in rows if row.runs[0].result.method_card.reference]
    if len(found) == 1:
        return found[0]
    if found:
        notes.append(f"several rows are baselines ({', '.join(row.name for row in found)}): --baseline names one")
    else:
        notes.append("no run of the method baseline: no differences (--baseline names another row)")
    return None


def _facts(row: Row, base: Row | None, notes: list[str]) -> dict[str, Any]:
    """A row of the report; what has to be said beside it goes to `notes`."""
    kept = [run.result.kept for run in row.runs]
    accuracy = stats.sample(row.accuracy(KEPT))
    difference = None
    if base is not None and row is not base:
        difference = {
            "to": base.name,
            "kept": stats.paired(row.accuracy(KEPT), base.accuracy(KEPT)),
            "student_last_epoch": stats.paired(row.accuracy(STUDENT), base.accuracy(STUDENT)),
        }
        notes += _beside(row, base, difference)
    return {
        "name": row.name,
        "variant": row.variant,
        "method": row.method,
        "students": list(row.runs[0].result.students),
        "share": row.runs[0].result.share,
        "teachers_sha256": sorted({run.result.teacher.weights_sha256 for run in row.runs if run.result.teacher}),
        "n": len(row.runs),
        "seeds": [run.seed for run in row.runs],
        "kept": accuracy,
        "kept_standard_error_pct": round(standard_error_pct(accuracy["mean_top1_pct"], _images(row)), 4),
        "heads_last_epoch": {
            head.removeprefix("last "): stats.sample(row.accuracy(head))
            for head in row.heads()
            if head not in (KEPT, STUDENT)
        },
        "student_last_epoch": stats.sample(row.accuracy(STUDENT)),
        "fused_head": row.runs[0].result.method_card.fused_head,
        "leader": row.runs[0].result.leader,
        "difference": difference,
        "params": [min(k.params for k in kept), max(k.params for k in kept)],
        "macs": [min(k.macs for k in kept), max(k.macs for k in kept)],
        "seconds_mean": round(fmean(run.result.seconds for run in row.runs), 3),
        "paper": _paper(row, notes),
        "runs": [
            {
                "run": str(run.path),
                "seed": run.seed,
                "seconds": run.result.seconds,
                "kept": run.result.kept.to_json(),
            }
            for run in row.runs
        ],
    }


def _images(row: Row) -> int:
    return row.runs[0].result.images


def _beside(row: Row, base: Row, difference: Mapping[str, Any]) -> list[str]:
    """What a reader of the paired difference has to know."""
    found = []
    ours, theirs = set(row.accuracy(KEPT)), set(base.accuracy(KEPT))
    if alone := [
        f"{name} alone has {_seeds(own)}"
        for name, own in ((row.name, ours - theirs), (base.name, theirs - ours))
        if own
    ]:
        common = f"paired by {_seeds(ours & theirs)}" if ours & theirs else "no seed in common, no difference"
        found.append(f"{row.name} and {base.name}: {common}; {', '.join(alone)}")
    kept = difference["kept"]
    if kept and kept["n"] > 1 and kept["sd_points"] == 0:
        found.append(
            f"{row.name}: all {kept['n']} pairs differ by the same {kept['mean_points']:+.2f} points, so their "
            "interval has no width"
        )
    runs = [*row.runs, *base.runs]
    for what, networks in (
        ("kept", {run.result.kept.architecture for run in runs}),
        ("student0", {run.result.students[0] for run in runs}),
    ):
        if len(networks) > 1:
            found.append(
                f"{row.name} and {base.name}: {what} is not one network ({', '.join(sorted(networks))}): "
                "its difference is not the method's alone"
            )
    return found


def _seeds(seeds: Iterable[int]) -> str:
    listed = sorted(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"


def _another_cell(row: Row, paper: Paper) -> str:
    """What of the paper's cell is not what was trained; nothing where it is the same. One student may be alone."""
    first = row.runs[0]
    if first.result.dataset != paper.dataset:
        return f"data ({paper.dataset})"
    given, count = first.recipe.cohort.students, len(first.result.students)
    if set(given) != set(paper.students) or count not in (1, len(paper.students)):
        return f"students ({', '.join(paper.students)})"
    return ""


def _paper(row: Row, notes: list[str]) -> dict[str, Any] | None:
    """The cell that the runs' recipe says a paper prints for this variant, or for the method at its defaults."""
    papers = [run.recipe.about.paper for run in row.runs]
    paper = papers[0]
    if any(other != paper for other in papers):
        notes.append(f"{row.name}: its recipes name different cells of papers: none is shown")
        return None
    if paper is None or (row.variant not in paper.student_error and row.variant not in paper.fused_error):
        return None
    if other := _another_cell(row, paper):
        notes.append(f"{row.name}: {paper.source} is of other {other}: not shown beside it")
        return None
    return {
        "source": paper.source,
        "epochs": paper.epochs,
        "student_error_pct": paper.student_error.get(row.variant),
        "fused_error_pct": paper.fused_error.get(row.variant),
    }
