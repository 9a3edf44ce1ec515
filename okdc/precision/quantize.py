"""One ONNX file to its int8 twin: static quantisation by onnxruntime, in six settings to choose from.

QDQ format, unsigned activations and signed weights: the pair that onnxruntime's x86 kernels fuse. Weights have seven
bits unless asked otherwise: without VNNI those kernels add pairs of products in 16 bits, which saturate with eight, and
a file that is fine here loses a tenth of its predictions there (github.com/microsoft/onnxruntime/issues/5849, 6004).

onnxruntime would also quantise the normalisation in front, the softmax behind, and BatchNormalization where none could
be folded (it is computed in float anyway): these stay in float.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static, save_tensors_data

from okdc.bundle.artefacts import Setting, Trial
from okdc.bundle.checks import BATCH
from okdc.bundle.session import Images, Session
from okdc.errors import CheckFailed
from okdc.precision import ranges, regions
from okdc.precision.tools import quiet, refusals

# Logits stay float32: in 256 steps many a prediction is a tie, and the share of other predictions rises by a sixth.
OPTIONS = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["Gemm"]}
# Sigmoid, HardSwish and Mul stay in float between two quantised convolutions. So does Concat, which would put maps of
# many ranges on one scale: in a DenseNet-40-12 on colour photographs (per-channel weights) the mean error of the logits
# fell from 0.094 to 0.064 without it, and no time was lost.
# No kernel computes a ConvTranspose in eight bits, but its weights take a quarter: a file of four convolutions, one of
# them transposed, was 26 % smaller for it at the same error. LeakyRelu, Resize and InstanceNormalization, which
# onnxruntime could quantise too, stay in float: files of such networks grew by 0 to 8 %, and no error fell.
OPERATORS = [
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "Clip", "AveragePool", "MaxPool", "Flatten", "Reshape",
]  # fmt: skip

SETTINGS = tuple(
    Setting.model_validate({"weights": weights, "calibration": calibration})
    for calibration in ("minmax", "entropy", "percentile")
    for weights in ("per-channel", "per-tensor")
)


class Quantizer:
    """A float32 file and the images that calibrate it: both are read once, whatever the number of settings."""

    def __init__(self, blob: bytes, images: Images, full_range: bool = False) -> None:
        self.model = regions.parse(blob)
        self.excluded = regions.outside(self.model, "int8") + _grouped(self.model)
        self.blob = self.model.SerializeToString(deterministic=True)
        self.images, self.full_range = images, full_range
        self.ranges: ranges.Ranges | None = None

    def __call__(self, setting: Setting) -> bytes:
        """The file in `setting`, the same bytes at every call on one machine.

        Raises CheckFailed ("int8") where onnxruntime cannot make it.
        """
        refused = refusals("int8", f"onnxruntime cannot quantise the file ({setting})")
        with refused, quiet(), TemporaryDirectory() as folder:
            source, cache, target = (Path(folder, name) for name in ("source.onnx", "ranges.json", "int8.onnx"))
            source.write_bytes(self.blob)
            self.ranges = self.ranges or ranges.Ranges(self.blob, OPERATORS, self.images)
            save_tensors_data(self.ranges.of(setting.calibration), cache)
            quantize_static(
                source,
                target,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                per_channel=setting.weights == "per-channel",
                reduce_range=not self.full_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=self.excluded,
                extra_options=OPTIONS,
                calibration_cache_path=cache,
            )
            return _finish(target.read_bytes(), self.model)


def _grouped(model: onnx.ModelProto) -> list[str]:
    """Names of the ConvTranspose nodes of several groups: onnxruntime 1.31 gives their biases the scales of one group,
    and raises.
    """
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]


def quantize(blob: bytes, images: Images, setting: Setting, full_range: bool = False) -> bytes:
    """The int8 file of a float32 one, calibrated on `images` (N×H×W×3 uint8). Deterministic.

    Raises CheckFailed ("int8") where nothing in the graph can be quantised or onnxruntime fails at it.
    """
    return Quantizer(blob, images, full_range)(setting)


def search(
    blob: bytes,
    calibration: Images,
    images: Images,
    labels: npt.NDArray[np.int64],
    full_range: bool,
    tell: Callable[[str], None],
) -> tuple[Setting, bytes, tuple[Trial, ...]]:
    """The setting that keeps most of the float32 file's predictions on validation `images`, its file, and all trials.

    Best is the highest agreement, then the highest accuracy, then the smallest mean difference, then the first.

    Raises CheckFailed ("int8") where no setting gives a file that works.
    """
    expected, _ = Session(blob)(images, BATCH)
    quantizer = Quantizer(blob, calibration, full_range)
    trials: list[Trial] = []
    best: tuple[tuple[float, ...], Setting, bytes] | None = None
    for setting in SETTINGS:
        tell(f"int8: {setting}")
        try:
            file = quantizer(setting)
            logits, _ = Session(file)(images, BATCH)
            if not np.isfinite(logits).all():
                raise CheckFailed("int8", "gives logits that are not finite")
        except CheckFailed as error:
            trials.append(Trial(**dict(setting), error=error.message))
            continue
        agreement = 100 * float((logits.argmax(1) == expected.argmax(1)).mean())
        top1 = 100 * float((logits.argmax(1) == labels).mean())
        difference = float(np.abs(logits - expected).mean())
        trials.append(
            Trial(
                **dict(setting),
                top1_pct=round(top1, 4),
                agreement_pct=round(agreement, 4),
                mean_abs=difference,
                bytes=len(file),
            )
        )
        rank = (agreement, top1, -difference)
        if best is None or rank > best[0]:
            best = rank, setting, file
    if best is None:
        details = [f"{trial}: {trial.error}" for trial in trials]
        raise CheckFailed("int8", "none of the six settings gives a file that works", details=details)
    return best[1], best[2], tuple(trials)


def _finish(blob: bytes, source: onnx.ModelProto) -> bytes:
    """The source's metadata in place of the quantiser's notes; the bytes repeat."""
    model = onnx.load_model_from_string(blob)
    model.ir_version = source.ir_version
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    del model.metadata_props[:], model.graph.value_info[:]
    model.metadata_props.extend(source.metadata_props)
    outputs = {name for node in model.graph.node for name in node.output}
    model.graph.value_info.extend(value for value in source.graph.value_info if value.name in outputs)
    used = {node.domain for node in model.graph.node}
    opsets = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    finished: bytes = model.SerializeToString(deterministic=True)
    return finished
