"""Parameters, multiply-adds and activations of a module, by fvcore, cross-checked by torch's own counter.

fvcore counts one multiply-add as one "flop" (github.com/facebookresearch/fvcore/issues/69) and adds work for BatchNorm
and pooling. What papers call MACs are its convolutions and matrix products alone; torch's counter gives exactly twice
that. fvcore's last release is of 2022 and it traces through torch.jit, so it is used here and nowhere else. It gets the
handlers here that it lacks. Where one counter does not know every operator, the other's number stands.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from okdc.bundle.macs import contraction
from okdc.cohort import Backbone, count_params
from okdc.deploy.lowering import Rewritten, in_float32, plain
from okdc.errors import CheckFailed
from okdc.products import Products, products, without_fast_path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated, and fvcore touches it on import
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

# Operators full of multiply-adds that fvcore takes for nothing: a count with one of them in it is a lower bound. Behind
# lift_fresh stands a tensor that came from outside the trace, such as numpy's, and what made it is not in the trace.
# fmt: off
HOLD_MACS = frozenset({
    "aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd", "aten::addbmm", "aten::addmv",
    "aten::cdist", "aten::chain_matmul", "aten::conv_tbc", "aten::lift_fresh", "aten::tensordot",
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
    fvcore_total: int | None  # None: fvcore could not trace the module
    activations: int | None  # outputs of the counted operators
    uncounted: tuple[str, ...] = ()  # operators that hold MACs and that no counter knows: macs is then at least
    ignored: tuple[str, ...] = ()  # all other operators fvcore has no count for
    modules: dict[str, int] = field(default_factory=dict, repr=False)  # MACs of every submodule by name

    def to_json(self) -> dict[str, Any]:
        """All but `modules`."""
        return {name: value for name, value in asdict(self).items() if name != "modules"}


def count(module: nn.Module, *inputs: torch.Tensor) -> Counts:
    """Count a module on inputs of batch size 1. The module is left as it is: a copy in eval mode is traced.

    Raises CheckFailed ("counting") where the two counters disagree though each knows every operator.
    """
    module = in_float32(copy.deepcopy(module).cpu()).eval()  # in training mode the trace would move batch statistics
    by_torch, by_fvcore = products(module, *inputs), _fvcore(module, *inputs)
    if by_fvcore is None:
        chosen = by_torch
    else:
        first, second = by_fvcore.products, by_torch
        if not first.uncounted and not second.uncounted and first.macs != second.macs:
            raise CheckFailed(
                "counting",
                f"fvcore counts {first.macs:,} MACs, torch's FlopCounterMode {second.macs:,}; expected the same number",
                hint=f"operators fvcore has no count for: {', '.join(by_fvcore.ignored) or 'none'}",
            )
        chosen = _better(first, second)
    return Counts(
        params=count_params(module),
        params_trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
        buffers=sum(b.numel() for b in module.buffers()),
        macs=chosen.macs,
        flops=2 * chosen.macs,
        fvcore_total=by_fvcore.total if by_fvcore else None,
        activations=by_fvcore.activations if by_fvcore else None,
        uncounted=chosen.uncounted,
        ignored=by_fvcore.ignored if by_fvcore else (),
        modules=chosen.modules,
    )


def exported(network: Backbone, example: torch.Tensor) -> Products:
    """The products of one image in the network as it is exported, by torch's counter. `example` is a batch of one.

    Where `Rewritten` turns pooling into a matrix product, that counts as well. A product of weights alone, which the
    file holds as one more constant, does not: it is there once, whatever the number of images.
    """
    network = plain(in_float32(copy.deepcopy(network).cpu()).eval())
    with Rewritten():
        one, two = products(network, example), products(network, example.repeat(2, 1, 1, 1))
    return Products(two.macs - one.macs, one.uncounted)


def check_graph(
    expected: int, graph: int, name: str, lower_bound: bool = False, graph_is_lower_bound: bool = False
) -> None:
    """The third counter: `graph` is what `okdc.bundle.macs` finds in the file `name`, `expected` is `exported`'s.

    Where one is a lower bound the other may be more. Raises CheckFailed ("counting") where they disagree.
    """
    if graph == expected or (lower_bound and graph > expected) or (graph_is_lower_bound and graph < expected):
        return
    raise CheckFailed(
        "counting",
        f"the network has {expected:,} MACs, {name} has {graph:,}; expected the same number",
        hint="another network's file"
        if graph > expected
        else "another network's file, or an auxiliary head: work that no answer depends on",
    )


def _better(first: Products, second: Products) -> Products:
    """The count that is complete; of two that are not, or that both are, the larger, fvcore's if they agree."""
    if bool(first.uncounted) != bool(second.uncounted):
        return second if first.uncounted else first
    return second if second.macs > first.macs else first


