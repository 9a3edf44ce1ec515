"""How a CPU likes three layers best: the same mathematics, laid out for the kernels that oneDNN and ATen have.

The equations elsewhere call `global_average` and plain nn.Conv2d. What is faster in bfloat16 alone is put in by
`for_bfloat16` when a training step is prepared; networks that are exported or profiled never see it. Measured with
torch 2.14 on a processor with avx512_bf16, in channels_last; times are those of output and gradients. A GPU's part is
`okdc.launches`.

Shapes: N images, C channels, H×W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def global_average(x: Tensor) -> Tensor:
    """Global average pooling, NCHW -> NC, whose gradient lies in memory as x does: contiguous or channels_last.

    The gradient of a mean over H and W lies in contiguous memory whatever x does. Under channels_last the layers before
    it then mix both formats: 2 of 40 ms in the side paths of FEFR (ResNet-20, batch 128, two threads).
    """
    # Compiler, export and torch.fx, whose stand-ins have no strides, find one operator.
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.is_contiguous():
        return x.mean((2, 3))
    return x.permute(0, 2, 3, 1).mean((1, 2))


def lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Give the weights of convolutions and other tensors of four axes a memory format, in place.

    `module.to(memory_format=torch.channels_last)` raises for a tensor of five (conditional convolutions, Conv3d).
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=memory_format)


class Patches(nn.Conv2d):
    """A convolution of non-overlapping patches, under autocast on a CPU as the matrix product that it is.

    128 maps of 16×32×32 to 64×8×8 on two threads: 1.9 ms in bfloat16, as a convolution 3.6. In float32 it is slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or x.shape[2] % self.stride[0] or x.shape[3] % self.stride[1]:
            return super().forward(x)  # the second and third: some pixels at the edge are in no patch
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same as a matrix product, NCHW -> NCHW; channels_last, if x is."""
        (n, c, h, w), (rows, columns) = x.shape, self.kernel_size
        pixels = x.permute(0, 2, 3, 1).reshape(n, h // rows, rows, w // columns, columns, c)
        patches = pixels.transpose(2, 3).flatten(3)  # N, H/r, W/r, r·r·C
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        return F.linear(patches, weight).permute(0, 3, 1, 2)


class Depthwise(nn.Conv2d):
    """A depthwise convolution, under autocast on a CPU in float32 where bfloat16 has no kernel. The output is bfloat16.

    oneDNN's bfloat16 kernels are for 3×3 with stride 1; the gradients of others fall to its reference code. Batch 32,
    one thread, milliseconds of the gradients of input and weights together:

        96 channels, 3×3, stride 2, 32×32     3.2 in float32     58 in bfloat16
        576 channels, 3×3, stride 2, 8×8      0.7                83
        96 channels, 5×5, stride 2, 16×16     2.3                50
        96 channels, 5×5, stride 1, 16×16     5.8                15
        960 channels, 3×3, stride 1, 2×2      1.6                13
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or self.has_kernel(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))

    def has_kernel(self, x: Tensor) -> bool:
        """Whether there is a bfloat16 kernel: 3×3 or less, stride 1, a map that is no smaller than the kernel."""
        return max(self.kernel_size) <= 3 and max(self.stride) == 1 and min(x.shape[2:]) >= max(self.kernel_size)


def for_bfloat16(network: nn.Module) -> list[nn.Module]:
    """Give the convolutions of `network` the class that trains faster under autocast on a CPU. Returns these.

    Weights, their names and what is computed without autocast stay as they are. A class of the convolution's own (a
    subclass of nn.Conv2d) is left alone: it has a forward of its own.
    """
    changed: list[nn.Module] = []
    for conv in network.modules():
        if type(conv) is not nn.Conv2d:
            continue
        if 1 < conv.groups == conv.in_channels:
            conv.__class__ = Depthwise
        elif _cuts_patches(conv):
            conv.__class__ = Patches
        else:
            continue
        changed.append(conv)
    return changed


def _cuts_patches(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and conv.bias is None and conv.dilation == (1, 1) and conv.padding == (0, 0)
    return plain and conv.kernel_size == conv.stride and max(conv.kernel_size) > 1
