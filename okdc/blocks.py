"""The pieces that feature-fusing methods are made of: matching, dual attention, overall fusion.

Shapes: N images, C channels, H×W pixels, K classes. A map's size is CHW, measured on the recipe's own image size.
"""

from __future__ import annotations

import itertools
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
    `norm=False` leaves BN and ReLU out; the convolution has a bias instead.
    """

    def __init__(self, source: torch.Size, target: torch.Size, norm: bool = True) -> None:
        super().__init__()
        (c, h, w), (out, height, width) = source, target
        ratio = (math.ceil(h / height), math.ceil(w / width))
        self.padding = (0, ratio[1] * width - w, 0, ratio[0] * height - h)  # left, right, top, bottom
        self.conv = nn.Conv2d(c, out, ratio, ratio, bias=not norm)
        self.bn = nn.BatchNorm2d(out) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, self.padding)
        y: Tensor = self.conv(x)
        return y if self.bn is None else F.relu(self.bn(y))


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


def match(kind: str, source: torch.Size, target: torch.Size, raw: bool = False, norm: bool = True) -> nn.Module:
    """A module that brings a map of CHW size `source` to size `target` (FEFR Fig. 3, "conv").

    patch: one PatchConv. conv3x3_s2: 3×3 convolutions of stride 2, channels doubling on the way. pool1x1: adaptive
    average pooling and a 1×1 convolution. BN and ReLU follow each convolution; with `norm=False` a bias takes their
    place. `raw` puts BN-ReLU first: the map is a sum that nothing has normalised yet.
    Raises ValueError for an unknown kind, or where halving does not reach the target.
    """
    first = bn_relu(source[0]) if raw else []
    if kind == "patch":
        return nn.Sequential(*first, PatchConv(source, target, norm))
    if kind == "pool1x1":
        (h, w), (height, width) = source[1:], target[1:]
        pool: nn.Module = MatrixPool((h, w), (height, width))
        if h % height == 0 and w % width == 0:
            pool = nn.AvgPool2d((h // height, w // width))
        return nn.Sequential(*first, pool, *_conv_bn_relu(source[0], target[0], 1, 1, norm=norm))
    if kind == "conv3x3_s2":
        return nn.Sequential(*first, *_halvings(source, target, norm))
    raise ValueError(f"match is one of {', '.join(MATCHES)}, not {kind!r}")


def bn_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _halvings(source: torch.Size, target: torch.Size, norm: bool) -> list[nn.Module]:
    (channels, *size), (out, *goal) = source, target
    if size == goal:
        return _conv_bn_relu(channels, out, 3, 1, norm=norm)
    layers: list[nn.Module] = []
    while size != goal:
        size = [math.ceil(s / 2) for s in size]
        if size[0] < goal[0] or size[1] < goal[1]:
            raise ValueError(
                f"match='conv3x3_s2' halves {source[1]}×{source[2]} past {target[1]}×{target[2]}; use match='patch'"
            )
        outputs = out if size == goal else min(2 * channels, out)
        layers += _conv_bn_relu(channels, outputs, 3, 2, norm=norm)
        channels = outputs
    return layers


def _conv_bn_relu(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, norm: bool = True
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
    return [conv, *bn_relu(outputs)] if norm else [conv]


def _hidden(channels: int, reduction: int) -> int:
    return max(channels // reduction, 4)


class ChannelAttention(nn.Module):
    """What to attend to (MFEF eq. 5-6): x · σ(MLP(avg x) + MLP(max x)), one MLP C → max(C/reduction, 4) → C."""

    def __init__(self, channels: int, reduction: int = 16, bias: bool = True) -> None:
        super().__init__()
        hidden = _hidden(channels, reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden, bias), nn.ReLU(), nn.Linear(hidden, channels, bias))

    def forward(self, x: Tensor) -> Tensor:
        # mean and amax, not adaptive pooling: AdaptiveMaxPool2d exports badly (github.com/pytorch/pytorch/issues/60452)
        # Eq. 5 as printed closes its brackets elsewhere; CBAM, which it follows, adds before the sigmoid.
        weight_NC = torch.sigmoid(self.mlp(global_average(x)) + self.mlp(x.amax((2, 3))))
        return x * weight_NC[:, :, None, None]


def _pooled_channels(x: Tensor) -> Tensor:
    """Mean and maximum of all channels, NCHW -> N2HW.

    Concatenated, as MFEF eq. 7 says: a caption of FEFR has a sum here, which would leave its own convolution nothing.
    """
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)


class SpatialAttention(nn.Module):
    """Where to attend to (MFEF eq. 7-8): x · σ(BN(conv [mean_c x; max_c x])), a kernel×kernel convolution 2 → 1."""

    def __init__(self, kernel: int = 7, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(1) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.bn(self.conv(_pooled_channels(x))))  # the weight is N1HW


class DualAttention(nn.Sequential):
    """Channel attention, then spatial attention (FEFR section 3.2.3; CBAM's defaults): NCHW -> NCHW.

    `bias`: of the two linear layers. `norm`: whether BN follows the convolution over places.
    """

    def __init__(
        self, channels: int, reduction: int = 16, spatial_kernel: int = 7, bias: bool = True, norm: bool = True
    ) -> None:
        super().__init__(ChannelAttention(channels, reduction, bias), SpatialAttention(spatial_kernel, norm))


class RandomAttention(nn.Module):
    """Dual attention without biases and BN whose weights are drawn anew at every call, and never trained.

    It exists only to measure published code that builds its attention inside `forward`. Weights are PyTorch's first
    ones, uniform in ±1/sqrt(inputs). They follow from `key` and from the number of calls, both buffers: no generator
    moves, so that a training repeats and resumes to the bit, and modules of one key and size draw alike.
    """

    def __init__(self, channels: int, key: Tensor, reduction: int = 16, spatial_kernel: int = 7) -> None:
        """`key`: 0-d, int64, 0 .. 2³¹-1."""
        super().__init__()
        hidden, self.padding = _hidden(channels, reduction), spatial_kernel // 2
        self.shapes = ((hidden, channels), (channels, hidden), (1, 2, spatial_kernel, spatial_kernel))
        self.key = nn.Buffer(key.clone())
        self.calls = nn.Buffer(torch.zeros_like(key))

    def draw(self) -> list[Tensor]:
        """The three weights of one more call, float32."""
        self.calls.add_(1)
        sizes = [math.prod(shape) for shape in self.shapes]
        numbers = 2 * _uniform(_hash(self.key) ^ self.calls, sum(sizes)) - 1
        return [
            part.view(shape) / math.prod(shape[1:]) ** 0.5
            for part, shape in zip(numbers.split(sizes), self.shapes, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        reduce, expand, where = self.draw()
        by_mean, by_max = (
            F.linear(F.relu(F.linear(pooled, reduce)), expand) for pooled in (global_average(x), x.amax((2, 3)))
        )
        x = x * torch.sigmoid(by_mean + by_max)[:, :, None, None]
        return x * torch.sigmoid(F.conv2d(_pooled_channels(x), where, padding=self.padding))


def _uniform(key: Tensor, count: int) -> Tensor:
    """`count` numbers in 0..1, float32, that follow from the 0-d int64 `key`."""
    return _hash(_hash(key) ^ torch.arange(count, device=key.device)) / 2**32


def _hash(x: Tensor) -> Tensor:
    """An integer hash of 32 bits, in int64: both factors are below 2³¹, so that no product overflows."""
    x = ((x >> 16) ^ x) * 0x21F0AAAD & 0xFFFFFFFF
    x = ((x >> 15) ^ x) * 0x735A2D97 & 0xFFFFFFFF
    return (x >> 15) ^ x


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


def split_order(channels: int, groups: int) -> list[tuple[int, int]]:
    """The order in which a hierarchical split without convolutions hands channels out: ranges (start, stop).

    Each group but the first is joined to what the one before passed on, its first half is passed on in turn, and its
    second half goes out; the last goes out whole. What remains is a permutation of the channels, which FEFR's public
    code writes out for 96 channels and 4 groups: 0-23, 36-47, 54-71, 24-35, 48-53, 72-95. For 2 groups it is the
    identity. Groups that do not divide the channels differ by one, as those of `HierarchicalSplit`.

    Raises ValueError for fewer channels than groups.
    """
    if channels < groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    out: list[int] = []
    passed: list[int] = []
    start = 0
    for i in range(groups):
        width = channels // groups + (i < channels % groups)
        inside = [*passed, *range(start, start + width)]
        half = len(inside) // 2 if 0 < i < groups - 1 else 0
        passed, start = inside[:half], start + width
        out += inside[half:]
    starts = [0, *(i for i in range(1, channels) if out[i] != out[i - 1] + 1), channels]
    return [(out[i], out[j - 1] + 1) for i, j in itertools.pairwise(starts)]


def reordered(x: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """NCHW -> NCHW: its channels, range after range. `ranges` hold each channel once."""
    parts = x.split([stop - start for start, stop in sorted(ranges)], 1)
    place = {part: i for i, part in enumerate(sorted(ranges))}
    return torch.cat([parts[place[part]] for part in ranges], 1)


def written(size: torch.Size) -> str:
    """64×8×8"""
    return "×".join(map(str, size))


class OverallFusion(nn.Module):
    """The fused classifier (FEFR section 3.2.4; FFL's Fusion_module): one map a student -> NK logits, float32.

    Maps of different sizes are first brought to the smallest by a PatchConv that keeps their channels. Then cat →
    depthwise 3×3 → pointwise to the fewest channels of any student → global average → linear. `widths`, channels a
    student, puts a 1×1 convolution with a bias and without BN and ReLU behind cat: it mixes all channels into so many.
    """

    def __init__(self, sizes: Sequence[torch.Size], classes: int, widths: Sequence[int] | None = None) -> None:
        super().__init__()
        height, width = min(s[1] for s in sizes), min(s[2] for s in sizes)
        self.regressors = nn.ModuleList(
            nn.Identity() if s[1:] == (height, width) else PatchConv(s, torch.Size((s[0], height, width)))
            for s in sizes
        )
        joined = [s[0] for s in sizes]
        total, out = sum(widths or joined), min(widths or joined)
        self.premix = nn.Identity() if widths is None else nn.Conv2d(sum(joined), total, 1)
        mixed = f", mixed into {total}" if widths else ""
        self.description = (
            f"fused classifier of {' + '.join(written(s) for s in sizes)}, joined at {sum(joined)}×{height}×{width}"
            f"{mixed}, {out} channels"
        )
        self.depthwise = nn.Sequential(*_conv_bn_relu(total, total, 3, 1, groups=total))
        self.pointwise = nn.Sequential(*_conv_bn_relu(total, out, 1, 1))
        self.fc = nn.Linear(out, classes)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The pooled fused map, NC: what the linear layer reads."""
        x = torch.cat([regress(m) for regress, m in zip(self.regressors, maps, strict=True)], 1)  # N, Σ_k C_k, H, W
        x = self.pointwise(self.depthwise(self.premix(x)))  # N, min_k C_k, H, W: as wide as the narrowest student's map
        return global_average(x)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.fc(self.features(maps))
        return logits.float()
