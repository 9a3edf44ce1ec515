"""What is measured, kept on the device until an epoch is over: reading it earlier would stall a GPU at every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from okdc.distributed import ALONE, Ranks
from okdc.methods.base import Batch, Method, Step


@dataclass(frozen=True)
class Summary:
    """Means over an epoch, on the host."""

    losses: dict[str, float]
    top1_pct: dict[str, float]
    bad: tuple[int, str] | None  # the first step of the run with a loss that is not finite, and its term


class Totals:
    """Running sums of one epoch: each loss term, correct predictions of each head, the first bad step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.terms: tuple[str, ...] = ()
        self.heads: tuple[str, ...] = ()
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)  # of each term, of each head
        self.steps = self.images = 0  # the host knows them
        self.bad = torch.tensor([-1, -1], device=device)  # step, term

    @torch.no_grad()
    def add(self, step: Step, labels: Tensor, number: int) -> None:
        """Count one step; `number` is its place in the whole run. Of mixed images `labels` are the first of the two."""
        if not self.terms:
            self.terms, self.heads = tuple(step.losses), tuple(step.logits)
            self.sums = torch.zeros(len(self.terms) + len(self.heads), dtype=torch.float64, device=self.device)
        losses = torch.stack([loss.detach() for loss in step.losses.values()]).double()
        correct = torch.stack([(z.argmax(1) == labels).sum() for z in step.logits.values()]).double()
        self.sums += torch.cat([losses, correct])
        self.steps, self.images = self.steps + 1, self.images + len(labels)
        # The first bad step is kept by a choice between two tensors: an `if` would wait for the device at every step.
        bad_terms = ~torch.isfinite(losses)
        is_first = (self.bad[0] < 0) & bad_terms.any()
        place = torch.stack([torch.full((), number, device=self.device), bad_terms.int().argmax()])
        self.bad = torch.where(is_first, place, self.bad)

    def read(self, ranks: Ranks = ALONE) -> Summary:
        """Wait for the device and read everything once: of all processes together, and the same in each of them."""
        whole = self if ranks.alone else Totals.together(ranks.gathered(self.state()))
        sums, (step, term) = whole.sums.tolist(), whole.bad.tolist()
        n, steps, images = len(whole.terms), max(whole.steps, 1), max(whole.images, 1)
        return Summary(
            losses={name: total / steps for name, total in zip(whole.terms, sums, strict=False)},
            top1_pct={name: 100 * total / images for name, total in zip(whole.heads, sums[n:], strict=True)},
            bad=None if step < 0 else (step, whole.terms[term]),
        )

    def state(self) -> dict[str, Any]:
        """On the CPU: of one process, for a checkpoint or for the others."""
        names = {"terms": list(self.terms), "heads": list(self.heads)}
        return names | {"sums": self.sums.cpu(), "steps": self.steps, "images": self.images, "bad": self.bad.cpu()}

    @classmethod
    def restore(cls, state: dict[str, Any], device: torch.device) -> Totals:
        totals = cls(device)
        totals.terms, totals.heads = tuple(state["terms"]), tuple(state["heads"])
        totals.sums, totals.bad = state["sums"].to(device), state["bad"].to(device)
        totals.steps, totals.images = state["steps"], state["images"]
        return totals

    @classmethod
    def together(cls, states: Sequence[dict[str, Any]]) -> Totals:
        """The sums of several processes as those of one. A process that had no batch yet knows no names."""
        parts = [cls.restore(state, torch.device("cpu")) for state in states if state["terms"]]
        if not parts:
            return cls(torch.device("cpu"))
        whole, *others = parts
        for part in others:
            whole.sums = whole.sums + part.sums
            whole.steps, whole.images = whole.steps + part.steps, whole.images + part.images
            if int(whole.bad[0]) < 0 or 0 <= int(part.bad[0]) < int(whole.bad[0]):
                whole.bad = part.bad
        return whole

    @classmethod
    def resumed(cls, states: Sequence[dict[str, Any]], device: torch.device, ranks: Ranks) -> Totals:
        """What this process had counted when all saved; of another number of processes the first one gets the sum."""
        if len(states) == ranks.count:
            return cls.restore(states[ranks.rank], device)
        return cls.restore(cls.together(states).state(), device) if ranks.first else cls(device)


@torch.inference_mode()
def count(method: Method, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Totals:
    """Accuracy and losses of every head in one pass, in eval mode, over the batches of this process."""
    method.eval()  # the whole method: a fused classifier left in training mode would move its batch statistics
    totals = Totals(device)
    done = torch.ones((), device=device)  # the ramp at its end: losses of two epochs are then comparable
    for images, labels in batches:
        totals.add(method(Batch(images, labels), done), labels, 0)
    return totals


def top1_pct(logits: Tensor, labels: Tensor) -> float:
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
