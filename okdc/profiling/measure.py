"""What one network costs: parameters, MACs, the size of its file and the time of an image, and stage by stage.

Networks of one architecture, size and number of classes are measured once, whatever their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from okdc.assembly.student import Student
from okdc.bundle.session import Session
from okdc.cohort import Backbone
from okdc.deploy import latency, onnx
from okdc.deploy.count import Counts, count
from okdc.profiling.heads import Head
from okdc.progress import Progress
from okdc.runs.artefacts import Result

Key = tuple[str, int, int]  # architecture, size, classes


@dataclass(frozen=True)
class Trained:
    """A student of a complete run."""

    run: Path
    student: Student
    record: Result

    @property
    def is_kept(self) -> bool:
        return self.student.info.student == self.record.kept.student


@dataclass(frozen=True)
class Subject:
    """Something to measure: one row of a profile."""

    name: str
    kind: Literal["network", "student", "head", "training"]
    architecture: str
    module: nn.Module
    size: int
    classes: int
    model: bytes | None = None  # an ONNX file that is there already
    export: bool = False
    trained: Trained | None = None
    heads: tuple[Head, ...] = ()  # of a whole training: the classifiers of a complete run that are thrown away

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
    """One subject for each architecture, size and number of classes: a row that has a file lends it to the others."""
    by_key: dict[Key, Subject] = {}
    for subject in subjects:
        if subject.kind != "training":
            before = by_key.setdefault(subject.key, subject)
            by_key[subject.key] = replace(
                before, model=before.model or subject.model, export=before.export or subject.export
            )
    return by_key


def measure(subject: Subject, threads: int, tell: Progress) -> Measured:
    """Counts of any module; of a network also its file and its latency, batch 1, in torch and in onnxruntime.

    Raises CheckFailed where the two counters disagree.
    """
    example = torch.zeros(1, 3, subject.size, subject.size)
    measured = Measured(count(subject.module, example))
    if not isinstance(subject.module, Backbone):
        return measured
    measured.stages = _stages(subject.module, measured.counts, example)
    info = (
        subject.trained.student.info
        if subject.trained
        else onnx.untrained(subject.architecture, subject.size, subject.classes)
    )
    model = subject.model
    if model is None and subject.export:
        tell.note(f"exporting {subject.architecture} for its file size and latency")
        model = onnx.to_onnx(subject.module, info)
    deploy = onnx.Deploy(subject.module, info.preprocessing.mean, info.preprocessing.std).eval()
    pixels = np.zeros((1, subject.size, subject.size, 3), np.uint8)
    image = torch.from_numpy(pixels)
    variants: dict[str, Callable[[], object]] = {"torch": lambda: deploy(image)}
    if model is not None:
        measured.onnx_bytes = len(model)
        session = Session(model, threads)
        variants["onnxruntime"] = lambda: session(pixels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            measured.latency_ms = latency.measure(variants)
    finally:
        torch.set_num_threads(before)
    return measured


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
