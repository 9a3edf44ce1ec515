"""One student to one ONNX file: uint8 images in, normalisation inside, any batch size, the same bytes anywhere.

torch.onnx.export(dynamo=True) at opset 18, its native one. `okdc.bundle.structure` catches the errors that it makes on
some models in silence.
"""

from __future__ import annotations

import copy
import io
import keyword
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import graph
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from okdc.bundle.structure import INPUT, LOGITS, OPSET, PROBABILITIES, properties
from okdc.cohort import Backbone
from okdc.deploy.lowering import Rewritten, in_float32, plain
from okdc.errors import CheckFailed, OkdcError
from okdc.precision.tools import quiet
from okdc.runs.artefacts import Preprocessing, StudentInfo
from okdc.version import __version__

# How torch writes an operator in an exception of its exporter: OpOverload(op='aten.x'), or target=torch.ops.aten.x.
OPERATOR = re.compile(r"(?:op='|target=torch\.ops\.)(?P<name>\w+\.\w+)")
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

    Raises CheckFailed ("structure") where torch cannot copy, run or trace it; `check_structure` looks at what came out.
    """
    rule = info.preprocessing
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise CheckFailed(
            "structure",
            f"{info.architecture} cannot be exported: a part of it is compiled by torch.jit.script",
            hint="build the network without torch.jit.script: the exporter reads its Python",
        )
    example = torch.zeros(2, rule.size, rule.size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), quiet(), _unprinted(), _any_name():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        try:
            # A copy, plain in every respect that the exporter is known to trip over.
            network = in_float32(copy.deepcopy(network).cpu()).eval().requires_grad_(False)
            network = network.to(memory_format=torch.contiguous_format)
            deploy = Deploy(plain(network), rule.mean, rule.std).eval()
            with (rewritten := Rewritten()), torch.no_grad():
                deploy(example)
            with rewritten:
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
            assert program is not None
            return _finish(program.model, info)
        except (OkdcError, MemoryError):
            raise
        except Exception as error:  # the exporter raises kinds of its own, and those of every part of torch
            reason, hint = _reason(error)
            raise CheckFailed("structure", f"{info.architecture} cannot be exported: {reason}", hint=hint) from error


@contextmanager
def _any_name() -> Iterator[None]:
    """torch.fx writes graphs as Python, in which a module called `class` or `in` would be no syntax."""
    written = graph._format_target

    def format_target(base: str, target: str) -> str:
        if not any(map(keyword.iskeyword, target.split("."))):
            return written(base, target)
        for name in target.split("."):
            base = f"getattr({base}, {name!r})"
        return base

    graph._format_target = format_target
    try:
        yield
    finally:
        graph._format_target = written


@contextmanager
def _unprinted() -> Iterator[None]:
    """torch prints its steps, and the graph of a network that it cannot trace."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _reason(error: Exception) -> tuple[str, str]:
    """What the exporter fails at, in a line, and what to do about it. Its own first line names the step that failed."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    whole = "; --debug shows torch's whole message"
    if isinstance(causes[-1], GuardOnDataDependentSymNode):
        return "its forward decides by the values of an image", (
            f"an if, int() or item() on a tensor has no graph: torch.where has{whole}"
        )
    for cause in reversed(causes):
        if operator := OPERATOR.search(str(cause)):
            return f"ONNX has no form of {operator['name']}, at least not as the forward calls it", (
                f"write it with simpler operators, and with numbers that do not depend on the batch{whole}"
            )
    text = " ".join(str(causes[-1]).split())[:300]
    return f"{type(causes[-1]).__name__}: {text}", (
        f"a forward that depends on the batch size, or on values, has no graph{whole}"
    )


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
