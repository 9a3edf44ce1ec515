"""A model file from somebody: what it is instead is said, and nothing that it names is opened."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from okdc.bundle import foreign
from okdc.errors import CheckFailed

WHERE = Path("bundle/model.onnx")


def _model() -> onnx.ModelProto:
    """A little network: a convolution, a branch that is never taken, a constant."""
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    value = numpy_helper.from_array(np.ones(1, np.float32), "value")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 4, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 4, 4])
    branch = helper.make_graph([helper.make_node("Constant", [], ["z"], value=value)], "branch", [], [])
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["y"]),
        helper.make_node("If", ["condition"], ["c"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(nodes, "net", [image], [out], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = _model()
    change(model)
    content: bytes = model.SerializeToString()
    return content


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", b"x")
    return stream.getvalue()


def _outside(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def _sparse(model: onnx.ModelProto) -> Any:
    sparse = model.graph.sparse_initializer.add()
    sparse.indices.name = "indices"
    return sparse.values


def _function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 18)]))


# Where a tensor can hide.
PLACES: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "a weight": lambda m: m.graph.initializer[0],
    "an attribute of a node in a branch": lambda m: m.graph.node[1].attribute[0].g.node[0].attribute[0].t,
    "a weight of a branch": lambda m: m.graph.node[1].attribute[1].g.initializer.add(name="inner"),
    "a list of tensors": lambda m: m.graph.node[0].attribute.add(name="many").tensors.add(name="one"),
    "a sparse weight": _sparse,
    "the values of a sparse attribute": lambda m: m.graph.node[0].attribute.add(name="s").sparse_tensor.values,
    "training": lambda m: m.training_info.add().algorithm.initializer.add(name="step"),
}

FOREIGN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty"),
    "a zip": (_zip(), "it is a zip archive"),
    "an empty zip": (b"PK\x05\x06" + bytes(18), "it is a zip archive"),
    "a zip that is ONNX too": (b"PK" + _model().SerializeToString(), "it is a zip archive"),
    "a pickle": (pickle.dumps({"weights": [1.0]}), "it is a pickle"),
    "gzip": (gzip.compress(_model().SerializeToString()), "it is gzip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "it is HDF5"),
    "git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a pointer of git LFS"),
    "a web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "it is a web page"),
    "JSON": (json.dumps({"schema": 1}).encode(), "it is JSON"),
    "text": (b"model: resnet8\nlabels: 10\n", "it is text"),
    "safetensors": ((24).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}   ' + bytes(99), "a safetensors file"),
    "onnxruntime's format": (b"\x20\x00\x00\x00ORTM" + bytes(99), "onnxruntime's own format"),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3" + bytes(99), "TensorFlow Lite"),
    "noise": (random.Random(0).randbytes(4000), "cut short or damaged"),
    "one byte": (b"\x08", "cut short or damaged"),
    "half of it": (_model().SerializeToString()[:150], "cut short or damaged"),
    "levels without end": (_changed(lambda m: m) + b"\x3a\xff\xff\xff\x7f", "cut short or damaged"),
    "another message": (b"\x08\x08\x12\x03abc", "there is no graph in it"),
    "no version of the format": (_changed(lambda m: m.ClearField("ir_version")), "is no model for a bundle"),
    "no opset": (_changed(lambda m: m.ClearField("opset_import")), "of which version its operators are"),
    "a function": (_changed(_function), "1 functions of its own"),
    "a custom operator": (
        _changed(lambda m: m.graph.node.add(op_type="Steal", domain="com.example")),
        "the operator 'Steal' of the domain 'com.example'",
    ),
    "a custom operator in a branch": (
        _changed(lambda m: m.graph.node[1].attribute[0].g.node.add(op_type="Gelu", domain="com.microsoft")),
        "the domain 'com.microsoft'",
    ),
    "a location without its mark": (
        _changed(lambda m: m.graph.initializer[0].external_data.add(key="location", value="x")),
        "weights in another file: the tensor 'w' asks for 'x'",
    ),
    "a mark without a location": (
        _changed(lambda m: setattr(m.graph.initializer[0], "data_location", TensorProto.EXTERNAL)),
        "weights in another file",
    ),
}


def test_a_standard_model_is_read() -> None:
    assert foreign.model(_model().SerializeToString(), WHERE) == _model()
    alias = _changed(lambda m: setattr(m.graph.node[0], "domain", "ai.onnx"))
    assert foreign.model(alias, WHERE).graph.node[0].domain == "ai.onnx"


def test_the_models_that_okdc_exports_are_read(blob: bytes) -> None:
    assert foreign.model(blob, WHERE).SerializeToString(deterministic=True) == blob


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_something_else_is_named(name: str) -> None:
    content, says = FOREIGN[name]
    with pytest.raises(CheckFailed) as refused:
        foreign.model(content, WHERE)
    assert refused.value.kind == "structure"
    assert refused.value.message.startswith("bundle/model.onnx is no model for a bundle: ")
    assert says in refused.value.message
    assert refused.value.hint
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m, "ir_version", onnx.IR_VERSION + 1), f"IR version {onnx.IR_VERSION + 1}, newer than"),
        (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999, newer than"),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=998), "opset 998, newer than"),
    ],
)
def test_what_is_newer_than_the_packages_is_said_to_be(change: Callable[[onnx.ModelProto], object], says: str) -> None:
    with pytest.raises(CheckFailed, match=says) as refused:
        foreign.model(_changed(change), WHERE)
    assert refused.value.kind == "opset"
    assert "upgrade" in refused.value.hint


def test_more_than_protobuf_holds_is_refused_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gigabytes are not made for it: the limit is brought down to a file of some bytes."""
    content = _model().SerializeToString()
    assert foreign.LARGEST == 2**31 - 1
    monkeypatch.setattr(foreign, "LARGEST", len(content) - 1)
    with pytest.raises(CheckFailed, match="no ONNX file has more than"):
        foreign.model(content, WHERE)


