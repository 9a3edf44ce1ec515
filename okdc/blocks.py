"""The pieces that feature-fusing methods are made of: matching, dual attention, overall fusion.

Shapes: N images, C channels, H×W pixels, K classes. A map's size is CHW, measured on the recipe's own image size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from okdc.kernels import global_average

MATCHES = ("patch", "conv3x3_s2", "pool1x1")


class PatchConv(nn.Module):
    """conv-BN-ReLU from any CHW size to a given one, each output pixel seeing one patch of r×r input pixels.

    r = ceil(H / H'), the kernel and the stride alike; the input is zero-padded at the bottom and on the right to
    r·H' × r·W', so that 25 pixels reach 13 although 25 / 13 is no integer. With equal sizes it is a 1×1 convolution.
    """

    def __init__(self, source: torch.Size, target: torch.Size) -> None:
        super().__init__()
        (c, h, w), (out, height, width) = source, target
        ratio = (math.ceil(h / height), math.ceil(w / width))
        self.padding = (0, ratio[1] * width - w, 0, ratio[0] * height - h)  # left, right, top, bottom
        self.conv = nn.Conv2d(c, out, ratio, ratio, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, self.padding)
        return F.relu(self.bn(self.conv(x)))


class MatrixPool(nn.Module):
    """Adaptive average pooling of H×W maps to `target` as two matrix products, NCHW -> NCHW.

    PyTorch's own has no deterministic gradient on CUDA, and leaves arithmetic on sizes in an exported graph.
    """

    def __init__(self, size: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.rows = nn.Buffer(_averages(size[0], target[0]), persistent=False)
        self.columns = nn.Buffer(_averages(size[1], target[1]).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)


def _averages(size: int, target: int) -> Tensor:
    """target×size: row i averages the pixels floor(i·size/target) to ceil((i+1)·size/target), as PyTorch does."""
    rows = torch.zeros(target, size)
    for i in range(target):
        start, stop = i * size // target, -(-(i + 1) * size // target)
        rows[i, start:stop] = 1 / (stop - start)
    return rows


def match(kind: str, source: torch.Size, target: torch.Size, raw: bool = False) -> nn.Module:
    """A module that brings a map of CHW size `source` to size `target` (FEFR Fig. 3, "conv"). Always ends in ReLU.

    patch: one PatchConv. conv3x3_s2: 3×3 convolutions of stride 2, channels doubling on the way. pool1x1: adaptive
    average pooling and a 1×1 convolution. `raw` puts BN-ReLU first: the map is a sum that nothing has normalised yet.
    Raises ValueError for an unknown kind, or where halving does not reach the target.
    """
    first: list[nn.Module] = [nn.BatchNorm2d(source[0]), nn.ReLU()] if raw else []
    if kind == "patch":
        return nn.Sequential(*first, PatchConv(source, target))
    if kind == "pool1x1":
        (h, w), (height, width) = source[1:], target[1:]
        pool: nn.Module = MatrixPool((h, w), (height, width))
        if h % height == 0 and w % width == 0:
            pool = nn.AvgPool2d((h // height, w // width))
        return nn.Sequential(*first, pool, *_conv_bn_relu(source[0], target[0], 1, 1))
    if kind == "conv3x3_s2":
        return nn.Sequential(*first, *_halvings(source, target))
    raise ValueError(f"match is one of {', '.join(MATCHES)}, not {kind!r}")


def _halvings(source: torch.Size, target: torch.Size) -> list[nn.Module]:
    (channels, *size), (out, *goal) = source, target
    if size == goal:
        return _conv_bn_relu(channels, out, 3, 1)
    layers: list[nn.Module] = []
    while size != goal:
        size = [math.ceil(s / 2) for s in size]
        if size[0] < goal[0] or size[1] < goal[1]:
            raise ValueError(
                f"match='conv3x3_s2' halves {source[1]}×{source[2]} past {target[1]}×{target[2]}; use match='patch'"
            )
        outputs = out if size == goal else min(2 * channels, out)
        layers += _conv_bn_relu(channels, outputs, 3, 2)
        channels = outputs
    return layers


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class ChannelAttention(nn.Module):
    """What to attend to (MFEF eq. 5-6): x · σ(MLP(avg x) + MLP(max x)), one MLP C → max(C/reduction, 4) → C."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        # mean and amax, not adaptive pooling: AdaptiveMaxPool2d exports badly (github.com/pytorch/pytorch/issues/60452)
        # Eq. 5 as printed closes its brackets elsewhere; CBAM, which it follows, adds before the sigmoid.
        weight_NC = torch.sigmoid(self.mlp(global_average(x)) + self.mlp(x.amax((2, 3))))
        return x * weight_NC[:, :, None, None]


class SpatialAttention(nn.Module):
    """Where to attend to (MFEF eq. 7-8): x · σ(BN(conv [mean_c x; max_c x])), a kernel×kernel convolution 2 → 1."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        # Concatenated, as eq. 7 says: a caption of FEFR has a sum here, which would leave its own convolution nothing.
        pooled_N2HW = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.bn(self.conv(pooled_N2HW)))  # the weight is N1HW


class DualAttention(nn.Sequential):
    """Channel attention, then spatial attention (FEFR section 3.2.3; CBAM's defaults): NCHW -> NCHW."""

    def __init__(self, channels: int, reduction: int = 16, spatial_kernel: int = 7) -> None:
        super().__init__(ChannelAttention(channels, reduction), SpatialAttention(spatial_kernel))


class HierarchicalSplit(nn.Module):
    """Multi-scale feature extraction (MFEF eq. 4 and its text; HS-ResNet): NCHW -> NCHW, any C of at least p channels.

    Of p groups of channels the first goes out as it is. Each other is joined by what the one before passed on and goes
    through 3×3 conv-BN-ReLU; the last goes out whole, the ones between in halves: one out, one passed on. Equation 4 as
    printed exports and passes on the same half and uses the other nowhere; the text is followed. Which half is which is
    only a name.
    """

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        if channels < groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")
        self.widths = [len(part) for part in torch.arange(channels).tensor_split(groups)]
        self.passed: list[int] = []  # channels that go to the next group
        convs, before = [], 0
        for i, width in enumerate(self.widths[1:], 1):
            inside = width + before
            before = inside // 2 if i < groups - 1 else 0
            convs.append(nn.Sequential(*_conv_bn_relu(inside, inside, 3, 1)))
            self.passed.append(before)
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.split(self.widths, 1)  # p groups of N, C/p, H, W
        out = [first]  # the first group is not convolved: it keeps one scale of features as it was
        before: Tensor | None = None
        for group, conv, passed in zip(rest, self.convs, self.passed, strict=True):
            y = conv(group if before is None else torch.cat([group, before], 1))  # joined: one receptive field wider
            if passed:
                y, before = y.split([y.shape[1] - passed, passed], 1)  # eq. 4's D_i1 goes out, D_i2 is passed on
            out.append(y)
        return torch.cat(out, 1)  # C channels again, whatever C and p: what is passed on leaves by a later group


def written(size: torch.Size) -> str:
    """64×8×8"""
    return "×".join(map(str, size))


class OverallFusion(nn.Module):
    """The fused classifier (FEFR section 3.2.4; FFL's Fusion_module): one map a student -> NK logits, float32.

    Maps of different sizes are first brought to the smallest by a PatchConv that keeps their channels. Then cat →
    depthwise 3×3 → pointwise to the fewest channels of any student → global average → linear.
    """

    def __init__(self, sizes: Sequence[torch.Size], classes: int) -> None:
        super().__init__()
        height, width = min(s[1] for s in sizes), min(s[2] for s in sizes)
        self.regressors = nn.ModuleList(
            nn.Identity() if s[1:] == (height, width) else PatchConv(s, torch.Size((s[0], height, width)))
            for s in sizes
        )
        total, out = sum(s[0] for s in sizes), min(s[0] for s in sizes)
        self.description = (
            f"fused classifier of {' + '.join(written(s) for s in sizes)}, joined at {total}×{height}×{width}, "
            f"{out} channels"
        )
        self.depthwise = nn.Sequential(*_conv_bn_relu(total, total, 3, 1, groups=total))
        self.pointwise = nn.Sequential(*_conv_bn_relu(total, out, 1, 1))
        self.fc = nn.Linear(out, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = torch.cat([regress(m) for regress, m in zip(self.regressors, maps, strict=True)], 1)  # N, Σ_k C_k, H, W
        x = self.pointwise(self.depthwise(x))  # N, min_k C_k, H, W: as wide as the narrowest student's map
        logits: Tensor = self.fc(global_average(x))
        return logits.float()
