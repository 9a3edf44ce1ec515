"""One network of many operators: what the clients of a bundle have to run beside convolutions and ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 32


class _Network(nn.Module):
    """Norms of four kinds, activations of eight, maps made larger, moved, cut and mixed, GeM and a cosine head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(4, 16), nn.LeakyReLU(0.1))
        self.second = nn.Sequential(
            nn.Conv2d(16, CHANNELS, 3, 2, 1, bias=False),
            nn.InstanceNorm2d(CHANNELS, affine=True),
            nn.PReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=8),
            nn.ELU(),
            nn.Conv2d(CHANNELS, CHANNELS, 1),
            nn.SELU(),
        )
        self.larger = nn.Sequential(nn.ConvTranspose2d(CHANNELS, 16, 2, 2), nn.Mish())
        self.back = nn.Sequential(nn.Conv2d(16, CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.Softplus())
        self.last = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1),
            nn.GELU(approximate="tanh"),
        )
        self.mixer = nn.Parameter(torch.eye(CHANNELS) + 0.1 * torch.randn(CHANNELS, CHANNELS))
        self.exponent = nn.Parameter(torch.full((1,), 3.0))
        self.prototypes = nn.Linear(2 * CHANNELS, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.stem(x))
        x = x + self.back(self.larger(x))
        x = x + self.last(x).roll((1, 1), (2, 3))
        x = torch.einsum("nchw,kc->nkhw", x, self.mixer)[:, :, 1:, ::2]
        means = F.avg_pool2d(x.clamp(min=1e-4) ** self.exponent, x.shape[-2:]) ** (1 / self.exponent)
        pooled = torch.cat([means.flatten(1), x.std((2, 3))], 1)
        return 10 * F.linear(F.normalize(pooled), F.normalize(self.prototypes.weight))


def many_operators(classes: int) -> nn.Module:
    return _Network(classes)
