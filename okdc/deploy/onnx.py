"""One student to one ONNX file: uint8 images in, normalisation inside, any batch size, the same bytes anywhere.

torch.onnx.export(dynamo=True) at opset 18, its native one. What it gets wrong on some models without a word is checked:
a specialised batch axis (github.com/pytorch/pytorch/issues/157621), another opset than was asked for, shape arithmetic
that channels_last leaks into the graph, local paths in metadata (github.com/pytorch/pytorch/issues/108179).
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from okdc import __version__
from okdc.cohort import Backbone
from okdc.deploy.bundle import input_facts
from okdc.deploy.plain import plain
from okdc.errors import CheckFailed

OPSET = 18
IR_VERSION = 8  # what runtimes of opset 18's age read
INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"

# What a feed-forward image classifier is made of. Shape, Range, Gather, Expand and the like mean that a size was
# computed in the graph: a channels_last tensor reached a reshape, or the batch size entered the arithmetic.
# fmt: off
OPERATORS = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Div", "Erf", "Flatten",
    "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LayerNormalization", "MatMul", "MaxPool", "Mul", "Pad",
    "ReduceMax", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Softmax", "Split", "Squeeze", "Sub", "Transpose",
    "Unsqueeze",
})
# fmt: on


class Deploy(nn.Module):
    """What is exported: uint8 NHWC images -> (logits NK, probabilities NK), the network's normalisation in front.

    The normalisation is not folded into the first convolution: that one pads with zeros after normalising, and folded
    weights would pad with the pixel value 0.
    """

    def __init__(self, network: Backbone, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.shift, self.scale = (nn.Buffer(tensor, persistent=False) for tensor in constants(mean, std))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        logits = self.network((x - self.shift) * self.scale)
        return logits, logits.softmax(1)


def constants(mean: list[float], std: list[float]) -> tuple[Tensor, Tensor]:
    """(255·mean, 1 / (255·std)), each 1×3×1×1: computed in float64, kept in float32."""
    shift = 255 * torch.tensor(mean, dtype=torch.float64)
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    return shift.float().reshape(1, 3, 1, 1), scale.float().reshape(1, 3, 1, 1)


def to_onnx(network: Backbone, facts: Mapping[str, Any]) -> bytes:
    """The ONNX file of a student as student.json describes it. `network` itself is left as it is.

    Raises CheckFailed ("structure") where the exporter cannot trace it; `check_structure` looks at what came out.
    """
    rule = facts["preprocessing"]
    # A copy, plain in every respect that the exporter is known to trip over.
    network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    network = network.to(memory_format=torch.contiguous_format)
    network = plain(network, torch.zeros(2, 3, rule["size"], rule["size"]))
    deploy = Deploy(network, rule["mean"], rule["std"]).eval()
    example = torch.zeros(2, rule["size"], rule["size"], 3, dtype=torch.uint8)
    with warnings.catch_warnings(), _quiet(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        try:
            program = torch.onnx.export(
                deploy,
                (example,),
                dynamo=True,
                verbose=False,
                optimize=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[INPUT],
                output_names=[LOGITS, PROBABILITIES],
                dynamic_shapes=({0: "batch"},),
            )
        except torch.onnx.OnnxExporterError as error:
            why = str(error.__cause__ or error).strip().splitlines()
            raise CheckFailed(
                "structure",
                f"{facts['architecture']} cannot be exported: {' '.join(line.strip() for line in why)[:300]}",
                hint="a forward that depends on the batch size, or on values, has no graph; --debug shows all of it",
            ) from error
    assert program is not None
    return _finish(program.model, facts)


def _finish(model: Any, facts: Mapping[str, Any]) -> bytes:
    """Strip what is local from an onnx_ir model, stamp our facts in, and serialise it deterministically."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    proto = onnx_ir.to_proto(model)
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "okdc", __version__
    onnx.helper.set_model_props(proto, properties(facts))
    blob: bytes = proto.SerializeToString(deterministic=True)
    return blob


