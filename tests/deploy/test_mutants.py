"""Is the gate shut? Defects that real exports have had are planted in the file, and each must stop `okdc export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx as onnx_
import pytest
from making import seal
from onnx import ModelProto, NodeProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from okdc.__main__ import main
from okdc.deploy import onnx
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

Array = npt.NDArray[Any]


def _node(model: ModelProto, kind: str) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if node.op_type == kind)
    return found


def _array(model: ModelProto, name: str) -> Array:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def _set(model: ModelProto, name: str, value: Array) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def _constant(model: ModelProto, node: NodeProto) -> str:
    names = {t.name for t in model.graph.initializer}
    found: str = next(name for name in node.input if name in names)
    return found


def _insert_after(model: ModelProto, source: str, make: Callable[[str, str], list[NodeProto]]) -> None:
    """Put nodes between a tensor and all who read it."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == source:
                node.input[i] = f"{source}_changed"
    place = 1 + max((i for i, node in enumerate(model.graph.node) if source in node.output), default=-1)
    for offset, new in enumerate(make(source, f"{source}_changed")):
        model.graph.node.insert(place + offset, new)


def bgr(model: ModelProto) -> None:
    """The first convolution's input channels reversed, as weights trained on OpenCV images would have them."""
    node = _node(model, "Conv")
    weight = _array(model, node.input[1])
    _set(model, node.input[1], weight[:, ::-1])
    for kind in ("Sub", "Mul"):  # grey constants here, so that the channel order alone is wrong
        name = _constant(model, _node(model, kind))
        _set(model, name, _array(model, name)[:, ::-1])


def imagenet_std(model: ModelProto) -> None:
    name = _constant(model, _node(model, "Mul"))
    _set(model, name, (1 / (255 * np.array([0.229, 0.224, 0.225]))).astype(np.float32).reshape(1, 3, 1, 1))


def half_a_pixel(model: ModelProto) -> None:
    name = _constant(model, _node(model, "Sub"))
    _set(model, name, _array(model, name) + np.float32(0.5))


