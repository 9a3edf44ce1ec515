"""The structure of a bundle's ONNX file: checked after the export and before every use. No torch.

The exporter gets this wrong on some models without an error: a specialised batch axis
(github.com/pytorch/pytorch/issues/157621), another opset than was asked for, shape arithmetic that channels_last leaks
into the graph, local paths in metadata (github.com/pytorch/pytorch/issues/108179).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from okdc.bundle import operators
from okdc.bundle.artefacts import Manifest
from okdc.bundle.layout import MOST_BYTES, input_of
from okdc.errors import CheckFailed, first_line, quoted
from okdc.runs.artefacts import StudentInfo
from okdc.version import __version__

OPSET = 18
INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"


def properties(info: StudentInfo) -> dict[str, str]:
    """metadata_props, sorted, for a client that opens the file alone. No time and no path: the bytes repeat."""
    rule = info.preprocessing
    props = {
        "okdc.schema": "1",
        "okdc.version": __version__,
        "okdc.architecture": info.architecture,
        "okdc.method": info.method,
        "okdc.dataset": info.dataset,
        "okdc.labels": json.dumps(info.classes, ensure_ascii=False),
        "okdc.input": json.dumps(input_of(rule)),
        "okdc.mean": json.dumps(rule.mean),
        "okdc.std": json.dumps(rule.std),
        "okdc.recipe_sha256": info.recipe_sha256,
        "okdc.weights_sha256": info.weights_sha256,
        # ONNX's own keys for images (onnx, docs/MetadataProps.md)
        "Image.BitmapPixelFormat": "Rgb8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255",
    }
    return dict(sorted(props.items()))


def check_structure(blob: bytes, info: StudentInfo) -> onnx.ModelProto:
    """The file is whole, self-contained and says what it should. Raises CheckFailed; returns the parsed model."""
    try:
        model = onnx.load_model_from_string(blob)
    except Exception as error:  # protobuf raises kinds of its own
        raise CheckFailed("structure", f"the file is no valid ONNX model: {first_line(error)}") from None
    _check_opset(model, OPSET)
    _check_interface(model.graph, info.preprocessing.size, len(info.classes))
    operators.check(model)
    _check_valid(model)
    if _unfolded(model.graph):
        raise CheckFailed(
            "structure", "a BatchNormalization follows a Conv: it was not folded", hint="export in eval mode"
        )
    text = _without_weights(model)  # in megabytes of weights any three letters stand somewhere
    for trace in ("site-packages", "stack_trace", str(Path.cwd()), str(Path.home())):
        if len(trace) > 1 and trace.encode() in text:
            raise CheckFailed("structure", f"a trace of this machine is in the file: {trace}")
    expected, metadata = properties(info), {entry.key: entry.value for entry in model.metadata_props}
    wrong = [key for key in expected if metadata.get(key) != expected[key]]
    if wrong:
        raise CheckFailed(
            "structure",
            f"metadata {wrong[0]}: expected {expected[wrong[0]]}, found {metadata.get(wrong[0], 'nothing')}",
            hint="labels in another order name every prediction wrongly" if wrong[0] == "okdc.labels" else "",
        )
    return model


def check_against(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Raises CheckFailed where a stranger's model, which `okdc.bundle.foreign` has passed, differs from its manifest.

    Labels, input, mean and deviation stand in the file and in the manifest, and clients believe either.
    """
    _check_opset(model, manifest.opset)
    _check_interface(model.graph, manifest.input.height, len(manifest.labels))
    operators.check(model)
    _check_valid(model)
    spec, colours = manifest.input.to_json(), manifest.normalisation
    del spec["name"]
    expected = {"labels": list(manifest.labels), "input": spec, "mean": list(colours.mean), "std": list(colours.std)}
    plain = ("architecture", "method", "dataset", "recipe_sha256", "weights_sha256")
    expected |= {key: getattr(manifest, key) for key in plain}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    for key, value in expected.items():
        text = metadata.get(f"okdc.{key}")
        if (text if key in plain else _parsed(text)) != value:
            raise CheckFailed(
                "structure",
                f"metadata okdc.{key}: the manifest says {quoted(value)}, the file {quoted(text)}",
                hint="labels in another order name every prediction wrongly" if key == "labels" else "",
            )


def _check_valid(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker raises kinds of its own
        raise CheckFailed("structure", f"the file is no valid ONNX model: {first_line(error)}") from None


def _parsed(text: str | None) -> Any:
    """The JSON in a property; None where it is none, or larger than any manifest."""
    try:
        return json.loads(text) if text and len(text) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        return None


def _check_opset(model: onnx.ModelProto, opset: int) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": opset}:
        raise CheckFailed("opset", f"opset {opset} was asked for, the file has {quoted(opsets)}")


def _check_interface(graph: onnx.GraphProto, size: int, classes: int) -> None:
    """Names, types and sizes of inputs and outputs; the batch axis is checked by itself."""
    kinds = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT: "float32"}
    actual = [
        (v.name, kinds.get(v.type.tensor_type.elem_type, "?"), [d.dim_value for d in v.type.tensor_type.shape.dim][1:])
        for v in (*graph.input, *graph.output)
    ]
    expected = [
        (INPUT, "uint8", [size, size, 3]),
        (LOGITS, "float32", [classes]),
        (PROBABILITIES, "float32", [classes]),
    ]
    if actual != expected:
        raise CheckFailed("structure", f"the graph takes and gives {quoted(actual)}; expected {expected}")
    for value in (*graph.input, *graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        if batch.dim_param != "batch":
            raise CheckFailed(
                "structure",
                f"the batch axis of {value.name} is fixed to {batch.dim_value}; expected any size",
                hint="the model's forward uses a constant batch size: a reshape or view with a number in it",
            )


def _unfolded(graph: onnx.GraphProto) -> bool:
    """Whether a BatchNormalization follows a Conv that it could be folded into.

    Where something else reads the Conv too (a shortcut or a concatenation behind the stem of a pre-activation network),
    folding would change what that gets: there it has to stay. So it has behind a Conv that shares its weights with
    another, or computes them.
    """
    readers = Counter(name for node in graph.node for name in node.input)
    own = {weight.name for weight in graph.initializer if readers[weight.name] == 1}
    convolved = {node.output[0] for node in graph.node if node.op_type == "Conv" and node.input[1] in own}
    return any(
        node.op_type == "BatchNormalization" and node.input[0] in convolved and readers[node.input[0]] == 1
        for node in graph.node
    )


def _without_weights(model: onnx.ModelProto) -> bytes:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    content: bytes = bare.SerializeToString()
    return content
