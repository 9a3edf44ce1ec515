"""The multiply-adds of a pass through a module, by torch's own counter, and the operators that it cannot count.

torch.utils.flop_counter counts matrix products, convolutions and the attention kernels of CUDA, as they reach the
dispatcher. The CPU's kernels that it lacks are added here; nn.MultiheadAttention's fast path, one operator for the
whole layer, is off meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]

# Operators full of multiply-adds that have no count: a number without them is a lower bound.
# fmt: off
HOLD_MACS = frozenset({
    "aten::_cdist_forward", "aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd",
    "aten::addbmm", "aten::addmv", "aten::_grouped_mm", "aten::_int_mm",
})
# fmt: on
NATIVE = frozenset({"aten", "prim", "prims"})  # operators of other libraries may hold any work


@dataclass(frozen=True)
class Products:
    """Multiply-adds of convolutions and matrix products."""

    macs: int
    uncounted: tuple[str, ...] = ()  # operators that hold further ones: `macs` is then a lower bound
    modules: dict[str, int] = field(default_factory=dict, repr=False)  # of every submodule that runs, by name


@torch.no_grad()
def products(module: nn.Module, *inputs: object) -> Products:
    """The multiply-adds of `module(*inputs)`. `module` is in eval mode: training would move its statistics."""
    assert not module.training
    all_of_it = counted(lambda: module(*inputs))
    root = f"{type(module).__name__}."
    modules = {name.removeprefix(root): macs for name, macs in all_of_it.modules.items() if name.startswith(root)}
    for name, _ in module.named_modules():
        modules.setdefault(name, 0)
    return replace(all_of_it, modules=modules | {"": all_of_it.macs})


def counted(work: Callable[[], object]) -> Products:
    """The multiply-adds of whatever is called, a backward pass included; each module's path begins with its class."""
    with without_fast_path(), _Operators() as seen, FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        work()
    total: int = counter.get_total_flops()
    modules = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    return Products(total // 2, tuple(sorted(seen.uncounted)), modules)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """nn.MultiheadAttention and nn.TransformerEncoderLayer as the operators that they are made of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Operators(TorchDispatchMode):
    """Notes which operators run that hold multiply-adds and have no count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func._schema.name
        if name in HOLD_MACS or name.partition("::")[0] not in NATIVE:
            self.uncounted.add(name)
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------------------------------
# Operators that torch's counter lacks. It counts a multiply-add as two.


def _attention(q: Shape, k: Shape, v: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """q·kᵀ, and the weights that this gives times v. Each is N×heads×length×width."""
    del out_shape
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _recurrent(x: Shape, weight_ih: Shape, weight_hh: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """One layer in one direction; x is steps×N×features."""
    del out_shape
    return 2 * math.prod(x[:2]) * (math.prod(weight_ih) + math.prod(weight_hh))


def _trilinear(x: Shape, weight: Shape, y: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """nn.Bilinear: the product of x, N×I, and the weight, O×I×J, and then that with y."""
    del y, out_shape
    return 2 * x[0] * (math.prod(weight) + weight[0] * weight[2])


def _vector(matrix: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """A matrix or a vector times a vector."""
    del out_shape
    return 2 * math.prod(matrix)


aten = torch.ops.aten
KERNELS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mkldnn_rnn_layer: _recurrent,
    aten._trilinear: _trilinear,
    aten.mv: _vector,
    aten.dot: _vector,
}
