"""The logits among what a network returns.

A student's output is one tensor. Of a tuple that a network returns in training alone (auxiliary heads: googlenet,
inception_v3) the first is taken; any other tuple, dict or object needs a key, `cohort.output` of the recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from okdc.backbones.naming import Key


class NoLogits(ValueError):  # noqa: N818  (it reads as what it is)
    """An output that holds no logits at the key. The message says what it holds, `hint` what to write."""

    def __init__(self, output: Any, key: Key | None) -> None:
        super().__init__(
            f"it returns {described(output)}" + (f", in which there is no {key!r}" if key is not None else "")
        )
        choices = " or ".join(f"cohort.output={choice!r}" for choice in keys(output) if tensor_at(output, choice))
        self.hint = f"{choices} says which are the logits" if choices else "return one tensor of logits"


def select(output: Any, key: Key | None, training: bool = False) -> Any:
    """The tensor, or its stand-in while a network is traced. One tensor is the logits whatever the key.

    Raises NoLogits; without a key also for several outputs, but in training.
    """
    if isinstance(output, Tensor | fx.Proxy):
        return output
    try:
        if key is None:
            logits = output[0] if training and isinstance(output, tuple | list) else None
        elif isinstance(output, Mapping) or isinstance(key, int):
            logits = output[key]
        else:
            logits = getattr(output, key)
    except (KeyError, IndexError, TypeError, AttributeError):
        logits = None
    if not isinstance(logits, Tensor | fx.Proxy):
        raise NoLogits(output, key)
    return logits


def tensor_at(output: Any, key: Key) -> bool:
    """Whether a key leads to a tensor, or to its stand-in."""
    value = output[key] if isinstance(output, Mapping) or isinstance(key, int) else getattr(output, key)
    return isinstance(value, Tensor | fx.Proxy)


def keys(output: Any) -> list[Key]:
    """What leads to the tensors of an output, in order: the keys of a dict, the names or places in a tuple."""
    if isinstance(output, Mapping):
        return [key for key in output if isinstance(key, str | int)]
    if isinstance(output, tuple | list):
        return list(getattr(output, "_fields", None) or range(len(output)))
    return [field.name for field in dataclasses.fields(output)] if dataclasses.is_dataclass(output) else []


def described(output: Any) -> str:
    """The kind of an output, and what leads to its tensors: tuple(0, 1), dict(logits, features)."""
    return f"{type(output).__name__}({', '.join(map(str, keys(output)))})"
