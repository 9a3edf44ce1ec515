"""Whether a student can be exported, asked before it is trained: the whole way with the weights that it starts from.

    the same images twice          random in evaluation, or with a memory    refused
    one by one and together        an answer depends on its batch            refused
    counted by two counters        as the export does                        refused where they cannot
    ONNX file, its structure       as the export does                        refused
    counted in the file            as the export does                        refused
    run by onnxruntime             as the export does                        refused where it cannot
    run by onnx.reference          as the export does                        a warning where it cannot
    compared with the network      beyond rounding, in every image           refused
                                   beyond the bound                          a warning: training changes the numbers

What is refused follows from the network's forward, whatever its weights are. Nothing of the trial is left behind: it
works on a copy, and gives back every global random state and switch.

Shapes: N images, K classes.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from okdc import signals, torch_errors
from okdc.bundle import layout
from okdc.bundle.checks import FLOOR, largest
from okdc.bundle.macs import macs, uncounted
from okdc.bundle.session import Floats, Pixels, Session
from okdc.bundle.structure import check_structure
from okdc.cohort import Backbone
from okdc.data.batches import Normalise
from okdc.deploy import onnx, second_engine
from okdc.deploy.count import check_graph, count, exported
from okdc.deploy.parity import FACTOR
from okdc.deploy.torch_reference import Torch
from okdc.errors import CheckFailed, OkdcError, one_line
from okdc.runs.artefacts import Preprocessing

IMAGES = 4
# Times the allowed difference, itself 16 times the noise of float32: what lies beyond no rounding explains.
BEYOND_ROUNDING = 16
SAME = 1e-4  # of the largest logit: two passes of the same images, and a row of probabilities from a sum of 1


def attempt(network: Backbone, size: int, classes: int) -> list[str]:
    """Export an untrained network for size×size images and compare its file with it. Returns warnings.

    Raises CheckFailed with the reason why no bundle could be made of it, whatever its training makes of its weights.
    """
    info = onnx.untrained(network.architecture, size, classes)
    images = _images(size)
    with undisturbed():
        with _step("evaluating it"):
            side = _side(network, images, info.preprocessing)
            logits, bound = _logits(side, images)
            said = _softmax(logits)
        with _step("counting it"):
            example = torch.zeros(1, 3, size, size)
            count(side.network, example)
            expected = exported(side.network, example)
        with _step("exporting it"):
            blob = onnx.to_onnx(side.network, info)
            model = check_structure(blob, info)
            bounds = bool(expected.uncounted), bool(uncounted(model))
            check_graph(expected.macs, macs(model), layout.MODELS[layout.FLOAT32], *bounds)
        with _step("running its ONNX file"):
            session = Session(blob)
            alone, together = (session(images, batch)[0] for batch in (1, IMAGES))
            again, refused = second_engine.logits_of(model, images[:1])
    if not np.isfinite(logits).all():
        return [*said, "untrained, it gives logits that are not finite: nothing could be compared"]
    _uncoupled(alone, together, bound, "its ONNX file")
    if again is None:
        said.append(f"onnx.reference cannot run its ONNX file ({refused}): onnxruntime alone will prove it")
    elif (off := largest(again, alone[:1])) > BEYOND_ROUNDING * bound:
        raise CheckFailed(
            "parity",
            f"onnx.reference and onnxruntime read its ONNX file differently: max |d| {off:.1e} (allowed {bound:.1e})",
            hint="one of the two mistakes an operator of its forward",
        )
    return [*said, *_compared(logits, together, bound)]


def softmax(network: Backbone, size: int, classes: int) -> list[str]:
    """`attempt`'s warning of a network that ends in softmax, without an export."""
    info, images = onnx.untrained(network.architecture, size, classes), _images(size)
    with undisturbed(), _step("evaluating it"):
        return _softmax(_side(network, images, info.preprocessing).logits(images))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Code of others runs in the block: random states, global switches and filters of warnings are then as before."""
    before: Any = random.getstate(), np.random.get_state()
    switches = [(give_back, read()) for read, give_back in SWITCHES]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training passes say them as well
            yield
    finally:
        for give_back, value in switches:
            give_back(value)
        random.setstate(before[0])
        np.random.set_state(before[1])


def _set_deterministic(modes: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])


SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
)


@contextmanager
def _step(doing: str) -> Iterator[None]:
    """Whatever is raised in the block is a check that failed, but for a full memory and Ctrl-C."""
    try:
        yield
    except (Exception, SystemExit) as error:
        signals.check()  # a signal that somebody turned into an error of their own
        if full := _out_of_memory(error):
            raise full from None
        if isinstance(error, OkdcError):
            raise
        raise CheckFailed("structure", f"{doing} raised {one_line(error)}", hint="--debug shows where") from error


def _out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error of a full memory behind an error."""
    while error is not None and not torch_errors.out_of_memory(error):
        error = error.__cause__ or error.__context__
    return error


