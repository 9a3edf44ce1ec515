"""The kept student, read back from its run's files: what is judged, profiled, exported, and what teaches others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from okdc import backbones
from okdc.cohort import Backbone
from okdc.data.batches import EVAL_BATCH, Normalise, eval_batches
from okdc.data.datasets import Dataset
from okdc.errors import RunError
from okdc.files import read_json
from okdc.run import Run
from okdc.seeds import seeded


def empty(facts: dict[str, Any]) -> Backbone:
    """The network that student.json describes, with fresh weights."""
    with seeded(0, "init"):
        return backbones.build(facts["architecture"], len(facts["classes"]), square(facts["preprocessing"]["size"]))


def square(size: int) -> torch.Size:
    """CHW of square colour images."""
    return torch.Size((3, size, size))


def load(run: Run) -> tuple[Backbone, dict[str, Any]]:
    """The kept student, read back from its file, in eval mode, and student.json."""
    from safetensors.torch import load_file

    facts = read_json(
        run.student, "architecture", "classes", "preprocessing", "student", "epoch", "method", "dataset",
        "recipe_sha256", "weights_sha256",
    )  # fmt: skip
    network = empty(facts)
    try:
        network.load_weights(load_file(run.weights))
    except Exception as error:  # safetensors raises its own kinds, torch a RuntimeError that lists keys
        raise RunError(f"{run.weights}: not the weights of a {facts['architecture']}: {error}") from None
    return network.eval(), facts


def weights_sha256(run: Run) -> str:
    """Of the file as it lies there, whatever student.json says of it."""
    return hashlib.sha256(run.weights.read_bytes()).hexdigest()


def answers(network: Backbone, facts: Mapping[str, Any], dataset: Dataset, rows: Tensor) -> tuple[Tensor, Tensor]:
    """NK logits of a student as student.json describes it, in float32 on the CPU, and the labels.

    In plain memory format and by one batch size: the same numbers wherever they are asked.
    """
    rule = facts["preprocessing"]
    return logits_of(network, eval_batches(dataset, rows, Normalise(rule["mean"], rule["std"]), EVAL_BATCH))


@torch.inference_mode()
def logits_of(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """NK float32 logits of one network over all batches, and the labels, on the CPU."""
    network.eval()
    found = [(network(images).float().cpu(), labels.cpu()) for images, labels in batches]
    return torch.cat([z for z, _ in found]), torch.cat([y for _, y in found])
