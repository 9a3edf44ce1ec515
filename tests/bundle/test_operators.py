"""The rule on the operators of a file: what has sizes passes, each clause refuses what it is for, in no memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from okdc.bundle import operators
from okdc.errors import CheckFailed

node = helper.make_node


def graph(*nodes: NodeProto, opset: int = 18, **weights: Any) -> onnx.ModelProto:
    """N images of 3×8×8 float32 numbers, N×4 logits: what `nodes` make of `x` is `y`, which a product reads."""
    weights["w"] = np.ones((192, 4), np.float32)
    ends = [node("Flatten", ["y"], ["flat"]), node("MatMul", ["flat", "w"], ["logits"])]
    return helper.make_model(
        helper.make_graph(
            [*nodes, *ends],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def aside(*nodes: NodeProto, **weights: Any) -> onnx.ModelProto:
    """The same, with nodes that nothing reads."""
    return graph(node("Relu", ["x"], ["y"]), *nodes, **weights)


def refusal(model: onnx.ModelProto) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        operators.check(model)
    assert caught.value.kind == "structure"
    assert caught.value.hint
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
    return caught.value


PASSES: dict[str, onnx.ModelProto] = {
    "an operator that no list names": graph(node("Mish", ["x"], ["y"])),
    "a reshape by the batch's own size": graph(
        node("Shape", ["x"], ["n"], start=0, end=1),
        node("Concat", ["n", "rest"], ["sizes"], axis=0),
        node("Reshape", ["x", "sizes"], ["y"]),
        rest=np.array([-1], np.int64),
    ),
    "a size that is gathered, divided, unsqueezed and cast": graph(
        node("Shape", ["x"], ["all"]),
        node("Gather", ["all", "axis"], ["height"]),
        node("Div", ["height", "two"], ["half"]),
        node("Cast", ["half"], ["half32"], to=TensorProto.INT32),
        node("Cast", ["half32"], ["half64"], to=TensorProto.INT64),
        node("Unsqueeze", ["half64", "zero"], ["half1"]),
        node("Concat", ["front", "half1", "rest"], ["sizes"], axis=0),
        node("Reshape", ["x", "sizes"], ["y"]),
        axis=np.array(2, np.int64),
        two=np.array(2, np.int64),
        zero=np.array([0], np.int64),
        front=np.array([-1, 3], np.int64),
        rest=np.array([16], np.int64),
    ),
    "a resize by scales": graph(
        node("Resize", ["x", "", "scales"], ["large"], mode="linear"),
        node("AveragePool", ["large"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        scales=np.array([1, 1, 2, 2], np.float32),
    ),
    "a state as large as the batch": graph(
        node("Shape", ["x"], ["sizes"]), node("Expand", ["one", "sizes"], ["ones"]), node("Add", ["x", "ones"], ["y"]),
        one=np.float32(1),
    ),
    "dropout that is off": graph(
        node("Dropout", ["x", "ratio", "off"], ["y"]), ratio=np.float32(0.5), off=np.array(False)
    ),
    "the best of all": aside(node("TopK", ["x", "k"], ["best", "places"]), k=np.array([2], np.int64)),
    "int8": graph(
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]), node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        scale=np.float32(0.1), zero=np.uint8(3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_what_has_a_size_passes(name: str) -> None:
    before = PASSES[name].SerializeToString()
    operators.check(PASSES[name])
    assert PASSES[name].SerializeToString() == before


BRANCH = helper.make_graph([], "branch", [], [])
BODY = helper.make_graph(
    [node("Identity", ["condition"], ["goes_on"])],
    "body",
    [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
    ],
    [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, [])],
)
LARGE = np.array([1, 2**14, 2**14], np.int64)  # 2**28 numbers

REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "a branch": (aside(node("If", ["c"], ["z"], then_branch=BRANCH, else_branch=BRANCH), c=np.array(True)), "If"),
    "a loop": (aside(node("Loop", ["", "c"], [], body=BODY), c=np.array(True)), "Loop"),
    "a scan": (aside(node("Scan", ["x"], ["z"], body=BODY, num_scan_inputs=1)), "Scan"),
    "a map over a sequence": (aside(node("SequenceMap", ["s"], ["z"], body=BODY)), "SequenceMap"),
    "noise": (aside(node("RandomNormal", [], ["z"], shape=[2])), "RandomNormal"),
    "noise like the image": (aside(node("RandomUniformLike", ["x"], ["z"])), "RandomUniformLike"),
    "coins": (aside(node("Bernoulli", ["x"], ["z"])), "Bernoulli"),
    "dropout that is on": (
        graph(node("Dropout", ["x", "ratio", "on"], ["y"]), ratio=np.float32(0.5), on=np.array(True)),
        "Dropout",
    ),
    "dropout that the image switches": (
        graph(
            node("ReduceMax", ["x"], ["largest"], keepdims=0),
            node("Greater", ["largest", "zero"], ["on"]),
            node("Dropout", ["x", "zero", "on"], ["y"]),
            zero=np.float32(0),
        ),
        "Dropout",
    ),
    "a sequence": (aside(node("SequenceConstruct", ["x"], ["z"])), "sequence"),
    "an optional": (aside(node("Optional", ["x"], ["z"])), "optional"),
    "strings": (aside(node("Cast", ["x"], ["z"], to=TensorProto.STRING)), "strings"),
    "strings among the weights": (aside(z=np.array(["a"], object)), "strings"),
    "another program's operator": (aside(node("FusedConv", ["x"], ["z"], domain="com.microsoft")), "FusedConv"),
    "a standard name in another domain": (
        aside(node("Relu", ["x"], ["z"], domain="com.example")), "com.example.Relu",
    ),
    "an operator of a later opset": (aside(node("Gelu", ["x"], ["z"])), "Gelu"),
    "an operator that was given up": (aside(node("Upsample", ["x", "s"], ["z"]), s=np.ones(4, np.float32)), "Upsample"),
    "a sparse constant": (
        aside(
            node(
                "Constant",
                [],
                ["z"],
                sparse_value=helper.make_sparse_tensor(
                    helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]),
                    helper.make_tensor("i", TensorProto.INT64, [1], [0]),
                    [2**40],
                ),
            )
        ),
        "sparse",
    ),
    "places that are not zero": (aside(node("NonZero", ["x"], ["z"])), "'z', which NonZero gives"),
    "numbers without repetition": (aside(node("Unique", ["x"], ["z"])), "'z', which Unique gives"),
    "a mask": (aside(node("Greater", ["x", "o"], ["m"]), node("Compress", ["x", "m"], ["z"]), o=np.float32(0)), "'z'"),
    "a size that the image says": (
        aside(
            node("ReduceMax", ["x"], ["largest"], keepdims=0),
            node("Cast", ["largest"], ["whole"], to=TensorProto.INT64),
            node("Range", ["zero", "whole", "one"], ["z"]),
            zero=np.array(0),
            one=np.array(1),
        ),
        "'z', which Range gives",
    ),
    "a size by an operator that is no arithmetic of shapes": (
        aside(node("Einsum", ["n"], ["m"], equation="i->i"), node("ConstantOfShape", ["m"], ["z"]), n=np.array([4])),
        "'z', which ConstantOfShape gives",
    ),
    "a batch that loses an image": (
        graph(
            node("Slice", ["x", "first", "last", "axis"], ["fewer"]), node("Concat", ["fewer", "fewer"], ["y"], axis=0),
            first=np.array([1]),
            last=np.array([2**62]),
            axis=np.array([0]),
        ),
        "'fewer'",
    ),
    "a batch of one by itself": (graph(node("Squeeze", ["x"], ["z"]), node("Relu", ["x"], ["y"])), "'z'"),
    "a constant batch": (
        graph(node("Slice", ["x", "first", "last", "first"], ["y"]), first=np.array([0]), last=np.array([1])),
        "logits",
    ),
    "a tensor from nowhere": (aside(node("Relu", ["nothing"], ["z"])), "nothing"),
    "two tensors of one name": (aside(node("Relu", ["x"], ["y"])), "'y'"),
    "sizes that contradict each other": (aside(node("Add", ["x", "o"], ["z"]), o=np.ones(5, np.float32)), "Add"),
    "a constant of a size": (aside(node("ConstantOfShape", ["s"], ["z"]), s=LARGE), "1×16384×16384"),
    "an image written large": (aside(node("Expand", ["o", "s"], ["z"]), s=LARGE, o=np.float32(1)), "268,435,456"),
    "an image written often": (aside(node("Tile", ["x", "s"], ["z"]), s=np.array([1, 1, 2**12, 2**12])), "'z'"),
    "an image drawn large": (
        aside(node("Resize", ["x", "", "s"], ["z"], mode="nearest"), s=np.array([1, 1, 2**12, 2**12], np.float32)),
        "'z', which Resize gives",
    ),
    "a wide margin": (aside(node("Pad", ["x", "s"], ["z"]), s=np.array([0] * 6 + [2**20] * 2)), "Pad"),
    "a long range": (
        aside(node("Range", ["a", "b", "c"], ["z"]), a=np.array(0), b=np.array(2**62), c=np.array(1)),
        "Range",
    ),
    "a square of numbers from a vector": (
        aside(
            node("ConstantOfShape", ["s"], ["v"]), node("Reshape", ["v", "t"], ["u"]), node("Add", ["u", "v"], ["z"]),
            s=np.array([2**15]), t=np.array([-1, 1]),
        ),
        "'z', which Add gives",
    ),
    "many large constants": (
        aside(*(node("ConstantOfShape", ["s"], [f"z{i}"]) for i in range(5)), s=np.array([2**27])),
        "671,088,832 numbers at once when ConstantOfShape gives 'z4'",
    ),
    "many large images that a last operator reads": (
        aside(
            *(node("Tile", ["x", "s"], [f"z{i}"]) for i in range(6)),
            node("Sum", [f"z{i}" for i in range(6)], ["z"]),
            s=np.array([1, 1, 2**10, 2**9]),
        ),
        "numbers at once",
    ),
    "a shape that doubles": (
        aside(node("Shape", ["x"], ["s0"]), *(node("Concat", [f"s{i}"] * 2, [f"s{i + 1}"], axis=0) for i in range(40))),
        "'s26', which Concat gives",
    ),
    "a shape that doubles out of sight": (
        aside(
            node("Shape", ["x"], ["n"], start=2, end=3),
            node("ConstantOfShape", ["n"], ["s0"]),
            *(node("Concat", [f"s{i}"] * 2, [f"s{i + 1}"], axis=0) for i in range(40)),
        ),
        "'s25', which Concat gives",
    ),
    "operators without end": (aside(*(node("Relu", ["x"], [f"z{i}"]) for i in range(34_000))), "34,003 operators"),
    "an operator that reads without end": (aside(node("Sum", ["x"] * 100_000, ["z"])), "4 operators that name"),
    "axes without end": (aside(o=np.float32(1)), "65 axes"),
}  # fmt: skip


REFUSED["axes without end"][0].graph.initializer[0].dims.extend([1] * 65)


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_rule_is_named_and_takes_no_memory(name: str) -> None:
    model, says = REFUSED[name]
    tracemalloc.start()
    try:
        assert says in refusal(model).message
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def test_large_maps_one_after_the_other_pass_and_are_not_added_up() -> None:
    """Twenty maps of 2**26 numbers, no two of them alive with a third."""
    scales = np.array([1, 1, 2**10, 2**9], np.float32)
    shrink = [node("ReduceMax", ["z19", "axes"], ["y"])]
    steps = [node("Relu", [f"z{i}"], [f"z{i + 1}"]) for i in range(19)]
    model = graph(node("Resize", ["x", "", "s"], ["z0"], mode="nearest"), *steps, *shrink, s=scales, axes=np.array([3]))
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3 * 8 * 2**10, 4), np.float32), "w"))
    operators.check(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.graph.output.append(helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, ["batch", 4])),
        lambda m: m.graph.input.append(helper.make_tensor_value_info("any", TensorProto.FLOAT, None)),
        lambda m: m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["batch", 4])),
        lambda m: m.graph.initializer.append(TensorProto(name="b", data_type=1, dims=[7], raw_data=b"four")),
        lambda m: m.graph.initializer.append(TensorProto(name="b", data_type=99, dims=[1], raw_data=b"four")),
        lambda m: m.graph.initializer.append(TensorProto(name="b", data_type=1, dims=[-1, 7])),
        lambda m: m.graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]),
                helper.make_tensor("i", TensorProto.INT64, [1], [0]),
                [2**40],
            )
        ),
        lambda m: m.functions.append(
            helper.make_function("own", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)])
        ),
    ],
)
def test_a_graph_that_hides_a_size_is_refused(change: Callable[[onnx.ModelProto], object]) -> None:
    model = aside()
    change(model)
    refusal(model)


def test_sizes_are_of_the_batch_that_was_asked_for() -> None:
    shapes = operators.sizes(PASSES["a resize by scales"], 5)
    assert (shapes["large"], shapes["logits"]) == ((5, 3, 16, 16), (5, 4))


def test_a_tensor_that_the_file_holds_may_be_as_large_as_it_is() -> None:
    """A quantised network's weights become as many float32 numbers again."""
    weights = TensorProto(name="q", data_type=TensorProto.INT8, dims=[2**27])  # their bytes are not read
    model = aside(*(node("DequantizeLinear", ["q", "scale"], [f"z{i}"]) for i in range(5)), scale=np.float32(1))
    model.graph.initializer.append(weights)
    operators.check(model)
