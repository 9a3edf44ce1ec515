"""profile.json: what the bundle's network costs, by three counters that agree, and how long its files take."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from okdc import backbones
from okdc.assembly import student as students
from okdc.bundle.macs import macs
from okdc.deploy import bundle_profile, latency
from okdc.deploy.count import check_graph, exported
from okdc.errors import CheckFailed
from okdc.runs.files import read_json
from okdc.runs.provenance import load_average
from okdc.runs.run import RunDir

IMAGE = torch.zeros(1, 3, 8, 8)


def test_the_profile_says_what_the_run_recorded_and_what_the_files_weigh(finished: RunDir, blob: bytes) -> None:
    network = students.load(finished).network
    found = bundle_profile.measure(network, 8, {"float32": blob, "float16": blob}).to_json()
    recorded = read_json(finished.result)["kept"]
    assert (found["params"], found["macs"], found["flops"]) == (
        recorded["params"],
        recorded["macs"],
        2 * recorded["macs"],
    )
    assert found["input"] == [3, 8, 8]
    assert not found["lower_bound"]
    assert list(found["models"]) == ["float32", "float16"]
    for precision, name in (("float32", "model.onnx"), ("float16", "model.fp16.onnx")):
        model = found["models"][precision]
        assert (model["file"], model["bytes"], model["macs"]) == (name, len(blob), recorded["macs"])
        assert list(model["latency_ms"]) == ["batch_1", "batch_64"]
        for row in model["latency_ms"].values():
            assert 0 < row["min"] <= row["p50"] <= row["p90"]
            assert row["noisy"] == (row["p90"] > 2 * row["p50"])
    assert found["machine"]["threads"] == 1
    assert set(found["versions"]) == {"torch", "fvcore", "onnx", "onnxruntime"}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("p90", "noisy"), [(2.0, False), (2.1, True)])
def test_a_machine_that_was_busy_is_said_to_be(
    p90: float, noisy: bool, finished: RunDir, blob: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"float32": {"p50": 1.0, "p90": p90, "min": 0.9, "runs": 100}}
    monkeypatch.setattr(latency, "measure", lambda *_: rows)
    found = bundle_profile.measure(students.load(finished).network, 8, {"float32": blob}).to_json()
    assert found["machine"]["noisy"] is noisy
    assert {row["noisy"] for row in found["models"]["float32"]["latency_ms"].values()} == {noisy}


def test_where_nobody_keeps_count_of_the_load_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> None:
        raise OSError

    monkeypatch.setattr("os.getloadavg", refuses)
    assert load_average() is None


def test_every_variant_takes_its_turn_and_as_many_as_the_warm_up_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    calls: list[str] = []
    found = latency.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "aaabbb" + "aabb" * 3  # the second run of a turn is counted
    assert found["a"]["runs"] == found["b"]["runs"] == 3


# ---------------------------------------------------------------------------------------------------------------------
# The third counter


def test_a_file_of_another_network_is_refused(blob: bytes) -> None:
    other = backbones.build("resnet14", 10, IMAGE[0].shape)
    with pytest.raises(CheckFailed, match=r"model\.onnx has 781,952; expected the same number") as caught:
        bundle_profile.measure(other, 8, {"float32": blob})
    assert (caught.value.kind, caught.value.exit_code) == ("counting", 1)


def test_a_graph_that_lost_a_layer_is_refused(finished: RunDir, blob: bytes) -> None:
    model = onnx.load_model_from_string(blob)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    ends = {"first": [0], "last": [10], "axis": [1]}
    gemm.CopyFrom(helper.make_node("Slice", [gemm.input[0], *ends], gemm.output))
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in ends.items())
    with pytest.raises(CheckFailed, match="expected the same number") as caught:
        check_graph(exported(students.load(finished).network, IMAGE).macs, macs(model), "model.onnx")
    assert (caught.value.kind, caught.value.exit_code) == ("counting", 1)
    assert caught.value.message.startswith("the network has 781,952 MACs, model.onnx has 781,312;")
    assert "auxiliary head" in caught.value.hint


def test_to_the_unit() -> None:
    check_graph(100, 100, "model.onnx")
    for other in (99, 101):
        with pytest.raises(CheckFailed, match=f"model.onnx has {other}; expected the same number"):
            check_graph(100, other, "model.onnx")


def test_a_lower_bound_may_be_exceeded_by_the_graph_and_not_undercut() -> None:
    check_graph(100, 150, "model.onnx", lower_bound=True)
    with pytest.raises(CheckFailed, match=r"model\.onnx has 99"):
        check_graph(100, 99, "model.onnx", lower_bound=True)


def test_a_graph_that_is_a_lower_bound_may_have_less_and_no_more() -> None:
    check_graph(100, 99, "model.onnx", graph_is_lower_bound=True)
    with pytest.raises(CheckFailed, match=r"model\.onnx has 101"):
        check_graph(100, 101, "model.onnx", graph_is_lower_bound=True)


def test_counting_what_is_exported_leaves_the_network_as_it_was(finished: RunDir) -> None:
    network = students.load(finished).network.train()
    head = network.head
    assert exported(network, IMAGE).macs == 781_952
    assert network.head is head
    assert network.training