# ---------------------------------------------------------------------------------------------------------------------
# The network


def _images(size: int) -> Pixels:
    """N×H×W×3: coarse patches of colour under noise. Noise alone looks the same to a network that averages."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 128, (IMAGES, 4, 4, 3), dtype=np.uint8)
    rows = np.arange(size) * 4 // size
    return coarse[:, rows][:, :, rows] + generator.integers(0, 128, (IMAGES, size, size, 3), dtype=np.uint8)


def _side(network: Backbone, images: Pixels, rule: Preprocessing) -> Torch:
    """A copy of the network in eval mode.

    Its batch statistics are those of the images: at 0 and 1 the signal of a deep network dies away, and every file of
    it would do.
    """
    network = copy.deepcopy(network).train()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, of which there is one
    if norms:
        try:
            with torch.no_grad():
                network(Normalise(rule.mean, rule.std)(torch.from_numpy(images)))
        except Exception as error:  # the first step of the training says so
            if _out_of_memory(error):
                raise
    return Torch(network, rule)


def _logits(side: Torch, images: Pixels) -> tuple[Floats, float]:
    """The network's N×K logits and the difference that a file of it is allowed, as `parity` measures it."""
    logits = side.logits(images)
    if not np.isfinite(logits).all():
        return logits, FLOOR
    if (off := largest(side.logits(images), logits)) > SAME * max(1.0, float(np.abs(logits).max())):
        raise CheckFailed(
            "parity",
            f"in evaluation mode the same images get other answers the second time: max |d| {off:.1e}",
            hint="its forward draws random numbers, or keeps state: F.dropout, for one, needs training=self.training",
        )
    bound = max(FACTOR * largest(logits, side.exact(images)), FLOOR)
    alone = np.concatenate([side.logits(images[i : i + 1]) for i in range(len(images))])
    _uncoupled(alone, logits, bound, "the network")
    return logits, bound


def _uncoupled(alone: Floats, together: Floats, bound: float, what: str) -> None:
    """Raises CheckFailed where the answer to an image depends on the other images of its batch."""
    if alone.shape != together.shape or largest(alone, together) > BEYOND_ROUNDING * bound:
        off = f"max |d| {largest(alone, together):.1e}" if alone.shape == together.shape else f"{alone.shape}"
        raise CheckFailed(
            "parity",
            f"{what} answers otherwise to one image than to {len(together)} at a time: {off} (allowed {bound:.1e})",
            hint="its forward mixes the images of a batch: a mean or a norm over the first axis, or a BatchNorm "
            "without running statistics",
        )


def _softmax(logits: Floats) -> list[str]:
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.min() < 0 or not np.allclose(logits.sum(1), 1, 0, SAME):
        return []
    return [
        "it ends in softmax: its outputs are probabilities. Training takes logits, of which the cross-entropy makes "
        "probabilities itself; return the values before the softmax"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Its file


def _compared(logits: Floats, answers: Floats, bound: float) -> list[str]:
    """Raises CheckFailed where every image's answer is beyond rounding: the file computes something else."""
    off = largest(logits, answers)
    if off <= bound:
        return []
    if all(largest(a, b) > BEYOND_ROUNDING * bound for a, b in zip(logits, answers, strict=True)):
        raise CheckFailed(
            "parity",
            f"its ONNX file computes something else: max |d| {off:.1e} (allowed {bound:.1e}), in every image",
            hint="the exporter mistakes an operator of its forward",
        )
    return [f"untrained, its ONNX file differs by max |d| {off:.1e} (allowed {bound:.1e}); the export will ask again"]