def properties(facts: Mapping[str, Any]) -> dict[str, str]:
    """metadata_props, sorted: what a client needs that opens the file alone. No time and no path: the bytes repeat."""
    rule = facts["preprocessing"]
    props = {
        "okdc.schema": "1",
        "okdc.version": __version__,
        "okdc.architecture": facts["architecture"],
        "okdc.method": facts["method"],
        "okdc.dataset": facts["dataset"],
        "okdc.labels": json.dumps(facts["classes"], ensure_ascii=False),
        "okdc.input": json.dumps(input_facts(rule)),
        "okdc.mean": json.dumps(rule["mean"]),
        "okdc.std": json.dumps(rule["std"]),
        "okdc.recipe_sha256": facts["recipe_sha256"],
        "okdc.weights_sha256": facts["weights_sha256"],
        # ONNX's own keys for images (onnx, docs/MetadataProps.md)
        "Image.BitmapPixelFormat": "Rgb8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255",
    }
    return dict(sorted(props.items()))


def check_structure(blob: bytes, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """The file is whole, self-contained and says what it should. Raises CheckFailed; returns the parsed model."""
    try:
        model = onnx.load_model_from_string(blob)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf and the checker raise kinds of their own
        raise CheckFailed("structure", f"the file is no valid ONNX model: {str(error).splitlines()[0]}") from None
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise CheckFailed("opset", f"opset {OPSET} was asked for, the file has {opsets}")
    _check_interface(model.graph, facts)
    for value in (*model.graph.input, *model.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        if batch.dim_param != "batch":
            raise CheckFailed(
                "structure",
                f"the batch axis of {value.name} is fixed to {batch.dim_value}; expected any size",
                hint="the model's forward uses a constant batch size: a reshape or view with a number in it",
            )
    strange = sorted({node.op_type for node in model.graph.node} - OPERATORS)
    if strange:
        raise CheckFailed(
            "structure",
            f"unexpected operators in the graph: {', '.join(strange)}",
            hint="sizes are computed at run time: a channels_last tensor or the batch size reached a reshape",
        )
    if _unfolded(model.graph):
        raise CheckFailed(
            "structure", "a BatchNormalization follows a Conv: it was not folded", hint="export in eval mode"
        )
    if model.functions:
        raise CheckFailed(
            "structure", f"the file holds {len(model.functions)} local functions; expected plain operators"
        )
    text = _without_weights(model)  # in megabytes of weights any three letters stand somewhere
    for trace in ("site-packages", "stack_trace", str(Path.cwd()), str(Path.home())):
        if len(trace) > 1 and trace.encode() in text:
            raise CheckFailed("structure", f"a trace of this machine is in the file: {trace}")
    expected, found = properties(facts), {entry.key: entry.value for entry in model.metadata_props}
    wrong = [key for key in expected if found.get(key) != expected[key]]
    if wrong:
        raise CheckFailed(
            "structure",
            f"metadata {wrong[0]}: expected {expected[wrong[0]]}, found {found.get(wrong[0], 'nothing')}",
            hint="labels in another order name every prediction wrongly" if wrong[0] == "okdc.labels" else "",
        )
    return model


def _check_interface(graph: onnx.GraphProto, facts: Mapping[str, Any]) -> None:
    """Names, types and sizes of what goes in and comes out; the batch axis is looked at by itself."""
    size, classes = facts["preprocessing"]["size"], len(facts["classes"])
    kinds = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT: "float32"}
    found = [
        (v.name, kinds.get(v.type.tensor_type.elem_type, "?"), [d.dim_value for d in v.type.tensor_type.shape.dim][1:])
        for v in (*graph.input, *graph.output)
    ]
    expected = [
        (INPUT, "uint8", [size, size, 3]),
        (LOGITS, "float32", [classes]),
        (PROBABILITIES, "float32", [classes]),
    ]
    if found != expected:
        raise CheckFailed("structure", f"the graph takes and gives {found}; expected {expected}")


def _unfolded(graph: onnx.GraphProto) -> bool:
    """Whether a BatchNormalization follows a Conv that it could be folded into.

    Where something else reads the Conv too (a shortcut or a concatenation behind the stem of a pre-activation network),
    folding would change what that gets: there it has to stay.
    """
    convolved = {node.output[0] for node in graph.node if node.op_type == "Conv"}
    readers = Counter(name for node in graph.node for name in node.input)
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


class _quiet:  # noqa: N801  (used as a function)
    """The exporter logs through several loggers; errors still come as exceptions."""

    def __enter__(self) -> None:
        self.level = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.level)
