"""What the runs of a study cost: the multiply-adds of each training, counted on its recipe's untrained method."""

from __future__ import annotations

import torch

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly.student import square
from okdc.comparison.finished import Finished
from okdc.studies.plan import Planned
from okdc.training import cost


def training_macs(run: Planned, finished: Finished) -> int | None:
    """Of all steps of a finished run, forward and backward; a teacher's forward pass is counted, its training is not.

    None where `okdc.training.cost.step_macs` has no number, or where the first epochs fix the backbones
    (`optim.freeze_epochs`): which steps learn less is not in the recipe alone.
    """
    resolved, result = run.resolved(needs_data=False), finished.result
    optim, images = resolved.recipe.optim, square(resolved.recipe.data.image_size)
    if optim.freeze_epochs:
        return None
    classes = len(finished.info.classes)
    teacher = backbones.build(result.teacher.architecture, classes, images) if result.teacher else None
    with torch.random.fork_rng(devices=[]):
        method, _ = assembly.method(resolved, images, classes, teacher)
        step = cost.step_macs(method, optim.batch_size, optim.epochs)
    return None if step is None else step * result.steps
