"""Counting in the ONNX file: by hand, to the unit, and no silent zero. Every network's file: tests/deploy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from okdc.bundle.macs import contraction, macs, uncounted
from okdc.errors import CheckFailed


def _model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, tuple[int, ...]],
    image: list[int | str],
    extra: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A graph from `image` to `logits` with weights of ones; `extra` inputs are of unknown size."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [
                helper.make_tensor_value_info("image", TensorProto.FLOAT, image),
                *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in extra),
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


CONVOLUTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "plain": ({}, (6, 4, 3, 3), 6 * 8 * 8 * 4 * 9),  # 10×10 without padding: 8×8
    "padded": ({"pads": [1, 1, 1, 1]}, (6, 4, 3, 3), 6 * 10 * 10 * 4 * 9),
    "strided": ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (6, 4, 3, 3), 6 * 5 * 5 * 4 * 9),
    "depthwise": ({"pads": [1, 1, 1, 1], "group": 4}, (4, 1, 3, 3), 4 * 10 * 10 * 9),
    "dilated": ({"dilations": [2, 2]}, (6, 4, 3, 3), 6 * 6 * 6 * 4 * 9),
    "oblong": ({}, (6, 4, 1, 5), 6 * 10 * 6 * 4 * 5),
}


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_counts_as_by_hand_whatever_the_batch(kind: str, batch: int | str) -> None:
    attributes, weights, expected = CONVOLUTIONS[kind]
    node = helper.make_node("Conv", ["image", "w"], ["logits"], **attributes)
    assert macs(_model([node], {"w": weights}, [batch, 4, 10, 10])) == expected


@pytest.mark.parametrize(("turned", "weights"), [(0, (20, 7)), (1, (7, 20))])
def test_a_linear_layer_counts_as_by_hand(turned: int, weights: tuple[int, int]) -> None:
    node = helper.make_node("Gemm", ["image", "w"], ["logits"], transB=turned)
    assert macs(_model([node], {"w": weights}, ["batch", 20])) == 20 * 7


def test_a_gemm_of_a_turned_matrix_counts_the_axis_that_is_summed() -> None:
    node = helper.make_node("Gemm", ["image", "v"], ["logits"], transA=1)
    assert macs(_model([node], {"v": (5, 2)}, [5, 3])) == 3 * 5 * 2


def test_a_matrix_product_counts_every_matrix_of_the_batch() -> None:
    node = helper.make_node("MatMul", ["image", "w"], ["logits"])
    assert macs(_model([node], {"w": (20, 7)}, ["batch", 3, 4, 20])) == 3 * 4 * 20 * 7


def test_an_int8_model_counts_as_its_float32_twin() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["logits"]),
    ]
    model = _model(nodes, {"scale": ()}, ["batch", 4, 10, 10])
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(0, np.uint8), "zero"),
            numpy_helper.from_array(np.ones((6, 4, 3, 3), np.int8), "w8"),
        ]
    )
    assert macs(model) == CONVOLUTIONS["plain"][2]


def test_a_transposed_convolution_counts_as_by_hand() -> None:
    node = helper.make_node("ConvTranspose", ["image", "w"], ["logits"], group=2, strides=[2, 2])
    assert macs(_model([node], {"w": (4, 3, 2, 2)}, ["batch", 4, 10, 10])) == 10 * 10 * 4 * 3 * 4


def test_a_recurrent_layer_counts_its_matrices_once_a_step() -> None:
    node = helper.make_node("GRU", ["image", "w", "r"], ["logits"], hidden_size=5, direction="bidirectional")
    model = _model([node], {"w": (2, 15, 20), "r": (2, 15, 5)}, [7, "batch", 20])
    assert macs(model) == 7 * 2 * 15 * (20 + 5)


EINSUMS = {
    "bchw,dc->bdhw": ((1, 3, 8, 8), (5, 3), 64 * 15),
    "...c,dc": ((1, 8, 8, 3), (5, 3), 64 * 15),
    "bij , bkj -> bik": ((2, 4, 3), (2, 5, 3), 2 * 4 * 5 * 3),
    "ij,k->k": ((4, 3), (5,), 0),
    "ij,jk->k": ((4, 3), (3, 5), 15),
    "bchw,bchw->bchw": ((1, 3, 8, 8), (1, 3, 8, 8), 0),
    "bc,bc": ((2, 3), (2, 3), 6),
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_an_einsum_counts_the_matrix_product_that_is_in_it(equation: str) -> None:
    left, right, expected = EINSUMS[equation]
    assert contraction(equation, [left, right]) == expected
    if left[0] == 1:
        node = helper.make_node("Einsum", ["image", "w"], ["logits"], equation=equation)
        assert macs(_model([node], {"w": right}, ["batch", *left[1:]])) == expected


def test_an_einsum_of_three_makes_the_count_a_lower_bound() -> None:
    nodes = [
        helper.make_node("MatMul", ["image", "w"], ["x"]),
        helper.make_node("Einsum", ["x", "v", "v"], ["logits"], equation="bc,cd,de->be"),
    ]
    model = _model(nodes, {"w": (20, 7), "v": (7, 7)}, ["batch", 20])
    assert (macs(model), uncounted(model)) == (140, ("Einsum",))
    del model.graph.node[1]
    model.graph.output[0].name = "x"
    assert uncounted(model) == ()


def test_a_product_of_weights_alone_is_no_work_of_an_image() -> None:
    nodes = [helper.make_node("MatMul", ["v", "w"], ["u"]), helper.make_node("MatMul", ["image", "u"], ["logits"])]
    assert macs(_model(nodes, {"v": (20, 2), "w": (2, 7)}, ["batch", 20])) == 140


def test_sizes_behind_a_reshape_are_known() -> None:
    model = _model(
        [
            helper.make_node("Reshape", ["image", "shape"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w"], ["logits"]),
        ],
        {"w": (400, 7)},
        ["batch", 4, 10, 10],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 400]), "shape"))
    assert macs(model) == 400 * 7


def test_what_neither_multiplies_nor_adds_counts_nothing_and_the_model_is_left_as_it_is() -> None:
    model = _model([helper.make_node("Relu", ["image"], ["logits"])], {"w": (2, 2)}, ["batch", 4])
    before = model.SerializeToString()
    assert macs(model) == 0
    assert model.SerializeToString() == before


def test_a_size_that_is_not_in_the_file_is_an_error_not_a_zero() -> None:
    node = helper.make_node("MatMul", ["other", "w"], ["logits"])
    with pytest.raises(CheckFailed, match="the input 'other' has no size") as caught:
        macs(_model([node], {"w": (20, 7)}, ["batch", 20], extra=("other",)))
    assert (caught.value.kind, caught.value.exit_code) == ("counting", 1)


def test_a_graph_that_contradicts_itself_is_an_error() -> None:
    node = helper.make_node("Gemm", ["image", "w"], ["logits"])
    with pytest.raises(CheckFailed, match="for a batch of 1, the inputs of Gemm do not fit"):
        macs(_model([node], {"w": (21, 7)}, ["batch", 20]))


def test_the_published_number_of_the_shipped_student(blob: bytes) -> None:
    assert macs(onnx.load_model_from_string(blob)) == 781_952, "resnet8 at 8×8, as its run recorded"
