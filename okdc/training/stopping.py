"""When a training ends before its last epoch: `optim.patience` epochs in a row were no better on validation.

It follows from the log alone, so a resumed run stops at the same epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from okdc.assembly.job import Job
from okdc.training import selection


def waited(job: Job, rows: Sequence[Mapping[str, Any]]) -> int:
    """The epochs since a student that may be kept was better on validation than any had been; of equals the first
    counts. `rows`: the log, validated.
    """
    heads = [head for k in selection.candidates(job) for head in selection.heads(job, k)]
    best = [max(row[f"val_{job.recipe.cohort.keep_metric}_pct"][head] for head in heads) for row in rows]
    return len(best) - 1 - best.index(max(best)) if best else 0


def stalled(job: Job, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the recipe's patience is at its end."""
    patience = job.recipe.optim.patience
    return 0 < patience <= waited(job, rows)


def reason(job: Job, rows: Sequence[Mapping[str, Any]]) -> str:
    """Why and where the training ended, and what it leaves out, in a line."""
    optim, last = job.recipe.optim, rows[-1]
    return (
        f"stopped after epoch {len(rows)} of {optim.epochs}: no better validation accuracy for {waited(job, rows)} "
        f"epochs (optim.patience); the end of the schedule was not reached, the learning rate was {last['lr']:.3g}"
    )
