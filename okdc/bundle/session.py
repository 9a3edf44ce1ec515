"""An ONNX file in onnxruntime, and the images that it takes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from okdc.bundle.structure import INPUT, LOGITS, PROBABILITIES
from okdc.data.workers import refuse_too_many
from okdc.errors import CheckFailed, first_line

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


class Images(Protocol):
    """An array of images, or an object that reads them from files when they are indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class Session:
    """An ONNX file in onnxruntime, as okdc runs it everywhere: on the CPU, with stated threads.

    Raises DeviceError for more threads than the machine can use.
    """

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        refuse_too_many("threads", threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # it raises what it would print as well
        source = model if isinstance(model, bytes) else str(model)
        with _refusals():
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Images, batch: int | None = None) -> tuple[Floats, Floats]:
        """(logits, probabilities) of all images, in batches of `batch`, the last one partial; None: one batch."""
        answers = []
        for part in parts(images, batch or len(images)):
            with _refusals():
                answers.append(self.session.run([LOGITS, PROBABILITIES], {INPUT: part}))
        return np.concatenate([logits for logits, _ in answers]), np.concatenate([p for _, p in answers])


def answers(session: Session, images: Pixels, classes: int) -> tuple[Floats, Floats]:
    """One batch through a stranger's file. Raises CheckFailed for answers of another shape."""
    logits, probabilities = session(images)
    wanted = (len(images), classes)
    if (logits.shape, probabilities.shape) != (wanted, wanted):
        raise CheckFailed("structure", f"the model gives {logits.shape} and {probabilities.shape}, expected {wanted}")
    return logits, probabilities


def parts(images: Images, count: int) -> Iterator[Pixels]:
    for start in range(0, len(images), count):
        yield images[start : start + count]


@contextmanager
def _refusals() -> Iterator[None]:
    """onnxruntime raises kinds of its own; that it cannot run a file is a failed check, not a bug."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise CheckFailed("parity", f"onnxruntime cannot run the file: {first_line(error)}") from error
