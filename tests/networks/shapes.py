"""How a forward speaks of sizes: of its images, of its maps, of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import CHANNELS, Trunk, block


class _Flattened(nn.Module):
    """Convolutions with one ReLU and one pooling module for all; the last map, 64×4×4 of 32×32, is flattened whole."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, CHANNELS, 3, padding=1)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.fc = nn.Linear(CHANNELS * 4 * 4, classes)

    def flat(self, images: Tensor, map_: Tensor) -> Tensor:  # noqa: ARG002
        return map_.view(map_.size(0), -1)

    def forward(self, x: Tensor) -> Tensor:
        map_ = x
        for convolution in (self.conv1, self.conv2, self.conv3):
            map_ = self.pool(self.relu(convolution(map_)))
        logits: Tensor = self.fc(self.flat(x, map_))
        return logits


def view_of_map(classes: int) -> nn.Module:
    """`x.view(x.size(0), -1)`, and one ReLU module for the whole network."""
    return _Flattened(classes)


class _ViewOfImages(_Flattened):
    def flat(self, images: Tensor, map_: Tensor) -> Tensor:
        return map_.view(images.size(0), -1)


def view_of_images(classes: int) -> nn.Module:
    """The batch size read from the images at the very end."""
    return _ViewOfImages(classes)


class _ViewMinusOne(_Flattened):
    def flat(self, images: Tensor, map_: Tensor) -> Tensor:  # noqa: ARG002
        return map_.view(-1, CHANNELS * 4 * 4)


def view_minus_one(classes: int) -> nn.Module:
    return _ViewMinusOne(classes)


class _BatchFirst(_Flattened):
    """The batch size is read before the first convolution and used behind the last."""

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = self.pool(self.relu(convolution(x)))
        logits: Tensor = self.fc(x.reshape(batch, -1))
        return logits


def reshape_by_first_batch(classes: int) -> nn.Module:
    return _BatchFirst(classes)


class _IntOfMap(_Flattened):
    def flat(self, images: Tensor, map_: Tensor) -> Tensor:  # noqa: ARG002
        return map_.reshape(int(map_.shape[0]), -1)


def int_of_batch(classes: int) -> nn.Module:
    """`int(x.shape[0])`."""
    return _IntOfMap(classes)


class _BatchOfMiddle(Trunk):
    """The batch size of a map in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        middle = self.middle(self.stem(x))
        batch, channels = middle.shape[0], middle.shape[1]
        map_ = self.last(middle.reshape(batch, channels, 16, -1))
        logits: Tensor = self.fc(map_.reshape(batch, CHANNELS, -1).mean(2))
        return logits


def batch_of_middle(classes: int) -> nn.Module:
    return _BatchOfMiddle(classes)


class _Halves(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 16:
            x = F.avg_pool2d(x, kernel_size=2)
        return super().forward(x)


def branch_on_size(classes: int) -> nn.Module:
    return _Halves(classes)


class _ByBatch(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = 1.0 * x
        return super().forward(x)


def branch_on_batch(classes: int) -> nn.Module:
    """Both branches give the same."""
    return _ByBatch(classes)


class _ByValue(Trunk):
    def features(self, x: Tensor) -> Tensor:
        map_ = super().features(x)
        return 2 * map_ if map_.mean() > 0 else map_


def branch_on_values(classes: int) -> nn.Module:
    """What is computed depends on the mean of all images of the batch."""
    return _ByValue(classes)


class _Asserts(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        assert channels == 3, channels
        assert height == width, tuple(x.shape)
        return super().forward(x)


def asserted_size(classes: int) -> nn.Module:
    return _Asserts(classes)


class _SqueezeAll(Trunk):
    def pool(self, x: Tensor) -> Tensor:
        return torch.squeeze(F.adaptive_avg_pool2d(x, 1))


def squeeze_all(classes: int) -> nn.Module:
    """`squeeze()` takes the batch of one image away too."""
    return _SqueezeAll(classes)


class _SqueezeTwice(Trunk):
    def pool(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)


def squeeze_by_axis(classes: int) -> nn.Module:
    return _SqueezeTwice(classes)


class _GreyMade(Trunk):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, inputs=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(dim=1, keepdim=True))


def grey_made(classes: int) -> nn.Module:
    """One channel, which the network computes itself."""
    return _GreyMade(classes)


class _Mirrored(Trunk):
    """Each image beside its mirror image in one batch, and the mean of both answers."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(torch.cat([x, x.flip(3)], 0))
        return logits.reshape(2, x.shape[0], -1).mean(0)


def doubled_batch(classes: int) -> nn.Module:
    return _Mirrored(classes)


class _Lists(nn.Module):
    """Modules in a list and in a dict."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(3, 16), block(16, 32, 2), block(32, CHANNELS, 2)])
        self.heads = nn.ModuleDict({"main": nn.Linear(CHANNELS, classes)})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks:
            x = part(x)
        logits: Tensor = self.heads["main"](x.mean((2, 3)))
        return logits


def lists_of_modules(classes: int) -> nn.Module:
    return _Lists(classes)


class _Keywords(nn.Module):
    """Modules whose names are words of Python."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_module("in", block(3, 16))
        self.add_module("for", block(16, 32, 2))
        self.parts = nn.ModuleDict({"class": block(32, CHANNELS, 2), "return": nn.Linear(CHANNELS, classes)})

    def forward(self, x: Tensor) -> Tensor:
        for name in ("in", "for"):
            x = self.get_submodule(name)(x)
        logits: Tensor = self.parts["return"](self.parts["class"](x).mean((2, 3)))
        return logits


def python_keywords(classes: int) -> nn.Module:
    return _Keywords(classes)


class _Options(Trunk):
    """The interface of many repositories of distillation: options beside the images."""

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor:  # noqa: ARG002
        map_ = self.features(x)
        logits: Tensor = self.fc(self.pool(map_))
        return ([map_], logits) if is_feat else logits  # type: ignore[return-value]


def optional_arguments(classes: int) -> nn.Module:
    return _Options(classes)


class _Star(Trunk):
    def forward(self, *args: Tensor, **_: object) -> Tensor:
        return super().forward(args[0])


def star_arguments(classes: int) -> nn.Module:
    return _Star(classes)


def keyword_only(classes: int, *, inputs: int = 3) -> nn.Module:
    """A factory with an option."""
    return Trunk(classes, inputs=inputs)


def named_argument(num_classes: int = 10) -> nn.Module:
    """A factory that calls its argument otherwise."""
    return Trunk(num_classes)
