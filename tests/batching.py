"""Training batches compared tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from okdc.data.augmentation import Examples


def same(a: Sequence[Examples], b: Sequence[Examples]) -> bool:
    """Whether the batches are equal to the bit, further views included."""
    return len(a) == len(b) and all(
        u is v is None or (u is not None and v is not None and torch.equal(u, v))
        for x, y in zip(a, b, strict=True)
        for u, v in zip(_tensors(x), _tensors(y), strict=True)
    )


def _tensors(examples: Examples) -> list[Tensor | None]:
    return [examples.images, examples.labels, examples.other_labels, examples.mix, *examples.views]
