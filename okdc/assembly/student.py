"""A run's students, read back from their files: `load` is the one way to a student that a run recorded.

It proves both files of a student by the hashes in result.json, for every command that uses a student. Without an index
the student is the kept one.

Shapes: N images, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor, nn

from okdc import backbones
from okdc.cohort import Backbone
from okdc.data.batches import EVAL_BATCH, Normalise, eval_batches
from okdc.data.datasets import Dataset
from okdc.errors import CheckFailed, RunError, first_line
from okdc.runs import artefacts, trust
from okdc.runs.artefacts import Judged, Preprocessing, Result, StudentInfo
from okdc.runs.run import RunDir
from okdc.seeds import seeded


@dataclass(frozen=True)
class Student:
    """A student of a complete run, proven to be the one that the run recorded."""

    network: Backbone  # in eval mode
    info: StudentInfo
    result: Judged  # its row of result.json


def load(run: RunDir, index: int | None = None) -> Student:
    """Raises RunError for a run that is not complete, a student that it lacks or a damaged file; CheckFailed
    ("accuracy") where the weights or student.json are not those that the run recorded. RunError, too, where the
    architecture is code that is not trusted.
    """
    result = recorded(run)
    if index is None:
        index = result.kept.student
    if not 0 <= index < len(result.cohort):
        raise RunError(f"{run.path} has no student{index}", hint=f"it has student0 to student{len(result.cohort) - 1}")
    row = result.cohort[index]
    weights, description = files(run, index, result.kept.student)
    info = artefacts.read(description, StudentInfo)
    _prove(description, _read(description), row.student_sha256)
    trust.check(run.path, run.read_info().started_at, trust.code_among([info.architecture]))
    return Student(_network(weights, info, row.weights_sha256), info, row)


def recorded(run: RunDir) -> Result:
    """result.json. Raises RunError for a run that is not complete, or whose record is damaged."""
    if (state := run.state()) != "complete":
        hint = run.resume_command() if state == "resumable" else "start another run: okdc distill"
        raise RunError(f"{run.path} is {state}, not complete: it has no student yet", hint=hint)
    return run.read_result()


def files(run: RunDir, index: int, kept: int) -> tuple[Path, Path]:
    """A student's weights and description: the kept one's lie beside the recipe, the others' in students/."""
    return (run.weights, run.student) if index == kept else run.files_of_other(index)


def open_written(run: RunDir, index: int, kept: int) -> tuple[Backbone, StudentInfo]:
    """A student as the end of a training has written it, before there is a result: in eval mode, and its student.json.

    Raises as `load`; the hash of the weights is that of student.json.
    """
    weights, description = files(run, index, kept)
    info = artefacts.read(description, StudentInfo)
    return _network(weights, info, info.weights_sha256), info


def _network(path: Path, info: StudentInfo, expected_sha256: str) -> Backbone:
    content = _read(path)
    wrong = f"{path}: not the weights of a {info.architecture}"
    try:
        weights = from_safetensors(content)
    except SafetensorError as error:
        raise RunError(f"{wrong}: {first_line(error)}") from None
    _prove(path, content, expected_sha256)
    network = empty(info.architecture, len(info.classes), info.preprocessing.size)
    try:
        network.load_weights(weights)
    except RuntimeError as error:  # names the keys and sizes that differ
        raise RunError(f"{wrong}: {first_line(error)}") from None
    return network.eval()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None


def _prove(path: Path, content: bytes, expected_sha256: str) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected_sha256:
        raise CheckFailed(
            "accuracy",
            f"{path} is not the file that the run recorded: sha256 {sha256[:12]}, expected {expected_sha256[:12]}",
            hint="another student was put in its place, or it was edited; restore it, or train again",
        )


def empty(architecture: str, classes: int, size: int) -> Backbone:
    """A network with fresh weights."""
    with seeded(0, "init"):
        return backbones.build(architecture, classes, square(size))


def square(size: int) -> torch.Size:
    """CHW of square colour images."""
    return torch.Size((3, size, size))


# ---------------------------------------------------------------------------------------------------------------------
# The students' answers


def answers(student: Student, dataset: Dataset, rows: Tensor) -> tuple[Tensor, Tensor]:
    """NK logits in float32 on the CPU, and N labels, of the images `rows`.

    In plain memory format and by one batch size: the same numbers in every command.
    """
    batches = eval_batches(dataset, rows, normalise(student.info.preprocessing), EVAL_BATCH)
    return logits_of(student.network, batches)


def normalise(rule: Preprocessing) -> Normalise:
    """The transform by which `answers` feeds a student: on the CPU, in plain memory format."""
    return Normalise(rule.mean, rule.std)


@torch.inference_mode()
def logits_of(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """NK float32 logits of one network over all batches, and N labels, on the CPU."""
    network.eval()
    parts = [(network(images).float().cpu(), labels.cpu()) for images, labels in batches]
    return torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])
