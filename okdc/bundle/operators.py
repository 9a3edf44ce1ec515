"""What the graph of a bundle's file may hold: a rule, checked from the bytes before anything runs them. No torch.

An image classifier of any kind passes: operators of ONNX's standard alone, on tensors of numbers, without chance, and
of sizes that are the same for all images. Sizes are inferred for a concrete batch, operator by operator, by onnx's own
shape inference, with the values of small vectors computed on the way: that is how an exporter writes a reshape. A size
that cannot be told in this way depends on the image, or on nothing that is in the file.

onnx's own way to follow values, data propagation, is not used: it has no limit, and twenty-three concatenations of a
shape with itself take 6 GB.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from okdc.errors import CheckFailed, by, first_line, quoted

Shape = tuple[int, ...]
Value = npt.NDArray[Any]

STANDARD = frozenset({"", "ai.onnx"})  # one domain, two spellings
NAMED = 10  # operators in a message
BATCHES = 1, 3  # whose sizes are compared: what they share is constant, what triples is the batch

# For one image. VGG's first map of 1,024×1,024 pixels, the largest that a recipe may ask for, has half as many numbers,
# its first linear layer 103 million weights. A network of that size holds two or three such tensors at a time.
LARGEST = 2**27
LARGEST_IN_ALL = 4 * LARGEST
MOST_NAMES = 100_000  # that operators read and give; torchvision's networks have 6,000 and less
MOST_AXES = 64  # of a tensor, as in numpy
MOST_VALUES = 1024  # numbers in a vector whose values are followed: shapes, axes, pads, scales

# Of ONNX's operators only these draw numbers; Dropout does where it is told that it is in training.
RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
# Whose values are followed: the arithmetic of shapes. Each takes time and memory by the length of what it reads and
# gives, which no Einsum does. Any other operator passes as well, but nothing's size can be told by its values.
# fmt: off
ARITHMETIC = frozenset({
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal",
    "Expand", "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max",
    "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd",
    "ReduceSum", "Reshape", "Round", "Shape", "Sign", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile",
    "Transpose", "Unsqueeze", "Where", "Xor",
})
# fmt: on
GRAPHS = frozenset({AttributeProto.GRAPH, AttributeProto.GRAPHS})
SPARSE = frozenset({AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS})

UNTRUSTED = "do not use this file unless you know who made it"
CHANCE = "draw random numbers, dropout too, only where self.training is true"
VALUES = (
    "a boolean mask, nonzero or unique picks as many numbers as the image says: torch.where and topk keep sizes; "
    "in a file from somebody else it can be an attack"
)


@dataclass
class Tensors:
    """All that a walk through a graph knows of its tensors, by name."""

    kinds: dict[str, int] = field(default_factory=dict)  # numbers of TensorProto.DataType
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)  # of scalars and short vectors that no image changes


def check(model: onnx.ModelProto) -> None:
    """Raises CheckFailed ("structure") for a graph that breaks the rule, by the operator or the tensor that does."""
    if model.functions:
        raise _refused(f"the file holds {len(model.functions)} local functions; expected plain operators", UNTRUSTED)
    if model.graph.sparse_initializer:
        raise _refused("the file holds sparse tensors; expected plain ones", UNTRUSTED)
    names = sum(1 + len(node.input) + len(node.output) for node in model.graph.node)
    if names > MOST_NAMES:
        raise _refused(
            f"{len(model.graph.node):,} operators that name {names:,} tensors; expected {MOST_NAMES:,} at most",
            UNTRUSTED,
        )
    _check_nodes(model)
    one, more = (sizes(model, batch) for batch in BATCHES)
    for name, shape in one.items():
        if not _scales(shape, more[name]):
            raise _refused(
                f"the tensor {quoted(name)} is {_size(shape)} for {BATCHES[0]} image and {_size(more[name])} for "
                f"{BATCHES[1]}; expected sizes that are constant, or grow as the batch does",
                "the forward puts the images of a batch together, or takes some out of it",
            )
    for output in model.graph.output:
        if output.name not in one:
            raise _refused(f"nothing in the graph gives its output {quoted(output.name)}", UNTRUSTED)
        if [shape[:1] for shape in (one[output.name], more[output.name])] != [(batch,) for batch in BATCHES]:
            raise _refused(
                f"{output.name} is {_size(more[output.name])} for {BATCHES[1]} images; expected a row for each",
                "the forward uses a constant batch size: a reshape or view with a number in it",
            )


def sizes(model: onnx.ModelProto, batch: int) -> dict[str, Shape]:
    """The size of every tensor of the graph, by name, where every input's axis without a size is `batch`.

    Raises CheckFailed ("structure") where a size depends on values, is none, or is larger than a file may ask for.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    opsets = [helper.make_opsetid("", max(versions, default=1))]
    tensors = _given(model.graph, batch)
    room = _Room(model.graph, batch)
    for place, node in enumerate(model.graph.node):
        _infer(node, tensors, opsets, batch)
        room.take(place, node, tensors)
        _compute(node, tensors, opsets)
    return tensors.shapes


