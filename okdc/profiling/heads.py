"""The classifiers of a run that are thrown away, as rows of a profile: what a deployed one would cost and give.

No bundle can be made of them. They stand beside the students to show what is given up: the fused classifier and the
ensemble are mostly more accurate than each student, and cost as much as all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from okdc.deploy.count import Counts
from okdc.methods.base import Batch, Method
from okdc.runs.artefacts import Result
from okdc.runs.run import RunDir

ENSEMBLE = "ensemble"


class Heads(nn.Module):
    """A method as a function of images alone, for the counters: every head's logits, NK, in the method's order."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.logits(images).values())

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        batch = Batch(images, torch.zeros(len(images), dtype=torch.int64))
        return self.method(batch, torch.ones(())).logits  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Head:
    """A classifier of a complete run at its last epoch."""

    run: RunDir
    name: str
    result: Result
    val_top1_pct: float | None

    @property
    def top1_pct(self) -> float:
        return self.result.heads_last_epoch_top1_pct[self.name]


def of_run(run: RunDir) -> list[Head]:
    """The fused classifier and the ensemble of a complete run, as far as its method has them."""
    result, rows = run.read_result(), run.rows()
    validated = rows[-1]["val_top1_pct"] if rows else {}
    names = dict.fromkeys((result.method_card.fused_head, ENSEMBLE))
    return [Head(run, name, result, validated.get(name)) for name in names if name in result.heads_last_epoch_top1_pct]


def needed(whole: Heads, name: str, counts: Counts, example: Tensor) -> Counts:
    """Of the `counts` of a whole method what the head `name` needs: the layers that its logits depend on.

    Not among it are products outside of any layer, which no method of okdc's has before its heads.
    """
    fixed = [p for p in whole.parameters() if not p.requires_grad]  # a mean of weights, which a head may need, too
    whole.zero_grad(set_to_none=True)
    for p in fixed:
        p.requires_grad_(True)
    with torch.enable_grad():
        whole.logits(example)[name].sum().backward()
    used = {id(p) for p in whole.parameters() if p.grad is not None}
    whole.zero_grad(set_to_none=True)
    for p in fixed:
        p.requires_grad_(False)
    layers = [
        (path, module)
        for path, module in whole.named_modules()
        if any(id(p) in used for p in module.parameters(recurse=False))
    ]
    macs = sum(counts.modules[path] for path, _ in layers)
    params = sum(p.numel() for p in whole.parameters() if id(p) in used)
    return Counts(params, params, counts.buffers, macs, 2 * macs, None, None, counts.uncounted, counts.ignored)
