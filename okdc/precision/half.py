"""One ONNX file in half the bytes: float16 from the first weighted node to the last, float32 in and out.

For a smaller download; a CPU computes most of it in float32 all the same. onnxruntime.transformers.float16 does not fit
here: nodes that it leaves in float32 are still joined by float16 casts, so that normalised pixels and probabilities are
rounded to eleven bits, and what it appends is in no topological order, which onnx.checker refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from okdc.bundle.structure import OPSET
from okdc.precision import regions
from okdc.precision.tools import refusals

SUFFIX, FLOAT16 = "_float16", "tensor(float16)"


def half(blob: bytes) -> bytes:
    """The float16 file of a float32 one, its metadata kept. Deterministic.

    A weight beyond float16's 65,504 becomes infinite, and `gate.judge` finds it in the logits.

    Raises CheckFailed ("float16") where nothing in the graph can be reduced, or what comes of it is no valid graph.
    """
    with refusals("float16", "the file has no float16 twin"):
        return _half(blob)


def _half(blob: bytes) -> bytes:
    model = onnx.shape_inference.infer_shapes(regions.parse(blob))
    graph, floats = model.graph, _floats(model.graph)
    outside = frozenset(regions.outside(model, "float16")) | _float32(graph, floats)
    inside = [node for node in graph.node if node.name not in outside]
    weights = {tensor.name for tensor in graph.initializer if tensor.name in floats}
    read = {name for node in inside for name in _reduced(node)} & floats
    made = {name for node in inside for name in node.output} & floats
    elsewhere = {name for node in graph.node if node.name in outside for name in node.input}
    elsewhere |= {name for node in inside for name in node.input if name not in _reduced(node)}
    leaving = made & (elsewhere | {value.name for value in graph.output})
    twins = {name: name + SUFFIX for name in (read - made) | leaving}

    # A weight that reduced nodes alone read exists in float16 alone.
    only = weights & read - elsewhere
    tensors = [tensor for tensor in graph.initializer if tensor.name not in only]
    tensors += [
        _half_tensor(tensor, twins[tensor.name]) for tensor in graph.initializer if tensor.name in weights & read
    ]
    nodes = _with_casts(graph.node, outside, twins, read - made - weights, leaving)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    finished: bytes = model.SerializeToString(deterministic=True)
    return finished


def _float32(graph: GraphProto, floats: frozenset[str]) -> frozenset[str]:
    """Names of the nodes that stay in float32 wherever they stand.

    Those give a type that ONNX defines for float32 alone (Celu, Range), or are a Transpose in front of a MatMul:
    onnxruntime 1.31 joins the two, and where both are float16 and the Transpose moves the first axis, as that of
    nn.MultiheadAttention does, the process ends with a segmentation fault.
    """
    multiplied = {node.input[0] for node in graph.node if node.op_type == "MatMul"}
    return frozenset(
        node.name
        for node in graph.node
        if (node.op_type == "Transpose" and node.output[0] in multiplied)
        or any(name in floats and not _half_allowed(node, i, "outputs") for i, name in enumerate(node.output))
    )


def _reduced(node: NodeProto) -> list[str]:
    """The inputs that may be float16: all but the scales of a Resize and the like."""
    return [name for i, name in enumerate(node.input) if _half_allowed(node, i, "inputs")]


def _half_allowed(node: NodeProto, i: int, side: Literal["inputs", "outputs"]) -> bool:
    """Whether ONNX's definition of the operator has float16 for its i-th input or output; the last may be repeated."""
    parameters = getattr(onnx.defs.get_schema(node.op_type, OPSET, node.domain), side)
    return FLOAT16 in parameters[min(i, len(parameters) - 1)].types


def _with_casts(
    nodes: Iterable[NodeProto], outside: frozenset[str], twins: Mapping[str, str], entering: set[str], leaving: set[str]
) -> list[NodeProto]:
    """The nodes with a cast on every tensor that crosses the border, once: what leaves keeps its name as float32."""
    placed: list[NodeProto] = []
    waiting = set(entering)
    for node in nodes:
        if node.name in outside:
            placed.append(node)
            continue
        reduced = _reduced(node)
        for name in dict.fromkeys(reduced):
            if name in waiting:
                waiting.discard(name)
                placed.append(_cast(name, twins[name], TensorProto.FLOAT16))
        out = [name for name in node.output if name in leaving]
        node.input[:] = [twins.get(name, name) if name in reduced else name for name in node.input]
        node.output[:] = [twins.get(name, name) for name in node.output]
        _reduce_attributes(node)
        placed.append(node)
        placed += [_cast(twins[name], name, TensorProto.FLOAT) for name in out]
    return placed


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_to_{target}", to=to)


def _half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    with np.errstate(over="ignore"):  # an infinite weight is for the judge
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)


def _reduce_attributes(node: NodeProto) -> None:
    """The type that a node states of its own output."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if node.op_type == "ConstantOfShape" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name))


def _floats(graph: GraphProto) -> frozenset[str]:
    """Names of all float32 tensors."""
    values = [*graph.input, *graph.output, *graph.value_info]
    names = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return frozenset(names | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT})
