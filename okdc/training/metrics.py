"""What is measured, kept on the device until an epoch is over: reading it earlier would stall a GPU at every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from okdc.methods.method import Method, Step


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
        """Count one step; `number` is its place in the whole run."""
        if not self.terms:
            self.terms, self.heads = tuple(step.losses), tuple(step.logits)
            self.sums = torch.zeros(len(self.terms) + len(self.heads), dtype=torch.float64, device=self.device)
        losses = torch.stack([loss.detach() for loss in step.losses.values()]).double()
        correct = torch.stack([(z.argmax(1) == labels).sum() for z in step.logits.values()]).double()
        self.sums += torch.cat([losses, correct])
        self.steps, self.images = self.steps + 1, self.images + len(labels)
        wrong = ~torch.isfinite(losses)
        first = (self.bad[0] < 0) & wrong.any()
        here = torch.stack([torch.full((), number, device=self.device), wrong.int().argmax()])
        self.bad = torch.where(first, here, self.bad)

    def read(self) -> Summary:
        """Wait for the device and read everything once."""
        sums, (step, term) = self.sums.tolist(), self.bad.tolist()
        n, steps, images = len(self.terms), max(self.steps, 1), max(self.images, 1)
        return Summary(
            losses={name: total / steps for name, total in zip(self.terms, sums, strict=False)},
            top1_pct={name: 100 * total / images for name, total in zip(self.heads, sums[n:], strict=True)},
            bad=None if step < 0 else (step, self.terms[term]),
        )

    def state(self) -> dict[str, object]:
        names = {"terms": list(self.terms), "heads": list(self.heads)}
        return names | {"sums": self.sums, "steps": self.steps, "images": self.images, "bad": self.bad}

    @classmethod
    def restore(cls, state: dict[str, object], device: torch.device) -> Totals:
        totals = cls(device)
        assert isinstance(state["terms"], list)
        assert isinstance(state["heads"], list)
        assert isinstance(state["sums"], Tensor)
        assert isinstance(state["steps"], int)
        assert isinstance(state["images"], int)
        assert isinstance(state["bad"], Tensor)
        totals.terms, totals.heads = tuple(state["terms"]), tuple(state["heads"])
        totals.sums, totals.bad = state["sums"].to(device), state["bad"].to(device)
        totals.steps, totals.images = state["steps"], state["images"]
        return totals


@torch.inference_mode()
def evaluate(method: Method, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Summary:
    """Accuracy and losses of every head in one pass, in eval mode; `bad` tells whether anything was not finite."""
    method.eval()  # the whole method: a fused classifier left in training mode would move its batch statistics
    totals = Totals(device)
    done = torch.ones((), device=device)
    for images, labels in batches:
        totals.add(method(images, labels, done), labels, 0)
    return totals.read()


def top1_pct(logits: Tensor, labels: Tensor) -> float:
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
