"""The likely cause of a file that disagrees with its student: each suspicion is tried on an altered student."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from okdc.bundle.checks import largest
from okdc.bundle.session import Floats, Pixels
from okdc.deploy.onnx import constants
from okdc.deploy.torch_reference import Torch

MOST = 256  # images that a suspicion runs through a network again


@dataclass(frozen=True)
class Evidence:
    """Both sides' answers to the same images, for the judgement and for the search of a cause."""

    images: Pixels  # the first MOST
    torch_side: Torch
    torch: Floats
    onnx: Floats
    bound: float


def find(path: Path, evidence: Evidence, invariance: dict[str, float]) -> str:
    """The likely cause, in one line."""
    suspicions: tuple[Callable[[], str | None], ...] = (
        lambda: _batch(evidence, invariance),
        lambda: _colours(evidence),
        lambda: _normalisation(path, evidence),
        lambda: _class_order(evidence),
        lambda: _bias(evidence),
        lambda: _half(evidence),
        lambda: _some_images(evidence),
    )
    for suspicion in suspicions:
        try:
            if (cause := suspicion()) is not None:
                return cause
        except Exception:  # a file or a network strange enough to break a guess has failed all the same
            continue
    if largest(evidence.torch, evidence.onnx) <= evidence.bound:
        return "the file answers as these weights do, but they are not the weights that the run recorded"
    return "all images are affected: other weights, or another preprocessing, than the student's"


def _explains(evidence: Evidence, candidate: npt.NDArray[Any], rows: slice = slice(None)) -> bool:
    """True if the altered student reproduces the file's logits: within the bound, or at a tenth of the difference."""
    wrong, left = largest(evidence.torch[rows], evidence.onnx[rows]), largest(candidate, evidence.onnx[rows])
    return wrong > evidence.bound and (left <= evidence.bound or left < wrong / 10)


def _batch(evidence: Evidence, invariance: dict[str, float]) -> str | None:
    worst = max(invariance, key=lambda name: invariance[name])
    if invariance[worst] <= evidence.bound:
        return None
    if worst == "2_threads":
        return "an answer depends on the number of threads"
    return f"an answer depends on the other images of its batch (most at {worst.replace('_', ' ')})"


def _colours(evidence: Evidence) -> str | None:
    few = slice(0, 64)
    swapped = evidence.torch_side.logits(np.ascontiguousarray(evidence.images[few, ..., ::-1]))
    return "the colour channels are swapped: BGR for RGB" if _explains(evidence, swapped, few) else None


def _normalisation(path: Path, evidence: Evidence) -> str | None:
    """Compare the constants before the first convolution with the student's mean and std."""
    graph = onnx.load(path).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first: dict[str, npt.NDArray[Any]] = {}  # the first constant of each operator
    for node in graph.node:
        if node.op_type == "Conv":
            break
        for name in node.input:
            if node.op_type in ("Sub", "Add", "Mul", "Div") and name in weights:
                first.setdefault(node.op_type, weights[name].ravel())
    side = evidence.torch_side
    shift, scale = (t.numpy().ravel() for t in constants(side.mean.tolist(), side.std.tolist()))
    for operator, expected, term in (("Sub", shift, "255 · mean"), ("Mul", scale, "1 / (255 · std)")):
        if operator not in first:
            continue
        actual = first[operator]
        if actual.shape != expected.shape or not np.allclose(actual, expected, rtol=1e-6):
            return (
                f"preprocessing: {term} is {np.round(actual, 5).tolist()} in the graph and "
                f"{np.round(expected, 5).tolist()} in the student"
            )
    if set(first) != {"Sub", "Mul"}:
        return f"preprocessing: the graph starts with {', '.join(first) or 'no arithmetic'}; expected Sub, Mul"
    return None


def _class_order(evidence: Evidence) -> str | None:
    """A permutation of the columns: each column of the file is nearest to one of the student's, all different."""
    few = slice(0, 32)  # N·K² differences: with 1,000 classes no more than these fit in memory
    distance = np.abs(evidence.torch[few, :, None] - evidence.onnx[few, None, :]).max(0)  # K of torch, K of onnx
    nearest = distance.argmin(0)
    moved = np.flatnonzero(nearest != np.arange(len(nearest)))
    if (
        not len(moved)
        or len(set(nearest.tolist())) != len(nearest)
        or not _explains(evidence, evidence.torch[:, nearest])
    ):
        return None
    return "class order: the logits of classes " + ", ".join(str(c) for c in moved) + " are exchanged"


def _half(evidence: Evidence) -> str | None:
    few = slice(0, MOST)
    side = copy.copy(evidence.torch_side)
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        rounded = copy.deepcopy(side.network)
        with torch.no_grad():
            for tensor in rounded.parameters():
                tensor.copy_(tensor.to(dtype).float())
        side.network = rounded
        # Folding the batch norms comes before or after the rounding: the rounded student is near, seldom equal.
        wrong = largest(evidence.torch[few], evidence.onnx[few])
        moved = largest(side.logits(evidence.images[few]), evidence.torch[few])
        if wrong > evidence.bound and moved / 10 < wrong < moved * 10 and _spread(evidence) > 0.9:
            return f"the weights look rounded to {name}: every image differs, by as much as that does"
    return None


def _spread(evidence: Evidence) -> float:
    """The share of images that differ at all."""
    return float((np.abs(evidence.torch - evidence.onnx).max(1) > evidence.bound).mean())


def _bias(evidence: Evidence) -> str | None:
    difference = evidence.onnx - evidence.torch
    offset = difference.mean(0)
    if not _explains(evidence, evidence.torch + offset):
        return None
    classes = np.flatnonzero(np.abs(offset) > evidence.bound)
    return f"a constant is added to the logits of classes {', '.join(map(str, classes))}: the last bias differs"


def _some_images(evidence: Evidence) -> str | None:
    share = _spread(evidence)
    if not 0 < share < 0.9:
        return None
    return f"only {100 * share:.1f} % of the images are affected: a range of values is clipped or overflows"