def test_a_file_cut_anywhere_is_refused_or_has_its_whole_graph(blob: bytes) -> None:
    """What stands behind the graph may be cut between two entries; that is the hash's to find."""
    graph = onnx.load_model_from_string(blob).graph
    end = len(blob) - 3000
    cuts = [*range(64), *random.Random(1).sample(range(64, end), 100), *range(end, len(blob), 7)]
    read = 0
    for cut in cuts:
        try:
            found = foreign.model(blob[:cut], WHERE)
        except CheckFailed:
            continue
        read += 1
        assert found.graph == graph
    assert read < 100


def test_bytes_that_changed_never_raise_anything_else() -> None:
    content, rng = _model().SerializeToString(), random.Random(2)
    refused = 0
    for _ in range(1000):
        bad = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            foreign.model(bytes(bad), WHERE)
        except CheckFailed as error:
            refused += 1
            assert error.message.isprintable()
    assert refused > 300


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is opened


@contextmanager
def _untouched(path: Path) -> Iterator[Callable[[], bool]]:
    """Whether nobody opened `path`, in Python or below it: a pipe whose writer goes on as soon as there is a reader."""
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)), daemon=True)
    writer.start()

    def untouched() -> bool:
        writer.join(0.1)
        return writer.is_alive()

    try:
        yield untouched
    finally:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def test_the_watch_sees_a_reader(tmp_path: Path) -> None:
    with _untouched(tmp_path / "pipe") as untouched:
        assert untouched()
        (tmp_path / "pipe").read_bytes()
        assert not untouched()


@pytest.mark.parametrize("place", PLACES)
def test_weights_elsewhere_are_refused_and_not_looked_at(place: str, tmp_path: Path) -> None:
    """Absolute, by .. and beside it: the tests run in `tmp_path`, where a relative name would lead to the pipe too."""
    locations = [str(tmp_path / "weights"), f"../{tmp_path.name}/weights", "weights", "x" * 5000 + "\n\x1b[31m"]
    with _untouched(tmp_path / "weights") as untouched:
        for location in locations:
            model = _model()
            _outside(PLACES[place](model), location)
            with pytest.raises(CheckFailed, match="weights in another file") as refused:
                foreign.model(model.SerializeToString(), WHERE)
            assert refused.value.message.isprintable()
            assert len(refused.value.message) < 400
        assert untouched()
