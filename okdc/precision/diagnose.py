"""Where an int8 file loses its precision: each activation beside that of the float32 file, worst first.

By onnxruntime's own tool for it (onnxruntime.quantization.qdq_loss_debug), a batch at a time: that keeps every
activation of what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from onnx import NodeProto
from onnxruntime.quantization import qdq_loss_debug

from okdc.bundle.artefacts import Layer
from okdc.bundle.session import Images, Pixels
from okdc.precision import ranges, regions
from okdc.precision.tools import refusals

WORST = 10
MOST, FEWEST, PIXELS = 64, 8, 64 * 64 * 64  # images, by how large they are
Sums = npt.NDArray[np.float64]


def diagnose(float32: bytes, int8: bytes, images: Images, worst: int = WORST) -> tuple[Layer, ...]:
    """The activations with the lowest signal-to-noise ratio, on the first of `images`: 64 of them, 8 of large ones.

    `node` and `operator` of the float32 graph make the tensor `output`, with the `weight` as PyTorch names it (none
    behind a sum). `sqnr_db` is the float32 signal over the error of the int8 file, which includes all that was lost
    in front: look at a layer that stands out against those before it. Below 20 dB the error is more than a tenth of
    the signal.

    Raises CheckFailed ("int8") where onnxruntime's tool cannot compare the two.
    """
    with refusals("int8", "onnxruntime cannot compare the layers"):
        sums = _sums(float32, int8, images)
    graph = regions.parse(float32).graph
    made = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    layers = [
        Layer(
            node=made[name].name,
            operator=made[name].op_type,
            output=name,
            weight=_weight(made[name], made, weights),
            sqnr_db=_decibels(*powers),
        )
        for name, powers in sums.items()
        if name in made
    ]
    return tuple(sorted(layers, key=lambda layer: (layer.sqnr_db, layer.node))[:worst])


def _sums(float32: bytes, int8: bytes, images: Images) -> dict[str, Sums]:
    """Of each tensor that both files have, over all images: [power of the signal, power of the error]."""
    count = min(len(images), MOST, max(FEWEST, PIXELS // int(np.prod(images.shape[1:3]))))
    sums: dict[str, Sums] = {}
    with TemporaryDirectory() as folder:
        full, reduced = _opened(float32, Path(folder, "float32.onnx")), _opened(int8, Path(folder, "int8.onnx"))
        for part in ranges.batches(images[:count]):
            for name, powers in _compared(full, reduced, part).items():
                sums[name] = sums.get(name, 0) + powers
    return sums


def _weight(node: NodeProto, made: Mapping[str, NodeProto], weights: Collection[str]) -> str | None:
    """Of a node or, where it is an activation, of the one in front of it."""
    while node.op_type in ("Relu", "Clip") and node.input[0] in made:
        node = made[node.input[0]]
    names: list[str] = [name for name in node.input if name in weights]
    return names[0] if names and node.op_type in regions.WEIGHTED else None


def _opened(blob: bytes, path: Path) -> str:
    """A file beside `path` that gives every intermediate result."""
    path.write_bytes(blob)
    augmented = path.with_suffix(".augmented.onnx")
    qdq_loss_debug.modify_model_output_intermediate_tensors(path, augmented)
    return str(augmented)


def _compared(float32: str, int8: str, images: Pixels) -> dict[str, Sums]:
    """The same of one batch."""
    full, reduced = (
        qdq_loss_debug.collect_activations(path, ranges.Reader(iter([images]))) for path in (float32, int8)
    )
    matching = qdq_loss_debug.create_activation_matching(reduced, full)
    in_both = {name: match for name, match in matching.items() if "float" in match}
    errors = qdq_loss_debug.compute_activation_error(in_both, _powers)
    return {name: error["xmodel_err"] for name, error in errors.items()}


def _powers(signal: list[npt.NDArray[np.float32]], rounded: list[npt.NDArray[np.float32]]) -> Sums:
    x, y = (np.concatenate(parts).astype(np.float64) for parts in (signal, rounded))
    return np.array([(x**2).sum(), ((x - y) ** 2).sum()])


def _decibels(signal: float, noise: float) -> float:
    """To a tenth: what is below says nothing. 200 for no noise at all."""
    return round(min(10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30)), 200.0), 1)
