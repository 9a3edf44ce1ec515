"""The two sides that a parity check compares, both from raw uint8 NHWC images: PyTorch and an ONNX file.

They share no preprocessing: one has training's transform, the other has only the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from okdc.cohort import Backbone
from okdc.data.batches import EVAL_BATCH, Normalise
from okdc.deploy.onnx import INPUT, LOGITS, PROBABILITIES
from okdc.errors import CheckFailed

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class Torch:
    """A student and training's own transform."""

    def __init__(self, network: Backbone, facts: Mapping[str, Any]) -> None:
        rule = facts["preprocessing"]
        self.network = network.eval()
        self.normalise = Normalise(rule["mean"], rule["std"])
        self.mean, self.std = (torch.tensor(rule[name], dtype=torch.float64) for name in ("mean", "std"))
        self.double = copy.deepcopy(network).double()

    @torch.inference_mode()
    def logits(self, images: Pixels) -> Floats:
        parts = torch.from_numpy(images).split(EVAL_BATCH)
        return torch.cat([self.network(self.normalise(part)) for part in parts]).numpy()

    @torch.inference_mode()
    def exact(self, images: Pixels) -> Doubles:
        """The same in float64 from the first pixel to the last logit."""
        found = []
        for part in torch.from_numpy(images).split(250):
            x = (part.double() / 255 - self.mean) / self.std
            found.append(self.double(x.permute(0, 3, 1, 2).contiguous()))
        return torch.cat(found).numpy()


class Session:
    """An ONNX file in onnxruntime, as okdc runs it everywhere: on the CPU, with stated threads."""

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else str(model)
        with _refusals():
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Pixels, batch: int | None = None) -> tuple[Floats, Floats]:
        """(logits, probabilities) of all images, in batches of `batch`, the last one partial; None: one batch."""
        batch = batch or len(images)
        with _refusals():
            parts = [
                self.session.run([LOGITS, PROBABILITIES], {INPUT: images[i : i + batch]})
                for i in range(0, len(images), batch)
            ]
        return np.concatenate([logits for logits, _ in parts]), np.concatenate([p for _, p in parts])


@contextmanager
def _refusals() -> Iterator[None]:
    """onnxruntime raises kinds of its own; that it cannot run a file is a failed check, not a bug."""
    try:
        yield
    except Exception as error:
        raise CheckFailed("parity", f"onnxruntime cannot run the file: {str(error).splitlines()[0]}") from error
