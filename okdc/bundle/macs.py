"""The multiply-adds of one image by the ONNX file alone: of its convolutions and matrix products. No torch.

A second count of a network that was counted in PyTorch: the sizes are those in the file.
"""

from __future__ import annotations

import math

import onnx

from okdc.bundle.structure import INPUT
from okdc.errors import CheckFailed, first_line

Shape = tuple[int, ...]


def macs(model: onnx.ModelProto) -> int:
    """Multiply-adds of every Conv, Gemm and MatMul at batch 1; biases, normalisation and pooling are not counted.

    An int8 model in QDQ form counts as its float32 twin: the products are the same. Raises CheckFailed ("counting")
    where a size is not to be had from the file.
    """
    shapes = _shapes(model)
    total = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        try:
            left, right, out = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
        except KeyError as error:
            raise CheckFailed(
                "counting", f"the ONNX file does not say how large {error.args[0]} is, which its {node.op_type} needs"
            ) from None
        if node.op_type == "Conv":
            each = math.prod(right[1:])  # weights: outputs, inputs of a group, kernel
        elif node.op_type == "Gemm":
            each = left[0] if _transposed(node) else left[1]
        else:
            each = left[-1]
        total += math.prod(out) * each
    return total


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Every size of the graph for one image, by name, but those that cannot be inferred."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # with the batch axis of any size in it
    for tensor in bare.graph.initializer:
        if tensor.data_type != onnx.TensorProto.INT64:  # those say how to reshape; the others' sizes are enough
            tensor.ClearField("raw_data")
    for value in bare.graph.input:
        if value.name == INPUT:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise CheckFailed("counting", f"onnx cannot infer the sizes: {first_line(error)}") from None
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm takes its first matrix turned over."""
    return any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
