"""Classes of unequal size: the order of an epoch that shows each equally often, and weights that count each as much."""

from __future__ import annotations

import torch
from torch import Tensor

from okdc.seeds import generator


def order(rows: Tensor, labels: Tensor, epoch: int, seed: int) -> Tensor:
    """As many rows as there are, class by class in rounds: in each round every class once, in an order of its own.

    So each class occurs equally often, but for one, in an epoch, in its whole batches, and wherever it is cut. The
    images of a class come in a random order, and in another one once all have been taken.

    `rows` are N indices into a data set, `labels` their classes. A function of the seed and the epoch.
    """
    random = generator(seed, "epoch", epoch, "balanced")
    classes = labels.unique()  # sorted
    rounds = -(-len(rows) // len(classes))
    chosen = torch.stack([_in_turns(rows[labels == c], rounds, random) for c in classes])  # K×rounds
    turns = torch.rand(rounds, len(classes), generator=random).argsort(1)  # of each round the order of the classes
    return chosen.T.gather(1, turns).flatten()[: len(rows)]


def _in_turns(members: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`count` of a class's rows: all in a random order, and so again, as often as it takes."""
    times = -(-count // len(members))
    return torch.cat([members[torch.randperm(len(members), generator=random)] for _ in range(times)])[:count]


def times_before(rows: Tensor) -> Tensor:
    """How often each of N rows has come before in their order. N."""
    ordered, places = rows.sort(stable=True)
    first = torch.searchsorted(ordered, ordered)  # where the run of equal rows begins
    before = torch.empty_like(rows)
    before[places] = torch.arange(len(rows)) - first
    return before


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """n/(K·n_c) of K classes, K float32: n labels, n_c of them of class c. Their mean over the labels is 1.

    A class without an image has the weight 0.
    """
    counts = torch.bincount(labels, minlength=classes).double()
    weights = len(labels) / (classes * counts)
    return torch.where(counts > 0, weights, torch.zeros_like(weights)).float()