def _refused(message: str, hint: str) -> CheckFailed:
    return CheckFailed("structure", message, hint=hint)


def _name(node: NodeProto) -> str:
    """The name of any file's operator; protobuf gives bytes where it is no text."""
    word = f"{node.domain}.{node.op_type}" if node.domain not in STANDARD else node.op_type
    return word if isinstance(word, str) and word.replace(".", "").isidentifier() else quoted(word)


def _size(shape: Shape) -> str:
    return by(shape) or "a scalar"


# ---------------------------------------------------------------------------------------------------------------------
# Operators


def _check_nodes(model: onnx.ModelProto) -> None:
    """The clauses on an operator by itself; those on its tensors are checked as sizes are inferred."""
    version = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=1)
    nodes = model.graph.node
    strange = sorted({_name(node) for node in nodes if not _is_standard(node, version)})
    if strange:
        raise _refused(
            f"no operators of ONNX's opset {version}: "
            f"{', '.join(strange[:NAMED])}{', ...' if len(strange) > NAMED else ''}",
            "an operator of a later opset, or of another program, has no meaning in such a file",
        )
    for node in nodes:
        kinds = {attribute.type for attribute in node.attribute}
        if kinds & GRAPHS:
            raise _refused(
                f"{node.op_type} holds a graph of its own: a branch or a loop; expected operators that always run",
                "a choice by the image's values can be torch.where; a loop with a number of turns is unrolled",
            )
        if kinds & SPARSE:
            raise _refused(f"{node.op_type} holds a sparse tensor; expected plain ones", UNTRUSTED)
        if node.op_type in RANDOM:
            raise _refused(f"{node.op_type} draws random numbers: two answers to one image would differ", CHANCE)


def _is_standard(node: NodeProto, version: int) -> bool:
    if node.domain not in STANDARD or not isinstance(node.op_type, str):
        return False
    try:
        return not onnx.defs.get_schema(node.op_type, version, "").deprecated
    except onnx.defs.SchemaError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def _given(graph: onnx.GraphProto, batch: int) -> Tensors:
    """What is there before the first operator: weights, and inputs whose axes without a size are `batch`."""
    tensors = Tensors()
    for weight in graph.initializer:
        _add(tensors, weight.name, weight.data_type, tuple(weight.dims))
        if _is_short(tensors.shapes[weight.name]):
            try:
                tensors.values[weight.name] = numpy_helper.to_array(weight)
            except Exception as error:  # too few bytes, a type that numpy lacks: kinds of its own
                raise _refused(
                    f"the weights {quoted(weight.name)} cannot be read: {first_line(error)}", UNTRUSTED
                ) from None
    for value in graph.input:
        if value.name in tensors.shapes:  # a weight that a caller may replace, by one of another size
            raise _refused(f"the input {quoted(value.name)} is also a weight; expected images alone", UNTRUSTED)
        kind = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else batch for dim in kind.shape.dim]
        if not kind.HasField("shape"):
            raise _refused(f"the input {quoted(value.name)} has no size", UNTRUSTED)
        _add(tensors, value.name, kind.elem_type, tuple(dims))
    return tensors


def _add(tensors: Tensors, name: str, kind: int, shape: Shape) -> None:
    if name in tensors.shapes:
        raise _refused(f"two tensors are called {quoted(name)}", UNTRUSTED)
    if kind == TensorProto.STRING:
        raise _refused(f"the tensor {quoted(name)} holds strings; expected numbers", UNTRUSTED)
    if any(length < 0 for length in shape):
        raise _refused(f"the tensor {quoted(name)} has a size below nothing, {_size(shape)}", UNTRUSTED)
    if len(shape) > MOST_AXES:
        raise _refused(f"the tensor {quoted(name)} has {len(shape):,} axes; expected {MOST_AXES} at most", UNTRUSTED)
    tensors.kinds[name], tensors.shapes[name] = kind, shape


