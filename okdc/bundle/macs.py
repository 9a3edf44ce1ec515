"""The multiply-adds of one image by the ONNX file alone: of its convolutions and matrix products. No torch.

A second count of a network that was counted in PyTorch: the sizes are those in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import onnx

from okdc.bundle import operators
from okdc.bundle.operators import Shape
from okdc.errors import CheckFailed

# Operators full of multiply-adds that have no count here: a number without them is a lower bound.
HOLD_MACS = frozenset({"Attention", "DeformConv", "RotaryEmbedding"})


def macs(model: onnx.ModelProto) -> int:
    """Multiply-adds at batch 1 of every convolution, matrix product and recurrent layer that reads the image.

    Biases, normalisation and pooling are not counted, nor what is computed of weights alone, once and for all images.
    An int8 model in QDQ form counts as its float32 twin: the products are the same. Raises CheckFailed ("counting")
    where a size is not to be had from the file.
    """
    return sum(count for _, count in _products(model) if count is not None)


def uncounted(model: onnx.ModelProto) -> tuple[str, ...]:
    """The operators of further multiply-adds that `macs` cannot count: it is then a lower bound."""
    return tuple(sorted({node.op_type for node, count in _products(model) if count is None}))


def contraction(equation: str, shapes: Sequence[Shape]) -> int:
    """Multiply-adds of an einsum of two operands or fewer: none where no index of both is summed.

    An index of one operand alone is summed before. Raises ValueError for more operands: the number depends on their
    order.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_indices(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    if len(terms) > 2:
        raise ValueError(f"einsum of {len(terms)} operands")
    if len(terms) < 2:
        return 0
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for index, length in zip(term, shape, strict=True):
            lengths[index] = max(length, lengths.get(index, 1))
    first, second = map(set, terms)
    often = {index for index in lengths if (*terms[0], *terms[1]).count(index) > 1 and not index.startswith(".")}
    result = (
        set(_indices(right, sum(i.startswith(".") for i in lengths) + len(right.replace("...", ""))))
        if arrow
        else set(lengths) - often
    )
    if not any(lengths[index] > 1 for index in (first & second) - result):
        return 0
    return math.prod(lengths[index] for index in (first & second) | ((first | second) & result))


def _indices(term: str, rank: int) -> list[str]:
    """The index of every axis; those of an ellipsis are numbered from the last."""
    before, dots, after = term.partition("...")
    count = rank - len(before) - len(after) if dots else 0
    return [*before, *(f".{place}" for place in range(count, 0, -1)), *after]


def _products(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, int | None]]:
    """Every node that multiplies and adds what comes from an image, with its count; None where there is none."""
    try:
        shapes = operators.sizes(model, 1)
    except CheckFailed as error:
        raise CheckFailed("counting", f"the sizes in the ONNX file: {error.message}", hint=error.hint) from None
    changing = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if changing.isdisjoint(node.input):
            continue
        changing.update(filter(None, node.output))
        if node.op_type in HOLD_MACS:
            yield node, None
        elif node.op_type in COUNTS:
            yield node, COUNTS[node.op_type](node, shapes)


def _convolution(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Weights: outputs, inputs of a group, kernel."""
    weights = shapes[node.input[3 if node.op_type == "QLinearConv" else 1]]
    return math.prod(shapes[node.output[0]]) * math.prod(weights[1:])


def _transposed_convolution(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Weights: inputs, outputs of a group, kernel; every number of the input meets those of its channel."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if turned else 1]


def _matmul(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _einsum(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int | None:
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    try:
        return contraction(equation, [shapes[name] for name in node.input])
    except ValueError:
        return None


def _recurrent(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """The matrices of the input and of the state, of all directions, once a step."""
    return math.prod(shapes[node.input[0]][:2]) * sum(math.prod(shapes[name]) for name in node.input[1:3])


COUNTS: dict[str, Callable[[onnx.NodeProto, dict[str, Shape]], int | None]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
}
