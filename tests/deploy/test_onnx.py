"""The ONNX file: what is in it, what must not be, and that its bytes repeat."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx as onnx_
import pytest
import torch
from onnx import helper, numpy_helper

from okdc import backbones
from okdc.assembly import student as students
from okdc.bundle import structure
from okdc.bundle.session import Session
from okdc.data.batches import Normalise
from okdc.deploy import onnx
from okdc.errors import CheckFailed
from okdc.runs.artefacts import StudentInfo
from okdc.runs.run import RunDir


@pytest.fixture(scope="session")
def info(finished: RunDir) -> StudentInfo:
    return students.load(finished).info


def test_the_file_is_one_plain_graph_with_a_free_batch(blob: bytes, info: StudentInfo) -> None:
    model = structure.check_structure(blob, info)
    assert [node.op_type for node in model.graph.node][:4] == ["Cast", "Transpose", "Sub", "Mul"]
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"], "folded"
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits", "probabilities"]
    kind = model.graph.input[0].type.tensor_type
    assert kind.elem_type == onnx_.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in kind.shape.dim] == ["batch", 8, 8, 3]
    assert (model.opset_import[0].version, model.ir_version, model.producer_name) == (18, 8, "okdc")


def test_the_file_carries_labels_preprocessing_and_origin(blob: bytes, info: StudentInfo) -> None:
    props = {p.key: p.value for p in onnx_.load_model_from_string(blob).metadata_props}
    assert json.loads(props["okdc.labels"]) == [str(d) for d in range(10)]
    assert json.loads(props["okdc.mean"]) == list(info.preprocessing.mean)
    assert json.loads(props["okdc.input"])["layout"] == "NHWC"
    assert props["okdc.weights_sha256"] == info.weights_sha256
    assert props["Image.BitmapPixelFormat"] == "Rgb8"
    assert list(props) == sorted(props)


def test_no_path_and_no_source_line_is_in_the_file(blob: bytes) -> None:
    for trace in (b"site-packages", b"stack_trace", b".py", str(Path(__file__).parents[2]).encode()):
        assert trace not in blob


def test_the_bytes_repeat_in_another_process_folder_and_hash_seed(
    blob: bytes, finished: RunDir, tmp_path: Path
) -> None:
    code = (
        "import sys, hashlib; from pathlib import Path; from okdc.assembly import student;"
        "from okdc.deploy import onnx;"
        "from okdc.runs.run import RunDir; chosen = student.load(RunDir.open(Path(sys.argv[1])));"
        "file = onnx.to_onnx(chosen.network, chosen.info);"
        "print(hashlib.sha256(file).hexdigest())"
    )
    (tmp_path / "elsewhere").mkdir()
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(finished.path)],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split()[-1] == hashlib.sha256(blob).hexdigest()


def test_any_state_of_the_network_exports_alike_and_is_left_alone(
    blob: bytes, finished: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training mode, channels_last and gradients are what a network comes out of training with."""
    student = students.load(finished)
    network, info = student.network, student.info
    network.train().to(memory_format=torch.channels_last)
    weight = next(p for p in network.parameters() if p.ndim == 4)
    strides, before = weight.stride(), copy.deepcopy(network.state_dict())
    assert onnx.to_onnx(network, info) == blob
    assert network.training
    assert weight.requires_grad
    assert weight.stride() == strides
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert capfd.readouterr() == ("", ""), "the exporter's own talk is nobody's"


def test_the_graph_normalises_as_training_does(blob: bytes, finished: RunDir) -> None:
    student = students.load(finished)
    network, info = student.network, student.info
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    rule = info.preprocessing
    with torch.inference_mode():
        expected = network(Normalise(rule.mean, rule.std)(torch.from_numpy(pixels)))
    logits, probabilities = Session(blob)(pixels)
    np.testing.assert_allclose(logits, expected.numpy(), atol=2e-5)
    np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Structures that must not pass


def _edit(blob: bytes, change: str) -> bytes:
    model = onnx_.load_model_from_string(blob)
    graph = model.graph
    if change == "opset":
        model.opset_import[0].version = 20
    elif change == "fixed batch":
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 64
    elif change == "float input":
        graph.input[0].type.tensor_type.elem_type = onnx_.TensorProto.FLOAT
        graph.node[0].attribute[0].i = onnx_.TensorProto.FLOAT
    elif change == "operator":
        first = graph.node[0]
        graph.node.insert(
            0, helper.make_node("RandomNormalLike", ["image"], ["nowhere"], dtype=onnx_.TensorProto.FLOAT)
        )
        assert first.op_type == "Cast"
    elif change == "batch norm":
        conv = next(node for node in graph.node if node.op_type == "Conv")
        channels = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == conv.input[1]).shape[0]
        names = [f"bn{i}" for i in range(4)]
        for name in names:
            graph.initializer.append(numpy_helper.from_array(np.ones(channels, np.float32), name))
        after = conv.output[0]
        conv.output[0] = "before_bn"
        place = list(graph.node).index(conv) + 1
        graph.node.insert(place, helper.make_node("BatchNormalization", ["before_bn", *names], [after]))
    elif change == "path":
        model.doc_string = str(Path.cwd())
    elif change == "labels":
        entry = next(p for p in model.metadata_props if p.key == "okdc.labels")
        entry.value = json.dumps(list(reversed(json.loads(entry.value))))
    elif change == "garbage":
        return blob[: len(blob) // 2]
    edited: bytes = model.SerializeToString()
    return edited


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ("opset", "opset", "18"),
        ("fixed batch", "structure", "batch axis"),
        ("float input", "structure", "('image', 'float32', [8, 8, 3])"),
        ("operator", "structure", "RandomNormalLike"),
        ("batch norm", "structure", "BatchNormalization"),
        ("path", "structure", "trace of this machine"),
        ("labels", "structure", "okdc.labels"),
        ("garbage", "structure", "no valid ONNX"),
    ],
)
def test_a_wrong_structure_is_refused_by_name(
    blob: bytes, info: StudentInfo, change: str, kind: str, says: str
) -> None:
    with pytest.raises(CheckFailed) as caught:
        structure.check_structure(_edit(blob, change), info)
    assert caught.value.kind == kind
    assert says in caught.value.message