def _alone(node: NodeProto, tensors: Tensors, opsets: list[onnx.OperatorSetIdProto]) -> onnx.ModelProto:
    """A model of one node: what is known of its inputs are weights, of the others the sizes."""
    names = [name for name in dict.fromkeys(node.input) if name]
    weights = [numpy_helper.from_array(tensors.values[name], name) for name in names if name in tensors.values]
    inputs = [
        helper.make_tensor_value_info(name, tensors.kinds[name], tensors.shapes[name])
        for name in names
        if name not in tensors.values
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    return helper.make_model(helper.make_graph([node], "one", inputs, outputs, weights), opset_imports=opsets)


def _infer(node: NodeProto, tensors: Tensors, opsets: list[onnx.OperatorSetIdProto], batch: int) -> None:
    """Add the types and sizes of a node's outputs."""
    for name in node.input:
        if name and name not in tensors.shapes:
            raise _refused(f"{node.op_type} reads {quoted(name)}, which nothing before it gives", UNTRUSTED)
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        training = tensors.values.get(node.input[2])
        if training is None or training.any():
            raise _refused("Dropout is in training mode: two answers to one image would differ", CHANCE)
    try:
        inferred = onnx.shape_inference.infer_shapes(_alone(node, tensors, opsets), strict_mode=True)
    except Exception as error:  # of onnx's own kinds, and protobuf's
        raise _refused(
            f"for a batch of {batch}, the inputs of {node.op_type} do not fit, which gives "
            f"{quoted(list(node.output))}: {first_line(error)}",
            "squeeze() without an axis takes a batch of one away as well; a file from somebody else may be damaged",
        ) from None
    types = {value.name: value.type for value in inferred.graph.output}
    for name in node.output:
        if not name:
            continue
        form = types[name].WhichOneof("value")
        if form not in (None, "tensor_type"):
            kind = form.removesuffix("_type").replace("_", " ")
            raise _refused(f"{node.op_type} gives a {kind}, {quoted(name)}; expected tensors alone", UNTRUSTED)
        tensor = types[name].tensor_type
        lengths = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if not tensor.HasField("shape") or None in lengths:
            raise _refused(
                f"the size of {quoted(name)}, which {node.op_type} gives, depends on values: "
                "it cannot be told before the image is there",
                VALUES,
            )
        _add(tensors, name, tensor.elem_type, tuple(length for length in lengths if length is not None))


def _compute(node: NodeProto, tensors: Tensors, opsets: list[onnx.OperatorSetIdProto]) -> None:
    """Add the values of a node's outputs where no image changes them and they are short: they may be another's size."""
    outputs = [name for name in node.output if name]
    if node.op_type not in ARITHMETIC or not all(_is_short(tensors.shapes[name]) for name in outputs):
        return
    if node.op_type in ("Shape", "Size"):
        shape = tensors.shapes[node.input[0]]
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        part = shape[ends.get("start", 0) : ends.get("end", len(shape))]
        tensors.values[outputs[0]] = np.array(part if node.op_type == "Shape" else math.prod(shape), np.int64)
        return
    if not all(name in tensors.values for name in node.input if name):
        return
    model = _alone(node, tensors, opsets)
    for value in model.graph.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, tensors.kinds[value.name], tensors.shapes[value.name]))
    from onnx.reference import ReferenceEvaluator  # a quarter of a second, which few files need

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, {})
    except Exception:  # it does not know every operator and type; the values are then unknown
        return
    for name, result in zip(outputs, results, strict=True):
        if isinstance(result, np.ndarray | np.generic) and np.shape(result) == tensors.shapes[name]:
            tensors.values[name] = np.asarray(result)


def _is_short(shape: Shape) -> bool:
    return len(shape) <= 1 and math.prod(shape) <= MOST_VALUES


def _scales(one: Shape, more: Shape) -> bool:
    """Whether every axis is as long for more images, or as many times as long as there are more images."""
    return len(one) == len(more) and all(
        b == a or b * BATCHES[0] == a * BATCHES[1] for a, b in zip(one, more, strict=True)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Memory


class _Room:
    """The numbers that exist at once when a graph runs in order, beside those in the file.

    A tensor is released after its last reader. One that no image changes stays: onnxruntime computes it once, when it
    loads the file.
    """

    def __init__(self, graph: onnx.GraphProto, batch: int) -> None:
        self.batch = batch
        self.last = {name: place for place, node in enumerate(graph.node) for name in node.input}
        self.kept = {value.name for value in graph.output}
        self.changing = {value.name for value in graph.input}
        self.alive: Counter[str] = Counter()
        self.total = 0
        self.limit = LARGEST_IN_ALL + sum(math.prod(weight.dims) for weight in graph.initializer)

    def take(self, place: int, node: NodeProto, tensors: Tensors) -> None:
        """Raises CheckFailed for a tensor, or for tensors, of more numbers than a file may ask for."""
        changes = any(name in self.changing for name in node.input)
        for name in filter(None, node.output):
            count = math.prod(tensors.shapes[name])
            if count > LARGEST * self.batch:
                raise _refused(
                    f"the tensor {quoted(name)}, which {node.op_type} gives, is {_size(tensors.shapes[name])}: "
                    f"{count:,} numbers; expected {LARGEST * self.batch:,} at most",
                    "smaller images or a smaller scale; a file of a few bytes can ask for more memory than there is",
                )
            self.total += count
            if changes:
                self.changing.add(name)
                self.alive[name] = count
            if self.total > self.limit * self.batch:
                raise _refused(
                    f"{self.total:,} numbers at once when {node.op_type} gives {quoted(name)}, "
                    f"{_size(tensors.shapes[name])}; expected {self.limit * self.batch:,} at most",
                    "smaller images or fewer channels; a file of a few bytes can ask for more memory than there is",
                )
        for name in {*node.input, *node.output}:
            if self.last.get(name, place) <= place and name not in self.kept:
                self.total -= self.alive.pop(name, 0)
