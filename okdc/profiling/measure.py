"""What one network costs: parameters, MACs, the size of its file and the time of an image, and stage by stage.

Networks of one architecture, size and number of classes are measured once, whatever their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from okdc.bundle.session import Session
from okdc.cohort import Backbone
from okdc.deploy import latency, onnx
from okdc.deploy.count import Counts, count
from okdc.progress import Progress

Key = tuple[str, int, int]  # architecture, size, classes


@dataclass(frozen=True)
class Subject:
    """Something to measure: one row of a profile."""

    name: str
    kind: str  # network, student or training
    architecture: str
    module: nn.Module
    size: int
    classes: int
    model: bytes | None = None  # an ONNX file that is there already
    export: bool = False
    facts: dict[str, Any] | None = None  # student.json, of a student that was trained
    run: str | None = None  # whose student it is
    student: int | None = None  # its number in that run
    kept: bool = False
    result: dict[str, Any] | None = None  # what result.json says of it, and of the images that judged it

    @property
    def key(self) -> Key:
        return self.architecture, self.size, self.classes


@dataclass
class Measured:
    """What is the same for all rows of one architecture."""

    counts: Counts
    onnx_bytes: int | None = None
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)


def networks(subjects: Iterable[Subject]) -> dict[Key, Subject]:
    """Of each architecture, size and number of classes one: whichever row has a file lends it to the others."""
    found: dict[Key, Subject] = {}
    for subject in subjects:
        if subject.kind != "training":
            before = found.setdefault(subject.key, subject)
            found[subject.key] = replace(
                before, model=before.model or subject.model, export=before.export or subject.export
            )
    return found


def measure(subject: Subject, threads: int, tell: Progress) -> Measured:
    """Counts of any module; of a network also its file and its latency, batch 1, in torch and in onnxruntime.

    Raises CheckFailed where the two counters disagree.
    """
    example = torch.zeros(1, 3, subject.size, subject.size)
    found = Measured(count(subject.module, example))
    if not isinstance(subject.module, Backbone):
        return found
    found.stages = _stages(subject.module, found.counts, example)
    model = subject.model
    facts = subject.facts or _plain_facts(subject)
    if model is None and subject.export:
        tell.note(f"exporting {subject.architecture} for its file size and latency")
        model = onnx.to_onnx(subject.module, facts)
    rule = facts["preprocessing"]
    deploy = onnx.Deploy(subject.module, rule["mean"], rule["std"]).eval()
    image = torch.zeros(1, subject.size, subject.size, 3, dtype=torch.uint8)
    variants: dict[str, Callable[[], object]] = {"torch": lambda: deploy(image)}
    if model is not None:
        found.onnx_bytes = len(model)
        session, pixels = Session(model, threads), np.zeros((1, subject.size, subject.size, 3), np.uint8)
        variants["onnxruntime"] = lambda: session(pixels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found.latency_ms = latency.measure(variants)
    finally:
        torch.set_num_threads(before)
    return found


def _plain_facts(subject: Subject) -> dict[str, Any]:
    """What an export needs to be told of a network that nothing was trained on; sizes and times do not depend on it."""
    return {
        "architecture": subject.architecture,
        "classes": [str(c) for c in range(subject.classes)],
        "preprocessing": {"size": subject.size, "resize": "", "mean": [0.5] * 3, "std": [0.25] * 3},
        "method": "none",
        "dataset": "none",
        "recipe_sha256": "",
        "weights_sha256": "",
    }


@torch.inference_mode()
def _stages(network: Backbone, counts: Counts, example: Tensor) -> list[dict[str, Any]]:
    """One line a stage and one for the head: output size, parameters, MACs."""
    rows, x = [], example
    parts = [(f"stages.{i}", stage) for i, stage in enumerate(network.stages)] + [("head", network.head)]
    for name, part in parts:
        x = part(x)
        params = sum(p.numel() for p in part.parameters())
        rows.append({"stage": name, "output": list(x.shape[1:]), "params": params, "macs": counts.modules[name]})
    return rows
