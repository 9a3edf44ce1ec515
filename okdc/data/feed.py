"""Which training batches a data set has: by where its images are, in memory or in files."""

from __future__ import annotations

from okdc.data.batches import Batches, Normalise, TrainBatches
from okdc.data.datasets import Dataset
from okdc.distributed import ALONE, Ranks
from okdc.recipe.schema import Data


def batches_of(
    dataset: Dataset,
    data: Data,
    batch_size: int,
    normalise: Normalise,
    seed: int,
    workers: int,
    ranks: Ranks = ALONE,
) -> Batches:
    """The training batches of a data set, as far as they are this process's. Images in files are decoded by `workers`
    processes.
    """
    if dataset.files is not None:
        from okdc.data.streaming import StreamBatches  # torchvision takes seconds to import

        return StreamBatches(dataset, batch_size, data.flip, normalise, seed, workers, ranks)
    return TrainBatches(dataset, batch_size, data.crop_padding, data.flip, normalise, seed, ranks)
