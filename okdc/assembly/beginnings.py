"""Trained weights into students. The head, which depends on the number of classes, is new unless those are the same.

A network is built once more with one class more: the tensors whose shapes differ are its head, wherever they stand and
whatever they are called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from okdc import backbones
from okdc.assembly.teacher import SPLIT
from okdc.assembly.weights import Loaded
from okdc.backbones.pretrained import Facts
from okdc.cohort import Backbone
from okdc.errors import RecipeError, by
from okdc.progress import WARNING
from okdc.runs.artefacts import Start

LISTED = 10  # keys that an error names


@dataclass
class _Begun:
    """A student with trained weights in it."""

    loaded: Loaded
    architecture: str
    tensors: int  # of the student, those that the weights gave it
    head: dict[str, Tensor]  # the student's own tensors, by key, that depend on the number of classes
    fresh: dict[str, Tensor]  # the head as it was initialised, where the weights have one for as many classes
    reason: str = ""  # why the head is new

    @property
    def head_is_new(self) -> bool:
        return not self.fresh


class Beginnings:
    """The trained weights of a cohort's students, and what of them the students have taken."""

    def __init__(self, loaded: Sequence[Loaded | None]) -> None:
        self.loaded = tuple(loaded)
        self._begun: dict[int, _Begun] = {}

    @property
    def sha256s(self) -> tuple[str, ...]:
        """Of each student; empty for random weights."""
        return tuple(start.sha256 if start else "" for start in self.loaded)

    def check_shared(self, reason: str, hint: str) -> None:
        """Raises RecipeError where the students would start from different weights, which `reason` forbids."""
        if len(set(self.sha256s)) > 1:
            starts = ", ".join(start.origin.where if start else "random weights" for start in self.loaded)
            raise RecipeError(f"cohort.weights: {reason}, and start from different weights: {starts}", hint=hint)

    def put(self, k: int, student: Backbone, classes: int, images: torch.Size) -> None:
        """Student k takes its weights, all but a head for another number of classes.

        Nothing is drawn. Raises RecipeError with every key that does not fit; the student is then as it was.
        """
        if (loaded := self.loaded[k]) is not None:
            self._begun[k] = _put(loaded, student, classes, images)

    @torch.no_grad()
    def settle(self, labels: Sequence[str], twins: bool = False) -> list[str]:
        """Give back the fresh head of a student whose weights tell other classes apart than `labels`, though as many.

        Returns a note for each student, and a warning where two of them start as one network unless `twins` is true.
        """
        notes = []
        for k, begun in self._begun.items():
            theirs = begun.loaded.origin.facts.labels
            if not begun.head_is_new and theirs and theirs != tuple(labels):
                for key, tensor in begun.head.items():
                    tensor.copy_(begun.fresh[key])
                begun.fresh, begun.reason = {}, "its classes are others"
            origin = begun.loaded.origin
            if begun.head_is_new:
                head = f"the head is new ({', '.join(begun.head)}): {begun.reason}"
            else:
                head = "the head is kept: " + (
                    "the classes are the same" if theirs else "as many classes, whose names the weights do not say"
                )
            notes.append(f"student{k} starts from {origin.where}: {begun.tensors} tensors; {head}")
        return notes if twins else notes + self._twins()

    def _twins(self) -> list[str]:
        """A warning where two students would be one network, which teaches itself nothing."""
        seen: dict[tuple[str, str], int] = {}
        for k, begun in self._begun.items():
            if begun.head_is_new:
                continue
            first = seen.setdefault((begun.architecture, begun.loaded.sha256), k)
            if first != k:
                return [f"{WARNING}student{first} and student{k} start as the same network, head included"]
        return []

    def check_images(self, data_sha256: str, data: Mapping[str, Any]) -> list[str]:
        """Notes on what the weights were trained on. Raises RecipeError for a run that divided these images otherwise,
        and so may have trained on those that judge here.
        """
        notes = []
        for loaded in {id(start): start for start in self.loaded if start}.values():
            origin, run = loaded.origin, loaded.origin.run
            if run is None or run.read_info().data_sha256 != data_sha256:
                notes.append(f"whether {origin.where} has seen the test images is not known")
                continue
            before = run.read_recipe()["data"]
            for key in SPLIT:
                if before.get(key) != data.get(key):
                    raise RecipeError(
                        f"cohort.weights: {origin.where} was trained with data.{key}={before.get(key)}, this recipe "
                        f"has {data.get(key)}: it may have trained on this one's validation images",
                        hint=f"the same data.{key} for both",
                    )
            above = f"; it began with {origin.above}, which may know the test images" if origin.above else ""
            notes.append(f"{origin.where} was trained on the same images{above}")
        return notes

    def recorded(self) -> tuple[Start | None, ...]:
        """For run.json and result.json."""
        return tuple(self._recorded(self._begun.get(k)) for k in range(len(self.loaded)))

    @staticmethod
    def _recorded(begun: _Begun | None) -> Start | None:
        if begun is None:
            return None
        origin, head = begun.loaded.origin, "new" if begun.head_is_new else "kept"
        return Start.model_validate(
            {
                "weights": origin.name,
                "weights_sha256": begun.loaded.sha256,
                "head": head,
                "classes": origin.facts.classes,
                "dataset": origin.dataset,
                "above": origin.above,
                "licence": origin.facts.licence,
            }
        )


