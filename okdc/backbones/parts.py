"""The head and the initialisation that okdc's own networks share."""

from __future__ import annotations

from torch import Tensor, nn

from okdc.kernels import global_average


class PoolLinear(nn.Module):
    """Global average pooling and a linear classifier: NCHW -> NK."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(global_average(x))
        return logits


def he_fan_out(network: nn.Module) -> None:
    """Every convolution from a normal distribution of deviation sqrt(2 / (k² · outputs)) (He et al., 2015, Eq. 14).

    BatchNorm (1 and 0) and linear layers stay as PyTorch makes them. A depthwise convolution counts all its outputs,
    as `kaiming_normal_` does. Draws from the global generator, module by module.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
