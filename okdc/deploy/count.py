"""Parameters, multiply-adds and activations of a module, by fvcore, cross-checked by torch's own counter.

fvcore counts one multiply-add as one "flop" (github.com/facebookresearch/fvcore/issues/69) and adds work for BatchNorm
and pooling. What papers call MACs are its convolutions and matrix products alone; torch's counter gives exactly twice
that. fvcore's last release is of 2022 and it traces through torch.jit, so it is used here and nowhere else.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from okdc.cohort import Backbone, count_macs, count_params
from okdc.deploy.lowering import plain
from okdc.errors import CheckFailed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated, and fvcore touches it on import
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

# fvcore's names of the operators that multiply and add (its batch_norm and pooling handlers cannot be switched off).
PRODUCTS = frozenset({"conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum"})

# Operators full of multiply-adds that both counters take for nothing: a count with one of them in it is a lower bound.
# fmt: off
HOLD_MACS = frozenset({
    "aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd", "aten::scaled_dot_product_attention",
    "aten::bilinear", "aten::cdist", "aten::gru", "aten::lstm", "aten::rnn_relu", "aten::rnn_tanh",
})
# fmt: on


@dataclass(frozen=True)
class Counts:
    """What one image costs: `macs` are convolutions and linear layers, `flops` twice that."""

    params: int
    params_trainable: int
    buffers: int
    macs: int
    flops: int
    fvcore_total: int
    activations: int  # outputs of the counted operators
    uncounted: tuple[str, ...] = ()  # operators that hold MACs and that neither counter knows: macs is then at least
    ignored: tuple[str, ...] = ()  # all other operators fvcore has no count for
    modules: dict[str, int] = field(default_factory=dict, repr=False)  # MACs of every submodule by name

    def to_json(self) -> dict[str, Any]:
        """All but `modules`."""
        return {name: value for name, value in asdict(self).items() if name != "modules"}


def count(module: nn.Module, *inputs: torch.Tensor) -> Counts:
    """Count a module on inputs of batch size 1. The module is left as it is: a copy in eval mode is traced.

    Raises CheckFailed ("counting") where the two counters disagree.
    """
    module = copy.deepcopy(module).cpu().float().eval()  # in training mode the trace would move batch statistics
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            analysis, activations = _quiet(FlopCountAnalysis(module, inputs)), ActivationCountAnalysis(module, inputs)
            by_module = analysis.by_module_and_operator()
            total, outputs = round(analysis.total()), round(_quiet(activations).total())
            unsupported = set(analysis.unsupported_ops())
        except (RuntimeError, AssertionError, IndexError, KeyError, ValueError) as error:
            raise CheckFailed(
                "counting", f"fvcore cannot count this network: {type(error).__name__}: {error}"
            ) from error
        second = count_macs(module, *inputs)
    modules = {
        name: round(sum(n for operator, n in counter.items() if operator in PRODUCTS))
        for name, counter in by_module.items()
    }
    macs = modules[""]
    if second != macs:
        raise CheckFailed(
            "counting",
            f"fvcore counts {macs:,} MACs, torch's FlopCounterMode {second:,}; expected the same number",
            hint=f"operators fvcore has no count for: {', '.join(sorted(unsupported)) or 'none'}",
        )
    return Counts(
        params=count_params(module),
        params_trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
        buffers=sum(b.numel() for b in module.buffers()),
        macs=macs,
        flops=2 * macs,
        fvcore_total=total,
        activations=outputs,
        uncounted=tuple(sorted(unsupported & HOLD_MACS)),
        ignored=tuple(sorted(unsupported - HOLD_MACS)),
        modules=modules,
    )


def exported_macs(network: Backbone, example: torch.Tensor) -> int:
    """MACs of the network as it is exported: where `plain` turns pooling into a matrix product, that counts as well."""
    network = copy.deepcopy(network).cpu().float().eval()
    return count_macs(plain(network, example), example)


def check_graph(expected: int, graph: int, name: str, lower_bound: bool = False) -> None:
    """The third counter: `graph` is what `okdc.bundle.macs` finds in the file `name`, `expected` is `exported_macs`.

    Where that is a lower bound the file may hold more. Raises CheckFailed ("counting") where they disagree.
    """
    if graph == expected or (lower_bound and graph > expected):
        return
    raise CheckFailed(
        "counting",
        f"the network has {expected:,} MACs, {name} has {graph:,}; expected the same number",
        hint="another network's file"
        if graph > expected
        else "another network's file, or an auxiliary head: work that no answer depends on",
    )


def _quiet(analysis: Any) -> Any:
    """What has no count is reported by us, once, not by a warning for each call."""
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