def half_precision(model: ModelProto) -> None:
    for tensor in list(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.size > 10:
            _set(model, tensor.name, value.astype(np.float16).astype(np.float32))


def last_bias(model: ModelProto) -> None:
    name = _node(model, "Gemm").input[2]
    bias = _array(model, name)
    bias[3] += 2e-3
    _set(model, name, bias)


def clipped(model: ModelProto) -> None:
    """An activation's range taken from noise: real images go beyond it, now and then."""
    relu = [node for node in model.graph.node if node.op_type == "Relu"][-1].output[0]
    probe = helper.make_tensor_value_info(relu, onnx_.TensorProto.FLOAT, None)
    model.graph.output.append(probe)
    import onnxruntime
    from sklearn.datasets import load_digits

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    grey = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    highest = session.run([relu], {"image": images})[0].max(axis=(1, 2, 3))
    model.graph.output.remove(probe)
    limit = np.float32(np.quantile(highest, 0.97))
    for name, value in (("low", np.float32(0)), ("high", limit)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    _insert_after(model, relu, lambda source, to: [helper.make_node("Clip", [source, "low", "high"], [to])])


def batch_coupling(model: ModelProto) -> None:
    """Every image is told a little of the mean over its batch, as a BatchNorm left in training mode does."""
    last = _node(model, "Gemm").input[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    _insert_after(
        model,
        last,
        lambda source, to: [
            helper.make_node("ReduceMean", [source, "zero"], ["over_batch"], keepdims=1),
            helper.make_node("Sub", [source, "over_batch"], [to]),
        ],
    )


def fixed_batch(model: ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 64


def swapped_logits(model: ModelProto) -> None:
    gemm = _node(model, "Gemm")
    order = [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]
    for name in gemm.input[1:]:
        value = _array(model, name)
        axis = value.shape.index(10)
        _set(model, name, np.take(value, order, axis))


def swapped_labels(model: ModelProto) -> None:
    entry = next(p for p in model.metadata_props if p.key == "okdc.labels")
    labels = json.loads(entry.value)
    labels[3], labels[5] = labels[5], labels[3]
    entry.value = json.dumps(labels)


def not_a_number(model: ModelProto) -> None:
    name = _node(model, "Gemm").input[2]
    bias = _array(model, name)
    bias[0] = np.nan
    _set(model, name, bias)


MUTANTS: list[tuple[Callable[[ModelProto], None], str, str]] = [
    (imagenet_std, "parity", "preprocessing: 1 / (255 · std)"),
    (half_a_pixel, "parity", "preprocessing: 255 · mean"),
    (half_precision, "parity", "rounded to float16"),
    (last_bias, "parity", "added to the logits of classes 3"),
    (clipped, "parity", "clipped"),
    (batch_coupling, "parity", "other images of its batch"),
    (fixed_batch, "structure", "batch axis"),
    (swapped_logits, "parity", "classes 3, 5 are exchanged"),
    (swapped_labels, "structure", "okdc.labels"),
    (not_a_number, "parity", "not finite"),
]


@pytest.mark.parametrize(("mutate", "kind", "cause"), MUTANTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_defect_stops_the_export_and_is_named(
    mutate: Callable[[ModelProto], None],
    kind: str,
    cause: str,
    run: RunDir,
    blob: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = onnx_.load_model_from_string(blob)
    mutate(model)
    _export_fails(run, model.SerializeToString(), monkeypatch)
    said = capsys.readouterr().err
    assert f"error[{kind}]" in said
    assert cause in said, said


def _export_fails(run: RunDir, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: blob)
    assert main(["export", str(run.path), "--onnx"]) == 1
    assert not (run.path / "bundle").exists(), "nothing that looks good is left"
    rejected = run.path / "bundle.rejected"
    assert (rejected / "model.onnx").is_file()
    assert not (rejected / "manifest.json").exists(), "without a manifest no client takes it for a bundle"


def test_colour_channels_in_the_wrong_order_stop_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On images with colour: grey digits look the same either way, and parity rightly passes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 12)):
        for c, colour in enumerate(((220, 60, 20), (20, 90, 220))):
            folder = tmp_path / "images" / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-20, 21, (8, 8, 3)) + np.array(colour)
                Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    path = tmp_path / "colours"
    words = ["folder_resnet20", "data.root=images", "data.image_size=8", "augment.padding=1", "optim.epochs=2"]
    words += ['cohort.students=["resnet8", "resnet8"]', "optim.batch_size=16", "-o", str(path)]
    assert main(["distill", *words]) == 0
    run = RunDir.open(path)
    real = onnx.to_onnx

    def swapped(*arguments: object) -> bytes:
        model = onnx_.load_model_from_string(real(*arguments))  # type: ignore[arg-type]
        bgr(model)
        blob: bytes = model.SerializeToString()
        return blob

    monkeypatch.setattr(onnx, "to_onnx", swapped)
    assert main(["export", str(run.path), "--onnx"]) == 1
    assert "BGR" in capsys.readouterr().err


def test_another_checkpoint_in_the_students_place_stops_the_export(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the same network, trained on the same images: its peer."""
    peer, _ = run.files_of_other(1 - read_json(run.student)["student"])
    run.weights.write_bytes(peer.read_bytes())
    assert main(["export", str(run.path), "--onnx"]) == 1
    assert "is not the file that the run recorded" in capsys.readouterr().err
    assert not (run.path / "bundle").exists()


def test_weights_that_do_not_reach_the_recorded_accuracy_stop_the_export(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where every hash was made to fit: the number of the run is measured again."""
    weights = load_file(run.weights)
    bias = next(name for name, tensor in weights.items() if tensor.shape == (10,))
    weights[bias][3] += 1.0
    save_file(weights, run.weights)
    seal(run)
    assert main(["export", str(run.path), "--onnx"]) == 1
    said = capsys.readouterr().err
    assert "recorded" in said
    assert "not the weights that the run recorded" in said


def test_the_file_without_a_defect_passes(run: RunDir, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same road with nothing planted: what stops the mutants is the defect."""
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: onnx_.load_model_from_string(blob).SerializeToString())
    assert main(["export", str(run.path), "--onnx"]) == 0
    assert (run.path / "bundle" / "manifest.json").is_file()
