"""Attention over the last map, and in a stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import CHANNELS, Trunk


def _tokens(map_: Tensor) -> Tensor:
    """NCHW as N×HW×C."""
    return map_.flatten(2).transpose(1, 2)


class _Pooled(Trunk):
    """A trunk whose last map is mixed as tokens and then averaged."""

    def mixed(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        return self.mixed(_tokens(x)).mean(1)


class _SelfAttention(_Pooled):
    def __init__(self, classes: int, weights: bool) -> None:
        super().__init__(classes)
        self.attention = nn.MultiheadAttention(CHANNELS, 4, batch_first=True)
        self.weights = weights

    def mixed(self, tokens: Tensor) -> Tensor:
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=self.weights)
        mixed: Tensor = tokens + attended
        return mixed


def multihead(classes: int) -> nn.Module:
    return _SelfAttention(classes, weights=False)


def multihead_with_weights(classes: int) -> nn.Module:
    return _SelfAttention(classes, weights=True)


class _Encoder(_Pooled):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.encoder = nn.TransformerEncoderLayer(CHANNELS, 4, 128, batch_first=True)

    def mixed(self, tokens: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(tokens)
        return encoded


def encoder_layer(classes: int) -> nn.Module:
    """nn.TransformerEncoderLayer: its evaluation takes a fused path of its own."""
    return _Encoder(classes)


class _ByHand(_Pooled):
    """Queries, keys and values of one linear layer, then scaled_dot_product_attention of 4 heads."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.project = nn.Linear(CHANNELS, 3 * CHANNELS)

    def mixed(self, tokens: Tensor) -> Tensor:
        heads = self.project(tokens).unflatten(2, (3, 4, CHANNELS // 4))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return tokens + attended.transpose(1, 2).flatten(2)


def scaled_dot_product(classes: int) -> nn.Module:
    return _ByHand(classes)


class _MapAttention(nn.Module):
    """Attention between the places of a map, NCHW in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.norm(_tokens(x))
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        mixed: Tensor = x + attended.transpose(1, 2).reshape(n, c, h, w)
        return mixed


class _Bottleneck(Trunk):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.mix_middle, self.mix_last = _MapAttention(32), _MapAttention(CHANNELS)

    def features(self, x: Tensor) -> Tensor:
        middle = self.mix_middle(self.middle(self.stem(x)))
        map_: Tensor = self.mix_last(self.last(middle))
        return map_


def bottleneck_transformer(classes: int) -> nn.Module:
    """Attention in the middle of the network, whose maps stay NCHW."""
    return _Bottleneck(classes)


class _Recurrent(Trunk):
    """The places of the last map as a sequence; its last state is classified."""

    def __init__(self, classes: int, cell: nn.Module) -> None:
        super().__init__(classes)
        self.cell = cell

    def pool(self, x: Tensor) -> Tensor:
        states, _ = self.cell(_tokens(x))
        return torch.select(states, 1, -1)


def gru(classes: int) -> nn.Module:
    return _Recurrent(classes, nn.GRU(CHANNELS, CHANNELS, batch_first=True))


def lstm(classes: int) -> nn.Module:
    return _Recurrent(classes, nn.LSTM(CHANNELS, CHANNELS, batch_first=True))
