"""Finished runs as one row a variant: means over seeds, differences paired by seed, a paper's numbers beside them.

Columns never mix chosen and unchosen networks: `kept` is the student and epoch that did best on validation, and
ships; the heads are read at the last epoch. Every number is of the split that judged, read once a run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from okdc.comparison import comparable, stats
from okdc.comparison.finished import Finished, find
from okdc.comparison.require import parse, verdict
from okdc.comparison.rows import KEPT, STUDENT, Row, called, grouped
from okdc.recipe.schema import Paper
from okdc.runs.accuracy import CONFIDENCE_PCT, interval_pct
from okdc.runs.run import RECIPE, SERIES


def compare(paths: Sequence[Path], baseline: str | None = None, require: Sequence[str] = ()) -> dict[str, Any]:
    """The report of `okdc compare`; `paths` are runs or folders of them, none: ./runs.

    Raises RunError for runs that are missing, not complete or not comparable, UsageError for a row that does not exist.
    """
    requirements = [parse(text) for text in require]
    runs, left_out = find(paths)
    comparable.refuse(runs)
    rows = grouped(runs)
    notes = comparable.notes(runs)
    base = _baseline(rows, baseline, notes)
    rows.sort(key=lambda row: (row is not base, -fmean(row.accuracy(KEPT).values()), row.name))
    first = runs[0]
    return {
        "schema": 1,
        "dataset": first.result.dataset,
        "data_sha256": first.result.data_sha256,
        "image_size": first.recipe.data.image_size,
        "classes": len(first.info.classes),
        "judged_on": first.result.judged_on,
        "images": first.result.images,
        "epochs": first.result.epochs,
        "keep_epoch": first.recipe.cohort.keep_epoch,
        "keep": sorted({str(run.recipe.cohort.keep) for run in runs}),
        "validated": all(run.result.kept.val_top1_pct is not None for run in runs),
        "confidence_pct": CONFIDENCE_PCT,
        "baseline": base.name if base else None,
        "rows": [_row(row, base, notes) for row in rows],
        "required": [verdict(*words, rows) for words in requirements],
        "notes": list(dict.fromkeys(notes)),
        "left_out": left_out,
    }


def next_step(report: Mapping[str, Any]) -> str:
    """More seeds where a row has fewer than three, else the export of the student that is best on validation."""
    rows = report["rows"]
    fewest = min(rows, key=lambda row: row["n"])
    if fewest["n"] < stats.ENOUGH:
        wanted = [*dict.fromkeys(seed for row in rows for seed in row["seeds"]), *range(stats.ENOUGH)]
        missing = [seed for seed in dict.fromkeys(wanted) if seed not in fewest["seeds"]][: stats.ENOUGH - fewest["n"]]
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


def _baseline(rows: Sequence[Row], name: str | None, notes: list[str]) -> Row | None:
    if name is not None:
        return called(name, rows, "--baseline")
    baselines = [row for row in rows if row.runs[0].result.method_card.reference]
    if len(baselines) == 1:
        return baselines[0]
    if baselines:
        notes.append(f"several rows are baselines ({', '.join(row.name for row in baselines)}): --baseline names one")
    else:
        notes.append("no run of the method baseline: no differences (--baseline names another row)")
    return None


def _row(row: Row, base: Row | None, notes: list[str]) -> dict[str, Any]:
    """A row of the report; remarks on it are added to `notes`."""
    kept = [run.result.kept for run in row.runs]
    accuracy = stats.sample(row.accuracy(KEPT))
    difference = None
    if base is not None and row is not base:
        difference = {
            "to": base.name,
            "kept": stats.paired(row.right(KEPT), base.right(KEPT)),
            "student_last_epoch": stats.paired(row.right(STUDENT), base.right(STUDENT)),
        }
        notes += _beside(row, base)
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
        "kept_interval_pct": interval_pct(accuracy["mean_top1_pct"], row.runs[0].result.images),
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


def _beside(row: Row, base: Row) -> list[str]:
    """Remarks on the paired difference."""
    remarks = []
    seeds, base_seeds = set(row.accuracy(KEPT)), set(base.accuracy(KEPT))
    if alone := [
        f"{name} alone has {_seeds(unpaired)}"
        for name, unpaired in ((row.name, seeds - base_seeds), (base.name, base_seeds - seeds))
        if unpaired
    ]:
        common = f"paired by {_seeds(seeds & base_seeds)}" if seeds & base_seeds else "no seed in common, no difference"
        remarks.append(f"{row.name} and {base.name}: {common}; {', '.join(alone)}")
    runs = [*row.runs, *base.runs]
    for role, networks in (
        ("kept", {run.result.kept.architecture for run in runs}),
        ("student0", {run.result.students[0] for run in runs}),
    ):
        if len(networks) > 1:
            remarks.append(
                f"{row.name} and {base.name}: {role} is not one network ({', '.join(sorted(networks))}): "
                "its difference is not the method's alone"
            )
    return remarks


def _seeds(seeds: Iterable[int]) -> str:
    listed = sorted(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"


def another_cell(run: Finished, paper: Paper) -> str:
    """How the paper's cell differs from the training; empty where they agree. One student may be alone."""
    if run.result.dataset != paper.dataset:
        return f"data ({paper.dataset})"
    students, count = run.recipe.cohort.students, len(run.result.students)
    if set(students) != set(paper.students) or count not in (1, len(paper.students)):
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
    if other := another_cell(row.runs[0], paper):
        notes.append(f"{row.name}: {paper.source} is of other {other}: not shown beside it")
        return None
    return {
        "source": paper.source,
        "epochs": paper.epochs,
        "student_error_pct": paper.student_error.get(row.variant),
        "fused_error_pct": paper.fused_error.get(row.variant),
    }
