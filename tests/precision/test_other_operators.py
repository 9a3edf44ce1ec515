"""int8 and float16 of operators that okdc's own networks do not have, in networks as the exporter writes them."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from making import student_info
from networks.images import few_digits
from onnx import TensorProto

from okdc import backbones
from okdc.bundle.session import Session
from okdc.data.batches import Normalise
from okdc.deploy import onnx as exporter
from okdc.precision import quantize, regions
from okdc.precision.half import half
from okdc.precision.quantize import SETTINGS
from okdc.seeds import seeded

SIZE = 32
KINDS = {
    "activations:celu": "Celu",
    "activations:gelu_tanh": "Tanh",
    "activations:prelu": "PRelu",
    "attention:bottleneck_transformer": "LayerNormalization",
    "dtypes:half_and_back": "Cast",
    "heads:bilinear": "MatMul",
    "mixing:einsum": "Einsum",
    "mixing:sliced": "Slice",
    "norms:instancenorm": "InstanceNormalization",
    "pooling:gem": "Pow",
    "resizing:transposed": "ConvTranspose",
    "resizing:transposed_grouped": "ConvTranspose",
    "resizing:upsample_bilinear": "Resize",
}


@functools.cache
def exported(name: str) -> bytes:
    """The file of a network whose BatchNorm has seen the images."""
    rule = {"size": SIZE, "resize": "", "mean": [0.3] * 3, "std": [0.4] * 3}
    info = student_info(architecture=name, classes=[str(c) for c in range(10)], preprocessing=rule)
    with seeded(0, "student", 0):
        network = backbones.build(f"networks.{name}", 10, torch.Size((3, SIZE, SIZE)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(Normalise(info.preprocessing.mean, info.preprocessing.std)(torch.from_numpy(pixels("train"))))
    return exporter.to_onnx(network.eval(), info)


def pixels(split: str) -> np.ndarray:
    images: np.ndarray = few_digits(root=None, image_size=SIZE)[split][0]
    return images


def operators(blob: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(blob).graph.node)


def types(blob: bytes) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load_model_from_string(blob).graph.initializer}


@pytest.mark.parametrize("name", KINDS)
def test_float16_has_every_operator_and_answers_as_before_up_to_rounding(name: str) -> None:
    blob = exported(name)
    small = half(blob)
    assert KINDS[name] in operators(blob)
    left = operators(blob) - operators(small)
    assert not left, f"gone: {left}"
    onnx.checker.check_model(onnx.load_model_from_string(small), full_check=True)
    assert small == half(blob), "the bytes repeat"
    (z, _), (rounded, _) = Session(blob)(pixels("test"), 64), Session(small)(pixels("test"), 64)
    assert 0 < np.abs(rounded - z).max() < 2e-2 * np.ptp(z)


@pytest.mark.parametrize("name", KINDS)
def test_int8_has_every_operator_and_answers_nearly_as_before(name: str) -> None:
    blob = exported(name)
    small = quantize.quantize(blob, pixels("train"), SETTINGS[0])
    left = operators(blob) - operators(small)
    assert set(left) <= {"Relu", "Clip"}, "a range that begins at 0 cuts off what these did"
    assert small == quantize.quantize(blob, pixels("train"), SETTINGS[0]), "the bytes repeat"
    (z, _), (rounded, _) = Session(blob)(pixels("test"), 64), Session(small)(pixels("test"), 64)
    assert 0 < np.abs(rounded - z).mean() < 0.1 * z.std()


def test_the_scales_of_a_resize_stay_float32() -> None:
    small = half(exported("resizing:upsample_bilinear"))
    resize = next(node for node in onnx.load_model_from_string(small).graph.node if node.op_type == "Resize")
    assert types(small)[resize.input[2]] == TensorProto.FLOAT
    assert resize.input[0] not in types(small), "the map is the input"


def test_an_operator_without_float16_computes_in_float32_between_casts() -> None:
    nodes = onnx.load_model_from_string(half(exported("activations:celu"))).graph.node
    made = {name: node for node in nodes for name in node.output}
    readers = {name: node for node in nodes for name in node.input}
    celus = [node for node in nodes if node.op_type == "Celu"]
    assert len(celus) == 3
    for node in celus:
        assert made[node.input[0]].op_type == "Cast"
        assert readers[node.output[0]].op_type in ("Cast", "ReduceMean")


@pytest.mark.parametrize(("name", "eight_bits"), [("transposed", True), ("transposed_grouped", False)])
def test_weights_of_a_transposed_convolution_have_eight_bits_where_it_has_one_group(
    name: str, eight_bits: bool
) -> None:
    blob = exported(f"resizing:{name}")
    node = next(node for node in onnx.load_model_from_string(blob).graph.node if node.op_type == "ConvTranspose")
    held = types(quantize.quantize(blob, pixels("train"), SETTINGS[0]))
    assert (node.input[1] in held) != eight_bits
    assert (f"{node.input[1]}_quantized" in held) == eight_bits


def test_a_network_that_ends_with_a_transposed_convolution_is_reduced_up_to_there() -> None:
    model = regions.parse(exported("resizing:transposed"))
    last = [node for node in model.graph.node if node.op_type == "ConvTranspose"][-1]
    del model.graph.node[list(model.graph.node).index(last) + 1 :]
    assert last.name not in regions.outside(model, "int8")


SCRIPT = """
import pathlib, sys
from okdc.bundle.session import Session
from okdc.precision.half import half
Session(half(pathlib.Path(sys.argv[1]).read_bytes()))
"""


def test_attention_in_float16_does_not_end_the_process(tmp_path: Path) -> None:
    """onnxruntime 1.31 joins a Transpose of the first axis to the MatMul behind it, and dies where both are float16."""
    (tmp_path / "model.onnx").write_bytes(exported("attention:bottleneck_transformer"))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
