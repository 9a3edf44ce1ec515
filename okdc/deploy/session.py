"""An ONNX file in onnxruntime, as okdc runs it everywhere: on the CPU, with stated threads, from raw uint8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from okdc.deploy.onnx import INPUT, LOGITS, PROBABILITIES

Floats = npt.NDArray[np.float32]


class Session:
    """uint8 NHWC images -> (logits, probabilities)."""

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: npt.NDArray[np.uint8], batch: int | None = None) -> tuple[Floats, Floats]:
        """All images in batches of `batch`, the last one partial; one batch if it is left out."""
        batch = batch or len(images)
        parts = [
            self.session.run([LOGITS, PROBABILITIES], {INPUT: images[i : i + batch]})
            for i in range(0, len(images), batch)
        ]
        return np.concatenate([logits for logits, _ in parts]), np.concatenate([p for _, p in parts])