@dataclass(frozen=True)
class Finetuned:
    """A student that starts from trained weights."""

    network: Backbone  # without an extraction behind its last stage, which learns from its beginning
    head: tuple[nn.Parameter, ...]  # what of it depends on the number of classes
    head_buffers: frozenset[str] = frozenset()  # the names of those that do: another device has other tensors


def finetuned(student: Backbone, classes: int, images: torch.Size) -> Finetuned:
    """A student's head, told from its backbone. The student is on the CPU."""
    dependent = _dependent(student, backbones.shapes(student.architecture, classes + 1, images))
    network = _innermost(student)
    buffers = frozenset(name for name, b in network.named_buffers() if b.data_ptr() in dependent)
    return Finetuned(network, tuple(p for p in network.parameters() if p.data_ptr() in dependent), buffers)


def _innermost(student: Backbone) -> Backbone:
    """The network that its author made."""
    return (student, *student.inner)[-1]


def _dependent(student: Backbone, more: Mapping[str, torch.Size]) -> set[int]:
    """Where in memory the tensors lie whose shape is another in `more`, that of the network with one class more."""
    own = _innermost(student).weights()
    dependent = {tensor.data_ptr() for key, tensor in own.items() if more.get(key) != tensor.shape}
    if len(dependent) == len(own):
        raise RecipeError(
            f"cohort.weights: every tensor of {student.architecture} depends on the number of classes: none could start"
        )
    return dependent


def _put(loaded: Loaded, student: Backbone, classes: int, images: torch.Size) -> _Begun:
    tensors, facts, name = loaded.tensors, loaded.origin.facts, student.architecture
    more = backbones.shapes(name, classes + 1, images)
    dependent = _dependent(student, more)
    for network in (student, *student.inner):  # the weights of a network with an extraction, or of one without
        own = network.weights()
        head = {key: tensor for key, tensor in own.items() if tensor.data_ptr() in dependent}
        wrong, foreign = _wrong(own, head, tensors), _foreign(own, tensors, more.keys())
        if not wrong and not foreign:
            break
    else:
        counts = [f"{len(wrong)} of its {len(own)} tensors are missing or of another shape"] if wrong else []
        counts += [f"{len(foreign)} of the {len(tensors)} there are not of this network"] if foreign else []
        lines = wrong + foreign
        rest = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        raise RecipeError(
            f"cohort.weights: {loaded.origin.where} are not the weights of {name}: {', and '.join(counts)}",
            details=[*lines[:LISTED], *rest],
        )
    reason = _why_new(head, tensors, facts, classes)
    fresh = {} if reason else {key: tensor.clone() for key, tensor in head.items()}
    given = {key: tensors[key] for key in own if key in tensors and (fresh or key not in head)}
    if bad := [key for key, tensor in given.items() if not tensor.isfinite().all()]:
        raise RecipeError(f"cohort.weights: {loaded.origin.where}: not finite: {', '.join(bad[:LISTED])}")
    network.load_weights({**own, **given})
    return _Begun(loaded, name, len(given), head, fresh, reason)


def _wrong(own: Mapping[str, Tensor], head: Collection[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """A line for each of the network's tensors that does not fit. The head may differ, and a count of batches takes
    part in no answer.
    """
    lines = []
    for key, tensor in own.items():
        if key in head:
            continue
        if key not in tensors:
            if not key.endswith("num_batches_tracked"):
                lines.append(f"{key}: missing, expected {by(tensor.shape) or 'a number'}")
        elif tensors[key].shape != tensor.shape:
            lines.append(f"{key}: expected {by(tensor.shape)}, found {by(tensors[key].shape)}")
    return lines


def _foreign(own: Collection[str], tensors: Collection[str], authors: Collection[str]) -> list[str]:
    """A line for each tensor that the network does not have. Outputs that the stages leave out, which are among the
    author's names, have no place.
    """
    return [f"{key}: the network has no such tensor" for key in tensors if key not in own and key not in authors]


def _why_new(head: Mapping[str, Tensor], tensors: Mapping[str, Tensor], facts: Facts, classes: int) -> str:
    """The reason for which a head is not taken; empty where it fits so far."""
    if facts.classes not in (None, classes):
        return f"{facts.classes:,} classes there, {classes:,} here"
    if missing := [key for key in head if key not in tensors]:
        return f"the weights have no {missing[0]}"
    if other := [key for key, tensor in head.items() if tensors[key].shape != tensor.shape]:
        shape = tensors[other[0]].shape
        return f"{other[0]} is {by(shape)} there, {by(head[other[0]].shape)} here"
    return ""