def test_a_short_path_that_stands_in_the_weights_is_no_trace(
    blob: bytes, info: StudentInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In megabytes of numbers any three letters occur."""
    model = onnx_.load_model_from_string(blob)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = b"/ab/" + weights.raw_data[4:]
    monkeypatch.setattr(Path, "cwd", lambda: Path("/ab"))
    structure.check_structure(model.SerializeToString(), info)


class _ConstantBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).reshape(2, 64)[:, :10]


def test_a_forward_with_a_constant_batch_size_is_an_error_not_a_file(info: StudentInfo) -> None:
    """Such a file would take pairs of images only."""
    network = backbones.build("resnet8", 10, torch.Size((3, 32, 32)))
    network.head = _ConstantBatch()
    with pytest.raises(CheckFailed, match="static shape of 2") as caught:
        structure.check_structure(onnx.to_onnx(network, info), info)
    assert caught.value.kind == "structure"


class _Head(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.function(x))
        return logits


def _decides(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3)) if x.mean() > 0 else x.amax((2, 3))


def _under_autocast(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu"):
        return x.mean((2, 3))


class _StrangeError(Exception):
    pass


def _raises(x: torch.Tensor) -> torch.Tensor:
    raise _StrangeError(f"no answer to {x.dim()} axes")


def _by_the_batch(x: torch.Tensor) -> torch.Tensor:
    weight = x.mean((2, 3)).reshape(-1, 1, 1, 1)
    return (
        torch.nn.functional.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, groups=weight.shape[0])
        .view_as(x)
        .mean((2, 3))
    )


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            lambda x: torch.nn.functional.fractional_max_pool2d(x, 2, output_size=1).flatten(1),
            "aten.fractional_max_pool2d",
        ),
        (_by_the_batch, "aten.conv2d"),
        (_decides, "decides by the values"),
        (_under_autocast, "torch.autocast"),
        (_raises, "_StrangeError: no answer to 4 axes"),
    ],
)
def test_what_cannot_be_exported_is_an_error_with_the_reason_whatever_torch_raises(
    function: Callable[[torch.Tensor], torch.Tensor], says: str, info: StudentInfo, capfd: pytest.CaptureFixture[str]
) -> None:
    network = backbones.build("resnet8", 10, torch.Size((3, 32, 32)))
    network.head = _Head(function)
    with pytest.raises(CheckFailed) as caught:
        onnx.to_onnx(network, info)
    assert caught.value.kind == "structure"
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")
    assert len(network.state_dict()) == len(copy.deepcopy(network).state_dict())


def test_a_scripted_part_is_an_error_with_the_reason(info: StudentInfo) -> None:
    network = backbones.build("resnet8", 10, torch.Size((3, 8, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network.head = torch.jit.script(network.head)
        with pytest.raises(CheckFailed, match=r"torch\.jit\.script") as caught:
            onnx.to_onnx(network, info)
    assert caught.value.kind == "structure"


class _Twice(torch.nn.Module):
    """One convolution with its BatchNorm at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.BatchNorm2d(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.block(self.block(x).relu())
        return maps.mean((2, 3))


def test_a_batch_norm_behind_weights_that_two_convolutions_share_stays(info: StudentInfo) -> None:
    network = backbones.build("resnet8", 10, torch.Size((3, 8, 8)))
    network.head = _Head(_Twice().eval())
    model = structure.check_structure(onnx.to_onnx(network, info), info)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nn.functional.adaptive_max_pool2d(x, 1).flatten(1).to(torch.float64).float(),
        lambda x: torch.nn.functional.normalize(x.mean((2, 3))),
        lambda x: torch.nn.functional.group_norm(x, 4).std((2, 3)),
        lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear").roll(1, 2).amax((2, 3)),
        lambda x: torch.nn.functional.gelu(x, approximate="tanh").flatten(2).topk(2, -1)[0].mean(-1),
    ],
)
def test_operators_of_every_kind_are_exported_and_answer_as_torch_does(
    function: Callable[[torch.Tensor], torch.Tensor], info: StudentInfo
) -> None:
    network = backbones.build("resnet8", 10, torch.Size((3, 8, 8)))
    network.head = _Head(function)
    blob = onnx.to_onnx(network.eval(), info)
    structure.check_structure(blob, info)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    rule = info.preprocessing
    with torch.inference_mode():
        expected = network(Normalise(rule.mean, rule.std)(torch.from_numpy(pixels)))
    for batch in (1, 3):
        np.testing.assert_allclose(Session(blob)(pixels, batch)[0], expected.numpy(), atol=1e-5)
