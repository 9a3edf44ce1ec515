"""Gates, shuffles and other mixings of a map's channels and places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import CHANNELS, After, Trunk, block


class _Gate(nn.Module):
    """Squeeze and excitation: each channel times a gate of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1)
        gate: Tensor = self.excite(self.squeeze(means).relu()).sigmoid()
        return gate * x


class _Gated(Trunk):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.gates = nn.ModuleList(_Gate(channels) for channels in (16, 32, CHANNELS))

    def features(self, x: Tensor) -> Tensor:
        for stage, gate in zip((self.stem, self.middle, self.last), self.gates, strict=True):
            x = gate(stage(x))
        return x


def squeeze_excite(classes: int) -> nn.Module:
    return _Gated(classes)


class _ConvolvedGate(nn.Module):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.along = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.along(x.mean((2, 3))[:, None])
        return gate.sigmoid().squeeze(1)[:, :, None, None] * x


def channel_attention(classes: int) -> nn.Module:
    return After(classes, _ConvolvedGate())


class _ConditionalConvolution(nn.Module):
    """Four 1×1 kernels, mixed for each image by a gate, applied as one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(4, CHANNELS, CHANNELS) * 0.1)
        self.gate = nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        shares = self.gate(x.mean((2, 3))).softmax(dim=1)
        kernels = torch.einsum("ne,eoi->noi", shares, self.experts).reshape(n * c, c, 1, 1)
        mixed = F.conv2d(x.reshape(1, n * c, h, w), kernels, groups=n)
        return mixed.reshape(n, c, h, w)


def conditional_convolution(classes: int) -> nn.Module:
    return After(classes, _ConditionalConvolution())


class _EinsumOfChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(CHANNELS, CHANNELS) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kc->nkhw", x, self.matrix)


def einsum(classes: int) -> nn.Module:
    return After(classes, _EinsumOfChannels())


class _Fourier(nn.Module):
    """A filter in the frequencies of the map."""

    def forward(self, x: Tensor) -> Tensor:
        frequencies = torch.fft.rfft2(x)
        filtered: Tensor = torch.fft.irfft2(0.9 * frequencies, s=x.shape[2:])
        return filtered


def fourier(classes: int) -> nn.Module:
    return After(classes, _Fourier())


def channel_shuffle(classes: int) -> nn.Module:
    grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=4)
    return After(classes, nn.Sequential(nn.ChannelShuffle(4), grouped, nn.ReLU()))


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.inner(x)
        return total


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((CHANNELS, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def layer_scale(classes: int) -> nn.Module:
    return After(classes, _Residual(_Scale()))


def large_kernel(classes: int) -> nn.Module:
    """Depthwise, 31×31: wider than the map."""
    return After(classes, _Residual(nn.Conv2d(CHANNELS, CHANNELS, 31, padding=15, groups=CHANNELS)))


def dilated(classes: int) -> nn.Module:
    network = Trunk(classes)
    network.last = nn.Sequential(nn.Conv2d(32, CHANNELS, 3, 1, 2, dilation=2), nn.BatchNorm2d(CHANNELS), nn.ReLU())
    return network


class _Cut(nn.Module):
    """A mask set by an index: what is small becomes 0."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[x < 0.1] = 0.0
        return x


def masked_in_place(classes: int) -> nn.Module:
    return After(classes, _Cut())


class _RaisedHalf(nn.Module):
    """The first half of the channels changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, : CHANNELS // 2] += 1
        return x


def slice_in_place(classes: int) -> nn.Module:
    return After(classes, _RaisedHalf())


class _TwoHalves(nn.Module):
    """Every second row and column, and the second half of the channels behind the first: constant slices."""

    def forward(self, x: Tensor) -> Tensor:
        small = x[:, :, ::2, ::2]
        return torch.cat([small[:, CHANNELS // 2 :], small[:, : CHANNELS // 2]], 1)


def sliced(classes: int) -> nn.Module:
    return After(classes, _TwoHalves())


class _OneResolution(nn.Module):
    """Patches, then blocks of a depthwise and a 1×1 convolution that leave the size alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.BatchNorm2d(32)]
        for _ in range(4):
            layers += [nn.Conv2d(32, 32, 5, padding=2, groups=32), nn.GELU(), nn.BatchNorm2d(32)]
            layers += [nn.Conv2d(32, 32, 1), nn.GELU(), nn.BatchNorm2d(32)]
        self.mixers = nn.Sequential(*layers)
        self.classifier = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.mixers(x).mean((2, 3)))
        return logits


def one_resolution(classes: int) -> nn.Module:
    return _OneResolution(classes)


class _Volumes(nn.Module):
    """The colours as a depth, convolved in three dimensions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 8, 3, padding=(0, 1, 1))
        self.middle, self.last, self.fc = block(8, 16, 2), block(16, 32, 2), nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.deep(x[:, None]).relu().squeeze(2)
        logits: Tensor = self.fc(self.last(self.middle(flat)).mean((2, 3)))
        return logits


def conv3d(classes: int) -> nn.Module:
    return _Volumes(classes)


class _Pyramid(nn.Module):
    """The means of three scales side by side: the head reads every map."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = block(3, 16), block(16, 32, 2), block(32, CHANNELS, 2)
        self.classifier = nn.Linear(16 + 32 + CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        means = [map_.mean((2, 3)) for map_ in (fine, middle, coarse)]
        logits: Tensor = self.classifier(torch.cat(means, dim=1))
        return logits


def pyramid(classes: int) -> nn.Module:
    return _Pyramid(classes)


class _TwoStreams(nn.Module):
    """Two networks, one of which sees the mirrored image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.straight, self.mirrored = Trunk(classes), Trunk(classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.straight(x) + self.mirrored(x.flip(3))
        return logits


def two_streams(classes: int) -> nn.Module:
    return _TwoStreams(classes)
