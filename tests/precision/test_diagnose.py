"""Where int8 loses its precision: a layer that was spoilt stands at the top, under a name that PyTorch knows."""

from __future__ import annotations

from collections.abc import Callable

import graphs
import numpy as np
import onnx
import pytest
from graphs import Graph, Pixels
from onnx import numpy_helper

from okdc.errors import CheckFailed
from okdc.precision import quantize, ranges
from okdc.precision.diagnose import diagnose


@pytest.fixture(scope="module")
def images() -> Pixels:
    return graphs.digits()[0][:96]


@pytest.fixture(scope="module")
def int8(blob: bytes, images: Pixels) -> bytes:
    return quantize.quantize(blob, images, quantize.SETTINGS[0])


def test_the_worst_stand_first_and_are_nodes_of_the_float32_graph(blob: bytes, int8: bytes, images: Pixels) -> None:
    rows = diagnose(blob, int8, images)
    assert 5 <= len(rows) <= 10
    assert [row.sqnr_db for row in rows] == sorted(row.sqnr_db for row in rows)
    assert all(10 < row.sqnr_db < 80 for row in rows)
    graph = onnx.load_model_from_string(blob).graph
    there = {(node.name, node.op_type, node.output[0]) for node in graph.node}
    assert {(row.node, row.operator, row.output) for row in rows} <= there
    weights = {row.weight for row in rows}
    assert "network.stages.3.0.conv2.weight" in weights
    assert weights <= {tensor.name for tensor in graph.initializer} | {None}


def test_a_layer_that_was_spoilt_stands_out(blob: bytes, int8: bytes, images: Pixels) -> None:
    model = onnx.load_model_from_string(int8)
    name = "network.stages.2.0.conv1.weight_scale"
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(3), name))
    rows = diagnose(blob, model.SerializeToString(), images, worst=100)
    found = {row.weight: row.sqnr_db for row in rows if row.weight}
    assert rows[0].weight == "network.stages.2.0.conv1.weight"
    assert found["network.stages.2.0.conv1.weight"] < 10
    assert found["network.stages.1.0.conv1.weight"] > 20, "what lies in front of it is sound"


def test_it_says_the_same_twice_whatever_the_batch(
    blob: bytes, int8: bytes, images: Pixels, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = diagnose(blob, int8, images)
    assert diagnose(blob, int8, images) == expected
    monkeypatch.setattr(ranges, "PIXELS", 7 * 8 * 8)
    found = diagnose(blob, int8, images)
    assert [row.node for row in found] == [row.node for row in expected]
    assert [row.sqnr_db for row in found] == pytest.approx([row.sqnr_db for row in expected], abs=0.11)
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntimes_tool_raises_is_a_failed_check(blob: bytes, images: Pixels) -> None:
    with pytest.raises(CheckFailed, match=r"^onnxruntime cannot compare the layers: ") as caught:
        diagnose(blob, blob[:100], images)
    assert caught.value.kind == "int8"


@pytest.mark.parametrize("make", [graphs.densenet, graphs.efficientnet, graphs.convolutional], ids=lambda f: f.__name__)
def test_networks_that_are_half_quantised_are_looked_at_too(make: Callable[[Graph, str], str], images: Pixels) -> None:
    blob = Graph(make).blob()
    assert diagnose(blob, quantize.quantize(blob, images, quantize.SETTINGS[0]), images)
