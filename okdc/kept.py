"""The kept student, read back from its run's files: what is judged, profiled, exported, and what teaches others."""

from __future__ import annotations

from typing import Any

import torch

from okdc import backbones
from okdc.cohort import Backbone
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
