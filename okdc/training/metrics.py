"""What is measured, kept on the device until an epoch is over: reading it earlier would stall a GPU at every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from okdc.distributed import ALONE, Ranks
from okdc.methods.base import Batch, Method, Step
from okdc.training import averaging
from okdc.training.averaging import Average


@dataclass(frozen=True)
class Summary:
    """Means over an epoch, on the host."""

    losses: dict[str, float]
    top1_pct: dict[str, float]
    bad: tuple[int, str] | None  # the first step of the run with a loss that is not finite, and its term
    balanced_pct: dict[str, float] = field(default_factory=dict)  # the mean of the classes', where these were counted

    def accuracy_pct(self, metric: str) -> dict[str, float]:
        """Of each head: top1 or balanced."""
        return self.balanced_pct if metric == "balanced" else self.top1_pct


class Totals:
    """Running sums of one epoch: each loss term, correct predictions of each head, the first bad step."""

    def __init__(self, device: torch.device, classes: int = 0) -> None:
        """`classes`: how many there are, where each is counted by itself; 0: they are not."""
        self.device = device
        self.by_class = torch.zeros(0, classes, dtype=torch.float64, device=device)  # right of each head; last: images
        self.terms: tuple[str, ...] = ()
        self.heads: tuple[str, ...] = ()
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)  # of each term, of each head
        self.steps = self.images = 0  # the host knows them
        self.bad = torch.tensor([-1, -1], device=device)  # step, term

    def add(self, step: Step, labels: Tensor, number: int) -> None:
        """Count one step; `number` is its place in the whole run. Of mixed images `labels` are the first of the two."""
        if not self.terms:
            self.begin(tuple(step.losses), tuple(step.logits))
        accumulate(step, labels, torch.full((), number, device=self.device), self.sums, self.bad)
        if self.by_class.numel():
            count_classes(step, labels, self.by_class)
        self.took(len(labels))

    def begin(self, terms: tuple[str, ...], heads: tuple[str, ...]) -> None:
        """Start the sums of loss terms and heads by these names."""
        self.terms, self.heads = terms, heads
        self.sums = torch.zeros(len(terms) + len(heads), dtype=torch.float64, device=self.device)
        self.by_class = self.by_class.new_zeros(len(heads) + 1, self.by_class.shape[1])

    def move(self, to: Totals) -> None:
        """Keep the sums in the tensors of `to`, which has the same terms and heads."""
        if self.terms:
            to.sums.copy_(self.sums)
        else:
            self.terms, self.heads = to.terms, to.heads
            to.sums.zero_()
        to.bad.copy_(self.bad)
        self.sums, self.bad = to.sums, to.bad

    def took(self, images: int) -> None:
        """What the host counts of a step."""
        self.steps, self.images = self.steps + 1, self.images + images

    def read(self, ranks: Ranks = ALONE) -> Summary:
        """Wait for the device and read everything once: of all processes together, and the same in each of them."""
        whole = self if ranks.alone else Totals.together(ranks.gathered(self.state()))
        sums, (step, term) = whole.sums.tolist(), whole.bad.tolist()
        n, steps, images = len(whole.terms), max(whole.steps, 1), max(whole.images, 1)
        return Summary(
            losses={name: total / steps for name, total in zip(whole.terms, sums, strict=False)},
            top1_pct={name: 100 * total / images for name, total in zip(whole.heads, sums[n:], strict=True)},
            bad=None if step < 0 else (step, whole.terms[term]),
            balanced_pct=dict(zip(whole.heads, _balanced_pct(whole.by_class), strict=False)),
        )

    def state(self) -> dict[str, Any]:
        """On the CPU: of one process, for a checkpoint or for the others."""
        names = {"terms": list(self.terms), "heads": list(self.heads)}
        counts = {"sums": self.sums.cpu(), "by_class": self.by_class.cpu(), "bad": self.bad.cpu()}
        return names | counts | {"steps": self.steps, "images": self.images}

    @classmethod
    def restore(cls, state: dict[str, Any], device: torch.device) -> Totals:
        totals = cls(device)
        totals.terms, totals.heads = tuple(state["terms"]), tuple(state["heads"])
        totals.sums, totals.bad = state["sums"].to(device), state["bad"].to(device)
        totals.by_class = state["by_class"].to(device)
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
            whole.sums, whole.by_class = whole.sums + part.sums, whole.by_class + part.by_class
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


@torch.no_grad()
def accumulate(step: Step, labels: Tensor, number: Tensor, sums: Tensor, bad: Tensor) -> None:
    """Add a step to `sums` and note it in `bad` if it is the first with a loss that is not finite, in place.

    `number`, 0-d, is the step's place in the run. Everything stays on the device.
    """
    losses = torch.stack([loss.detach() for loss in step.losses.values()]).double()
    guesses = torch.stack([z.argmax(1) for z in step.logits.values()])  # H×N, of H heads
    sums += torch.cat([losses, (guesses == labels).sum(1).double()])
    # The first bad step is kept by a choice between two tensors: an `if` would wait for the device at every step.
    bad_terms = ~torch.isfinite(losses)
    is_first = (bad[0] < 0) & bad_terms.any()
    bad.copy_(torch.where(is_first, torch.stack([number, bad_terms.int().argmax()]), bad))


def count_classes(step: Step, labels: Tensor, by_class: Tensor) -> None:
    """Add a step to `by_class`, (H+1)×K float64 of H heads and K classes: right predictions of each, then images."""
    each = torch.arange(by_class.shape[1], device=labels.device)
    of_class = (labels[:, None] == each).double()  # N×K; a product in float64 is exact, and no autocast touches it
    right = torch.stack([z.argmax(1) for z in step.logits.values()]) == labels  # H×N
    by_class += torch.cat([right.double() @ of_class, of_class.sum(0, keepdim=True)])


def _balanced_pct(by_class: Tensor) -> list[float]:
    """Of each head the mean accuracy of the classes that occur; nothing where no class was counted."""
    if not by_class.numel():
        return []
    *right, images = by_class.cpu()
    return [100 * (bits[images > 0] / images[images > 0]).mean().item() for bits in right]


@torch.inference_mode()
def count(
    method: Method,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    average: Average | None = None,
    classes: int = 0,
) -> Totals:
    """Accuracy and losses of every head in one pass, in eval mode, over the batches of this process.

    Heads of an `average` are counted too. `classes` as `Totals` takes it.
    """
    method.eval()  # the whole method: a fused classifier left in training mode would move its batch statistics
    totals = Totals(device, classes)
    done = torch.ones((), device=device)  # the ramp at its end: losses of two epochs are then comparable
    for images, labels in batches:
        totals.add(averaging.answers(method, Batch(images, labels), done, average), labels, 0)
    return totals


def top1_pct(logits: Tensor, labels: Tensor) -> float:
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
