"""The two sides that a parity check compares, both from raw uint8 NHWC images: PyTorch and an ONNX file.

They share no preprocessing: one has training's transform, the other has only the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from okdc.cohort import Backbone
from okdc.data.batches import Normalise, eval_batch
from okdc.data.datasets import Dataset
from okdc.deploy.onnx import INPUT, LOGITS, PROBABILITIES
from okdc.errors import CheckFailed

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class Images(Protocol):
    """What a check asks of its images: an array of them is one, and so is what reads them from files as it is asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class Split:
    """The images of one split as an N×H×W×C array that is never whole in memory."""

    def __init__(self, dataset: Dataset, rows: torch.Tensor) -> None:
        self.dataset, self.rows = dataset, rows
        channels, height, width = dataset.size
        self.shape = (len(rows), height, width, channels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Pixels:
        """Raises DataError for a file that cannot be read."""
        return self.dataset.pixels(self.rows[rows]).numpy()


class Torch:
    """A student and training's own transform."""

    def __init__(self, network: Backbone, facts: Mapping[str, Any]) -> None:
        rule = facts["preprocessing"]
        self.network = network.eval()
        self.normalise = Normalise(rule["mean"], rule["std"])
        self.mean, self.std = (torch.tensor(rule[name], dtype=torch.float64) for name in ("mean", "std"))
        self.double = copy.deepcopy(network).double()

    @torch.inference_mode()
    def logits(self, images: Images) -> Floats:
        parts = _parts(images, eval_batch(*images.shape[1:3]))
        return torch.cat([self.network(self.normalise(torch.from_numpy(part))) for part in parts]).numpy()

    @torch.inference_mode()
    def exact(self, images: Images) -> Doubles:
        """The same in float64 from the first pixel to the last logit."""
        found = []
        for part in _parts(images, max(1, eval_batch(*images.shape[1:3]) // 2)):
            x = (torch.from_numpy(part).double() / 255 - self.mean) / self.std
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

    def __call__(self, images: Images, batch: int | None = None) -> tuple[Floats, Floats]:
        """(logits, probabilities) of all images, in batches of `batch`, the last one partial; None: one batch."""
        parts = []
        for part in _parts(images, batch or len(images)):
            with _refusals():
                parts.append(self.session.run([LOGITS, PROBABILITIES], {INPUT: part}))
        return np.concatenate([logits for logits, _ in parts]), np.concatenate([p for _, p in parts])


def _parts(images: Images, count: int) -> Iterator[Pixels]:
    for start in range(0, len(images), count):
        yield images[start : start + count]


@contextmanager
def _refusals() -> Iterator[None]:
    """onnxruntime raises kinds of its own; that it cannot run a file is a failed check, not a bug."""
    try:
        yield
    except Exception as error:
        raise CheckFailed("parity", f"onnxruntime cannot run the file: {str(error).splitlines()[0]}") from error