# ---------------------------------------------------------------------------------------------------------------------
# fvcore


@dataclass(frozen=True)
class _Fvcore:
    products: Products
    total: int
    activations: int
    ignored: tuple[str, ...]


def _fvcore(module: nn.Module, *inputs: torch.Tensor) -> _Fvcore | None:
    """fvcore's count; None where it cannot trace the module or falls over one of its operators."""
    with warnings.catch_warnings(), torch.no_grad(), without_fast_path():
        warnings.simplefilter("ignore")
        try:
            analysis = _quiet(FlopCountAnalysis(module, inputs)).set_op_handle(**HANDLERS)
            outputs = _quiet(ActivationCountAnalysis(module, inputs)).set_op_handle(**dict.fromkeys(HANDLERS, _numbers))
            by_module = analysis.by_module_and_operator()
            total, activations = round(analysis.total()), round(outputs.total())
            unsupported = set(analysis.unsupported_ops())
        except Exception:  # torch.jit and the handlers raise kinds of their own
            return None
    modules = {
        name: round(sum(n for operator, n in counter.items() if operator in PRODUCTS))
        for name, counter in by_module.items()
    }
    uncounted = {name for name in unsupported if name in HOLD_MACS or not name.startswith("aten::")}
    return _Fvcore(
        Products(modules[""], tuple(sorted(uncounted)), modules),
        total,
        activations,
        tuple(sorted(unsupported - uncounted)),
    )


def _quiet(analysis: Any) -> Any:
    """What has no count is reported by us, once, not by a warning for each call."""
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(map(int, get_shape(value)))


def _numbers(inputs: Any, outputs: Any) -> int:
    """The length of an operator's first output."""
    del inputs
    return math.prod(_shape(outputs[0]))


def _padded(inputs: Any, outputs: Any) -> int:
    """A convolution with padding="same" or "valid"."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _matmul(inputs: Any, outputs: Any) -> int:
    """matmul, of vectors too: every number that it gives sums over the first factor's last axis."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _baddbmm(inputs: Any, outputs: Any) -> int:
    return _matmul(inputs[1:], outputs)


def _attention(inputs: Any, outputs: Any) -> int:
    del outputs
    q, k, v = (_shape(value) for value in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _bilinear(inputs: Any, outputs: Any) -> int:
    """The product of the first input and the weight, O×I×J, and then that with the second."""
    del outputs
    x, _, weight = (_shape(value) for value in inputs[:3])
    return math.prod(x[:-1]) * (math.prod(weight) + weight[0] * weight[2])


def _recurrent(inputs: Any, outputs: Any) -> int:
    """Every matrix of an RNN, LSTM or GRU once a step. Of a packed sequence fvcore knows no steps: TypeError."""
    del outputs
    weights = [_shape(value) for value in next(v for v in inputs[2:] if _is_list(v)).node().inputs()]
    return math.prod(_shape(inputs[0])[:2]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def _is_list(value: Any) -> bool:
    return bool(value.node().kind() == "prim::ListConstruct")


def _einsum(inputs: Any, outputs: Any) -> int:
    """An einsum of three operands raises ValueError, which leaves the count to torch."""
    del outputs
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    return contraction(inputs[0].toIValue(), shapes)


HANDLERS = {
    "aten::_convolution_mode": _padded,
    "aten::baddbmm": _baddbmm,
    "aten::bilinear": _bilinear,
    "aten::dot": _matmul,
    "aten::einsum": _einsum,
    "aten::gru": _recurrent,
    "aten::lstm": _recurrent,
    "aten::matmul": _matmul,
    "aten::mv": _matmul,
    "aten::rnn_relu": _recurrent,
    "aten::rnn_tanh": _recurrent,
    "aten::scaled_dot_product_attention": _attention,
}
# fvcore's names of the operators that multiply and add (its batch_norm and pooling handlers cannot be switched off).
PRODUCTS = {"conv", "linear", "addmm", "mm", "bmm"} | {name.removeprefix("aten::") for name in HANDLERS}
