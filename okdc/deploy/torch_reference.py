"""The PyTorch side of a parity check, from raw uint8 NHWC images; the other side is `okdc.bundle.session`.

They share no preprocessing: this one has training's transform, the other has only the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from okdc.bundle.session import Floats, Images, Pixels, parts
from okdc.cohort import Backbone
from okdc.data.batches import Normalise, eval_batch
from okdc.data.datasets import Dataset
from okdc.runs.artefacts import Preprocessing

Doubles = npt.NDArray[np.float64]


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


def batches(images: Images) -> Iterator[Pixels]:
    """As many at a time as every evaluation takes: that is part of what a recorded accuracy means."""
    return parts(images, eval_batch(*images.shape[1:3]))


class Torch:
    """A student and training's own transform."""

    def __init__(self, network: Backbone, rule: Preprocessing) -> None:
        self.network = network.eval()
        self.normalise = Normalise(rule.mean, rule.std)
        self.mean, self.std = (torch.tensor(colour, dtype=torch.float64) for colour in (rule.mean, rule.std))
        self.double = copy.deepcopy(network).double()

    @torch.inference_mode()
    def logits(self, images: Images) -> Floats:
        logits = [self.network(self.normalise(torch.from_numpy(part))) for part in batches(images)]
        return torch.cat(logits).numpy()

    @torch.inference_mode()
    def exact(self, images: Images) -> Doubles:
        """The same in float64 from the first pixel to the last logit."""
        logits = []
        for part in parts(images, max(1, eval_batch(*images.shape[1:3]) // 2)):
            x = (torch.from_numpy(part).double() / 255 - self.mean) / self.std
            logits.append(self.double(x.permute(0, 3, 1, 2).contiguous()))
        return torch.cat(logits).numpy()
