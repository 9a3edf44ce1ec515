"""One student to one ONNX file: uint8 images in, normalisation inside, any batch size, the same bytes anywhere.

torch.onnx.export(dynamo=True) at opset 18, its native one. `okdc.bundle.structure` catches the errors that it makes on
some models in silence.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from okdc.bundle.structure import INPUT, LOGITS, OPSET, PROBABILITIES, properties
from okdc.cohort import Backbone
from okdc.deploy.lowering import in_float32, plain
from okdc.errors import CheckFailed
from okdc.precision.tools import quiet
from okdc.runs.artefacts import Preprocessing, StudentInfo
from okdc.version import __version__

IR_VERSION = 8  # what runtimes of opset 18's age read


class Deploy(nn.Module):
    """What is exported: uint8 NHWC images -> (logits NK, probabilities NK), the network's normalisation in front.

    The normalisation is not folded into the first convolution: that one pads with zeros after normalising, and folded
    weights would pad with the pixel value 0.
    """

    def __init__(self, network: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.shift, self.scale = (nn.Buffer(tensor, persistent=False) for tensor in constants(mean, std))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        logits = self.network((x - self.shift) * self.scale)
        return logits, logits.softmax(1)


def constants(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(255·mean, 1 / (255·std)), each 1×3×1×1: computed in float64, kept in float32."""
    shift = 255 * torch.tensor(mean, dtype=torch.float64)
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    return shift.float().reshape(1, 3, 1, 1), scale.float().reshape(1, 3, 1, 1)


def to_onnx(network: Backbone, info: StudentInfo) -> bytes:
    """The ONNX file of a student as student.json describes it. `network` itself is left as it is.

    Raises CheckFailed ("structure") where the exporter cannot trace it; `check_structure` looks at what came out.
    """
    rule = info.preprocessing
    # A copy, plain in every respect that the exporter is known to trip over.
    network = in_float32(copy.deepcopy(network).cpu()).eval().requires_grad_(False)
    network = network.to(memory_format=torch.contiguous_format)
    network = plain(network, torch.zeros(2, 3, rule.size, rule.size))
    deploy = Deploy(network, rule.mean, rule.std).eval()
    example = torch.zeros(2, rule.size, rule.size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), quiet(), redirect_stdout(io.StringIO()):
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
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise CheckFailed(
                "structure",
                f"{info.architecture} cannot be exported: {reason}",
                hint="a forward that depends on the batch size, or on values, has no graph; --debug shows all of it",
            ) from error
    assert program is not None
    return _finish(program.model, info)


def untrained(architecture: str, size: int, classes: int) -> StudentInfo:
    """student.json of a network without training; the size and the times of its file do not depend on the values."""
    return StudentInfo(
        schema=1,
        architecture=architecture,
        classes=tuple(map(str, range(classes))),
        preprocessing=Preprocessing(size=size, resize="", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        student=0,
        epoch=0,
        val_top1_pct=None,
        method="none",
        dataset="none",
        recipe_sha256="",
        weights_sha256="",
    )


def _finish(model: Any, info: StudentInfo) -> bytes:
    """Strip what is local from an onnx_ir model, stamp the metadata in, and serialise it deterministically."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    proto = onnx_ir.to_proto(model)
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "okdc", __version__
    onnx.helper.set_model_props(proto, properties(info))
    blob: bytes = proto.SerializeToString(deterministic=True)
    return blob
