"""The PyTorch side of a parity check, from raw uint8 NHWC images; the other side is `okdc.bundle.session`.

They share no preprocessing: this one has training's transform, the other has only the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from okdc.bundle.session import Floats, Images, Pixels, parts
from okdc.cohort import Backbone
from okdc.data.batches import Normalise, eval_batch
from okdc.data.datasets import Dataset
from okdc.errors import CheckFailed, OkdcError, one_line
from okdc.runs.artefacts import Preprocessing

Doubles = npt.NDArray[np.float64]


class Split:
    """The images of one split as an N×H×W×C array that is never whole in memory."""

    def __init__(self, dataset: Dataset, rows: torch.Tensor) -> None:
        self.dataset, self.rows = dataset, rows
        channels, height, width = dataset.size
        self.shape = (len(rows), height, width, channels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Pixels:
        """Raises DataError for a file that cannot be read."""
        return self.dataset.pixels(self.rows[rows]).numpy()


def batches(images: Images) -> Iterator[Pixels]:
    """As many at a time as every evaluation takes: that is part of what a recorded accuracy means."""
    return parts(images, eval_batch(*images.shape[1:3]))


class Torch:
    """A student and training's own transform."""

    def __init__(self, network: Backbone, rule: Preprocessing) -> None:
        self.network = network.eval()
        self.normalise = Normalise(rule.mean, rule.std)
        self.mean, self.std = (torch.tensor(colour, dtype=torch.float64) for colour in (rule.mean, rule.std))

    @torch.inference_mode()
    def logits(self, images: Images) -> Floats:
        logits = [self.network(self.normalise(torch.from_numpy(part))) for part in batches(images)]
        return torch.cat(logits).numpy()

    @torch.inference_mode()
    def exact(self, images: Images) -> Doubles:
        """The same in float64 from the first pixel to the last logit, but for what the network itself rounds.

        Raises CheckFailed ("parity") for a network that cannot be run so: nothing tells then how exact float32 is.
        """
        logits = []
        for part in parts(images, max(1, eval_batch(*images.shape[1:3]) // 2)):
            x = (torch.from_numpy(part).double() / 255 - self.mean) / self.std
            with _unable(), in_float64():
                logits.append(self.double(x.permute(0, 3, 1, 2).contiguous()))
        return torch.cat(logits).numpy()

    @cached_property
    def double(self) -> Backbone:
        """The network with float64 in place of float32. Its numbers of other types are its author's choice."""
        with _unable():
            network = copy.deepcopy(self.network)
            for module in network.modules():
                for tensors in (module._parameters, module._buffers):
                    for tensor in tensors.values():
                        if tensor is not None and tensor.dtype == torch.float32:
                            tensor.data = tensor.data.double()
            return network


@contextmanager
def in_float64() -> Iterator[None]:
    """Runs torch with float64 wherever a program asks for float32: by a cast, a factory's dtype, or the default.

    Casts to float16 and bfloat16 stay: their rounding is part of the network, and is no noise of float32.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened():
            yield
    finally:
        torch.set_default_dtype(before)


class _Widened(TorchFunctionMode):
    NAMES: ClassVar = {"torch.FloatTensor": "torch.DoubleTensor", torch.FloatTensor: torch.DoubleTensor}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        if func is torch.Tensor.type:
            args = tuple(self.NAMES.get(a, a) if isinstance(a, str | type) else a for a in args)
        name = getattr(func, "__name__", "")
        first, rest = args[:1], args[1:]
        if name not in ("__get__", "__setitem__") and not name.endswith("_"):  # those are of this very tensor
            first = tuple(map(_widened, first))
        return func(*first, *map(_widened, rest), **{key: _widened(value) for key, value in (kwargs or {}).items()})


def _widened(argument: Any) -> Any:
    """float64 for float32, also of a tensor: an attribute that is no buffer, such as a filter, is float32 still."""
    if argument is torch.float32:
        return torch.float64
    if isinstance(argument, torch.Tensor) and argument.dtype == torch.float32:
        return argument.double()
    if type(argument) in (list, tuple):
        return type(argument)(map(_widened, argument))
    return argument


@contextmanager
def _unable() -> Iterator[None]:
    try:
        yield
    except (OkdcError, MemoryError):
        raise
    except Exception as error:  # whatever a network from anywhere raises
        raise CheckFailed(
            "parity",
            f"the student cannot be run in float64, by which parity is measured: {one_line(error)}",
            hint="its forward fixes a type in a way that cannot be changed from outside: let it cast with "
            "tensor.float() or tensor.to(dtype), outside torch.jit.script",
        ) from error
