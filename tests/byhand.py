"""What the tests of the methods share: the losses by loops in float64, small cohorts, and whom a loss term reaches.

The loops are written from the papers, not from the code that they judge.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.errors import RecipeError
from okdc.methods.base import Batch, Method, Step
from okdc.recipe.draft import Draft
from okdc.seeds import seeded

Array = npt.NDArray[np.float64]
CIFAR, SMALL = torch.Size((3, 32, 32)), torch.Size((3, 8, 8))
ALPHA = 80 / 300  # MFEF section 4.1, as a fraction of the run
K = 10  # classes
POSITIONS = (0.0, 0.1, 0.5)  # at the foot of the ramp, on it, behind it


# ---------------------------------------------------------------------------------------------------------------------
# What is tried


def pairwise(*factors: Sequence[Any], valid: Callable[..., bool] = lambda *_: True) -> list[tuple[Any, ...]]:
    """Rows of one value a factor in which any two values of two factors meet, where a valid row has them both.

    Faults of a switch, or of two that meet, need no more rows than these; a product has many times as many.
    """
    rows = [row for row in itertools.product(*map(range, map(len, factors))) if valid(*_values(factors, row))]
    missing = {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}
    chosen = []
    while missing:
        row = max(rows, key=lambda row: len(missing.intersection(itertools.combinations(enumerate(row), 2))))
        missing -= set(itertools.combinations(enumerate(row), 2))
        chosen.append(_values(factors, row))
    return chosen


def _values(factors: Sequence[Sequence[Any]], row: Sequence[int]) -> tuple[Any, ...]:
    return tuple(factor[i] for factor, i in zip(factors, row, strict=True))


@contextmanager
def refused(pattern: str) -> Iterator[None]:
    """A recipe that cannot be built is refused, with a reason that the pattern is found in."""
    with pytest.raises(RecipeError) as caught:
        yield
    assert re.search(pattern, "\n".join((caught.value.message, *caught.value.details)))


def table(
    name: str, students: Sequence[str] = ("resnet8", "resnet8"), share: str = "none", size: int = 8, **keys: Any
) -> ResolvedRecipe:
    """A recipe of that method and those students."""
    if name == "kd":
        keys = {"teacher": "resnet8"} | keys
    return resolved(
        {
            "data": {"name": "folder", "image_size": size},
            "cohort": {"students": list(students), "share": share},
            "method": {"name": name, **keys},
        }
    )


def resolved(tables: dict[str, Any]) -> ResolvedRecipe:
    """A recipe from its tables, without images."""
    return resolve(Draft(Path("made.toml"), tables), needs_data=False)


def teacher(name: str = "resnet8", images: torch.Size = SMALL) -> nn.Module:
    """A network that has been in use: its batch statistics have left 0 and 1."""
    with seeded(7, "teacher"):
        network = backbones.build(name, K, images)
        for _ in range(3):
            network(torch.randn(8, *images) + 0.2)
    return network


def make(
    name: str, students: int | Sequence[str] = 2, share: str = "none", images: torch.Size = SMALL, **keys: Any
) -> Method:
    """A method as a recipe makes it. A number of students: so many ResNet-8."""
    names = ["resnet8"] * students if isinstance(students, int) else students
    recipe = table(name, names, share, images[1], **keys)
    return assembly.method(recipe, images, K, teacher(images=images) if name == "kd" else None)[0]


def batch(images: torch.Size = SMALL, n: int = 4) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(n, *images), torch.randint(K, (n,)))


def spread(n: int, images: int = 5, scale: float = 3.0, seed: int = 0) -> Tensor:
    """Logits of n students, n×N×K, far enough from each other that every term has something to say."""
    return scale * torch.randn(n, images, K, generator=torch.Generator().manual_seed(seed))


def hold(patch: pytest.MonkeyPatch, method: Method, z: Tensor) -> None:
    """From now on the students answer z, n×N×K, whatever they see; all else of the method is its own."""
    patch.setattr(method.cohort, "logits", lambda _: list(z.unbind()))


# ---------------------------------------------------------------------------------------------------------------------
# The losses, once more: image by image and class by class


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def softened(row: Sequence[float] | Array, T: float = 1.0) -> list[float]:
    top = max(row)
    weights = [math.exp((v - top) / T) for v in row]
    return [w / sum(weights) for w in weights]


def cross_entropy(z: Tensor | Array, labels: Tensor) -> float:
    """Mean over the images of -log p(label). z is NK."""
    rows = array(z) if isinstance(z, Tensor) else z
    total = 0.0
    for row, label in zip(rows, labels.tolist(), strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(v - top) for v in row)) - row[label]
    return total / len(labels)


def divergence(teacher: Tensor | Array, student: Tensor | Array, T: float) -> float:
    """T² times the mean over the images of Σ_m p_m log(p_m / q_m): p the teacher's, q the student's, softened."""
    p_rows, q_rows = (array(z) if isinstance(z, Tensor) else z for z in (teacher, student))
    total = 0.0
    for p_row, q_row in zip(p_rows, q_rows, strict=True):
        for p, q in zip(softened(p_row, T), softened(q_row, T), strict=True):
            total += p * math.log(p / q)
    return T**2 * total / len(p_rows)


def weight(t: float, alpha: float) -> float:
    """The ramp-up: exp(-5 (1 - min(t, α)/α)²); without a length there is none."""
    return math.exp(-5 * (1 - min(t, alpha) / alpha) ** 2) if alpha else 1.0


def mutual(z: Tensor, z_f: Tensor, labels: Tensor, t: float, T: float, alpha: float) -> dict[str, float]:
    """Σ_k CE(z_k) + CE(z_f) + w·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_a the mean of the students' logits."""
    w, n = weight(t, alpha), len(z)
    z_a = np.zeros(z[0].shape)
    for z_k in z:
        z_a += array(z_k) / n
    terms = {"ce_fused": cross_entropy(z_f, labels), "kl_ensemble_fused": w * divergence(z_a, z_f, T)}
    for k, z_k in enumerate(z):
        terms[f"ce_student{k}"] = cross_entropy(z_k, labels)
        terms[f"kl_fused_student{k}"] = w * divergence(z_f, z_k, T)
    return terms


