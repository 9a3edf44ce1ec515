"""float16: half the bytes, float32 in and out, and nothing of the pixels or the probabilities rounded."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
from graphs import CLASSES, Graph
from onnx import TensorProto

from okdc.bundle.session import Session
from okdc.errors import CheckFailed
from okdc.precision.half import half


@pytest.mark.parametrize("make", graphs.NETWORKS)
def test_every_kind_of_network_answers_as_before_up_to_rounding(make: Callable[[Graph, str], str]) -> None:
    blob = Graph(make).blob()
    small = half(blob)
    model = onnx.load_model_from_string(small)
    onnx.checker.check_model(model, full_check=True)
    images, _ = graphs.digits()
    (z, _), (found, p) = Session(blob)(images, 64), Session(small)(images, 64)
    assert 0 < np.abs(found - z).max() < 2e-2 * max(1, np.abs(z).max())
    softmax = np.exp(found - found.max(1, keepdims=True))
    assert np.abs(p - softmax / softmax.sum(1, keepdims=True)).max() < 1e-6, "probabilities are no float16"
    assert model.graph.output == onnx.load_model_from_string(blob).graph.output


def test_the_file_is_half_as_large_and_says_the_same_of_itself(blob: bytes) -> None:
    small = half(blob)
    assert 0.49 < len(small) / len(blob) < 0.53
    before, after = onnx.load_model_from_string(blob), onnx.load_model_from_string(small)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert (after.producer_name, after.ir_version) == (before.producer_name, before.ir_version)
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 18}


def test_only_what_crosses_the_border_is_cast_and_normalisation_and_softmax_stay_float32(blob: bytes) -> None:
    model = onnx.load_model_from_string(half(blob))
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert [node.attribute[0].i for node in casts] == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT]
    assert casts[2].output[0] == "logits"
    types = {t.name: t.data_type for t in model.graph.initializer}
    for kind, expected in (("Sub", TensorProto.FLOAT), ("Mul", TensorProto.FLOAT), ("Conv", TensorProto.FLOAT16)):
        node = next(node for node in model.graph.node if node.op_type == kind)
        assert {types[name] for name in node.input if name in types} == {expected}


def shared(g: Graph, x: str) -> str:
    """One factor, before the first convolution and behind it."""
    factor = g.tensor(np.full((1, 1, 1, 1), 0.7))
    x = g.add("Mul", g.conv(g.add("Mul", x, factor), 3, 8, 3), factor)
    return g.linear(g.mean(x), 8)


def exits(g: Graph, x: str) -> str:
    """A map that is read in float16 by the next convolution and, behind the last one, in float32."""
    early = g.add("Relu", g.conv(x, 3, CLASSES, 3))
    late = g.conv(early, CLASSES, CLASSES)
    return g.mean(g.add("Add", early, late))


@pytest.mark.parametrize(("make", "casts"), [(shared, 3), (exits, 4)])
def test_what_both_sides_read_exists_in_both_precisions(make: Callable[[Graph, str], str], casts: int) -> None:
    blob = Graph(make).blob()
    small = half(blob)
    counts = Counter(node.op_type for node in onnx.load_model_from_string(small).graph.node)
    assert counts["Cast"] == casts, "each tensor that crosses is cast once"
    images, _ = graphs.digits()
    z, found = Session(blob)(images[:64])[0], Session(small)(images[:64])[0]
    assert 0 < np.abs(found - z).max() < 2e-2 * np.abs(z).max()


SCRIPT = "import hashlib, pathlib, sys; from okdc.precision.half import half\n"
SCRIPT += "print(hashlib.sha256(half(pathlib.Path(sys.argv[1]).read_bytes())).hexdigest())"


def test_the_bytes_are_the_same_in_another_process(tmp_path: Path, blob: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(blob)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model.onnx")],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(half(blob)).hexdigest()


def test_a_graph_that_makes_no_sense_in_float16_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("Type Error: the types do not match\nand more")

    blob = Graph(graphs.mobilenet).blob()
    monkeypatch.setattr("onnx.shape_inference.infer_shapes", refuses)
    with pytest.raises(
        CheckFailed, match=r"^the file has no float16 twin: Type Error: the types do not match$"
    ) as found:
        half(blob)
    assert found.value.kind == "float16"


def test_a_network_without_weights_is_refused() -> None:
    blob = Graph(lambda g, x: g.add("MatMul", g.mean(x), g.tensor(np.ones((3, 10))))).blob()
    model = onnx.load_model_from_string(blob)
    del model.graph.node[-2:]
    with pytest.raises(CheckFailed, match="nothing to reduce") as caught:
        half(model.SerializeToString())
    assert caught.value.kind == "float16"
