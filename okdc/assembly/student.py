"""A run's students, read back from its files: what is judged, profiled, exported, and what teaches others.

Without a number it is the kept one. The files of the others are written at the end of the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from okdc import backbones
from okdc.cohort import Backbone
from okdc.data.batches import EVAL_BATCH, Normalise, eval_batches
from okdc.data.datasets import Dataset
from okdc.errors import RunError
from okdc.runs.files import read_json
from okdc.runs.run import Run
from okdc.seeds import seeded


def empty(facts: dict[str, Any]) -> Backbone:
    """The network that student.json describes, with fresh weights."""
    with seeded(0, "init"):
        return backbones.build(facts["architecture"], len(facts["classes"]), square(facts["preprocessing"]["size"]))


def square(size: int) -> torch.Size:
    """CHW of square colour images."""
    return torch.Size((3, size, size))


def files(run: Run, student: int | None = None) -> tuple[Path, Path]:
    """The weights of a student and their description: the kept one's beside the recipe, the others' in students/."""
    if student is None or read_json(run.student, "student")["student"] == student:
        return run.weights, run.student
    return run.files_of_other(student)


def load(run: Run, student: int | None = None) -> tuple[Backbone, dict[str, Any]]:
    """A student in eval mode and its student.json. Raises RunError where a file is missing or damaged."""
    from safetensors.torch import load_file

    weights, described = files(run, student)
    facts = read_json(
        described, "architecture", "classes", "preprocessing", "student", "epoch", "method", "dataset",
        "recipe_sha256", "weights_sha256",
    )  # fmt: skip
    network = empty(facts)
    try:
        network.load_weights(load_file(weights))
    except Exception as error:  # safetensors raises its own kinds, torch a RuntimeError that lists keys
        raise RunError(f"{weights}: not the weights of a {facts['architecture']}: {error}") from None
    return network.eval(), facts


def weights_sha256(run: Run, student: int | None = None) -> str:
    """Of the file as it lies there, whatever student.json says of it."""
    return hashlib.sha256(files(run, student)[0].read_bytes()).hexdigest()


def answers(network: Backbone, facts: Mapping[str, Any], dataset: Dataset, rows: Tensor) -> tuple[Tensor, Tensor]:
    """NK logits of a student as student.json describes it, in float32 on the CPU, and the labels.

    In plain memory format and by one batch size: the same numbers wherever they are asked.
    """
    return logits_of(network, _batches(facts, dataset, rows))


@torch.inference_mode()
def top1_pct(networks: Sequence[Backbone], facts: Mapping[str, Any], dataset: Dataset, rows: Tensor) -> list[float]:
    """Of several students that one run trained, what `answers` says of each: an image in a file is decoded once."""
    right = [0] * len(networks)
    for images, labels in _batches(facts, dataset, rows):
        for k, network in enumerate(networks):
            right[k] += int((network(images).float().cpu().argmax(1) == labels.cpu()).sum())
    return [100 * hits / len(rows) for hits in right]


def _batches(facts: Mapping[str, Any], dataset: Dataset, rows: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    rule = facts["preprocessing"]
    return eval_batches(dataset, rows, Normalise(rule["mean"], rule["std"]), EVAL_BATCH)


@torch.inference_mode()
def logits_of(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """NK float32 logits of one network over all batches, and the labels, on the CPU."""
    network.eval()
    found = [(network(images).float().cpu(), labels.cpu()) for images, labels in batches]
    return torch.cat([z for z, _ in found]), torch.cat([y for _, y in found])