def agrees(step: Step, expected: Mapping[str, float]) -> None:
    """Term by term, with the terms' names."""
    assert set(step.losses) == set(expected)
    for name, value in expected.items():
        assert step.losses[name].shape == ()
        assert step.losses[name].dtype == torch.float32
        assert step.losses[name].item() == pytest.approx(value, rel=2e-5, abs=2e-6), name


# ---------------------------------------------------------------------------------------------------------------------
# Layers, once more


def convolved(x: Array, w: Array, groups: int = 1) -> Array:
    """A convolution with an odd kernel, stride 1 and zeros around: x is NCHW, w is O, C/groups, H, W."""
    outputs, inputs, kernel, _ = w.shape
    _, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)))
    y = np.zeros((len(x), outputs, height, width))
    for o in range(outputs):
        first = (o // (outputs // groups)) * inputs
        for i in range(height):
            for j in range(width):
                y[:, o, i, j] = (padded[:, first : first + inputs, i : i + kernel, j : j + kernel] * w[o]).sum(
                    (1, 2, 3)
                )
    return y


def normalised(x: Array, bn: nn.Module) -> Array:
    """Batch normalisation of NC or NCHW: with the batch's own statistics in training mode, else with the kept ones."""
    assert isinstance(bn, nn.BatchNorm1d | nn.BatchNorm2d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    axes = (0, *range(2, x.ndim))
    mean, var = (x.mean(axes), x.var(axes)) if bn.training else (array(bn.running_mean), array(bn.running_var))
    shape = (1, -1, *(1 for _ in range(2, x.ndim)))
    result: Array = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + bn.eps)
    return result * array(bn.weight).reshape(shape) + array(bn.bias).reshape(shape)


def linear(x: Array, layer: nn.Module) -> Array:
    assert isinstance(layer, nn.Linear)
    y: Array = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def conv_bn_relu(x: Array, block: nn.Module, groups: int = 1) -> Array:
    assert isinstance(block, nn.Sequential)
    conv, bn, _ = block
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is None
    result: Array = np.maximum(normalised(convolved(x, array(conv.weight), groups), bn), 0)
    return result


def fused(maps: Sequence[Array], fusion: nn.Module) -> Array:
    """FFL's fused classifier for maps of one size: concatenate, depthwise 3×3, pointwise, average, linear."""
    x = np.concatenate(list(maps), 1)
    x = conv_bn_relu(x, fusion.get_submodule("depthwise"), groups=x.shape[1])
    x = conv_bn_relu(x, fusion.get_submodule("pointwise"))
    return linear(x.mean((2, 3)), fusion.get_submodule("fc"))


def exported(channels: int, groups: int) -> list[int]:
    """Channels that each group of a hierarchical split hands out: first and last whole, the larger half between."""
    widths = [channels // groups + (i < channels % groups) for i in range(groups)]
    out, passed = [widths[0]], 0
    for i in range(1, groups):
        inside = widths[i] + passed
        passed = inside // 2 if i < groups - 1 else 0
        out.append(inside - passed)
    return out


def split_hierarchically(x: Array, convs: Sequence[nn.Module], groups: int) -> Array:
    """MFEF eq. 4 by its text. Which half of a group goes out is a relabelling of its filters; here the first."""
    channels = x.shape[1]
    widths = [channels // groups + (i < channels % groups) for i in range(groups)]
    starts = [sum(widths[:i]) for i in range(groups)]
    parts = [x[:, start : start + width] for start, width in zip(starts, widths, strict=True)]
    out = [parts[0]]
    passed: Array | None = None
    for i in range(1, groups):
        inside = parts[i] if passed is None else np.concatenate([parts[i], passed], 1)
        y = conv_bn_relu(inside, convs[i - 1])
        if i < groups - 1:
            half = exported(channels, groups)[i]
            y, passed = y[:, :half], y[:, half:]
        out.append(y)
    return np.concatenate(out, 1)


def attended(x: Array, attention: nn.Module) -> Array:
    """MFEF eq. 5-8: channels by a shared perceptron of mean and maximum, then places by a convolution of both."""
    assert isinstance(attention, nn.Sequential)
    channel, spatial = attention
    x = x.copy()
    for n in range(len(x)):
        total = np.zeros(x.shape[1])
        for pooled in (x[n].mean((1, 2)), x[n].max((1, 2))):
            between = np.maximum(linear(pooled, channel.get_submodule("mlp.0")), 0)
            total += linear(between, channel.get_submodule("mlp.2"))
        for c in range(x.shape[1]):
            x[n, c] *= 1 / (1 + math.exp(-total[c]))
    pooled = np.stack([x.mean(1), x.max(1)], 1)
    conv = spatial.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    where = normalised(convolved(pooled, array(conv.weight)), spatial.get_submodule("bn"))
    result: Array = x / (1 + np.exp(-where))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


def reached(method: Method, *terms: str, images: torch.Size = SMALL) -> set[str]:
    """The names of the parameters that these loss terms move."""
    method.zero_grad(set_to_none=True)
    losses = method(batch(images), torch.tensor(1.0)).losses
    torch.stack([losses[term] for term in terms]).sum().backward()
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def names(method: Method, *prefixes: str) -> set[str]:
    return {name for name, _ in method.named_parameters() if name.startswith(prefixes)}
