"""Training steps as the loop takes them: a batch is made, the method learns from it, the losses are counted.

On one GPU all of that is recorded as a CUDA graph and replayed, so that a step costs the host one launch and not a
thousand. The first steps run as they are: kernels are chosen, the optimiser makes its momenta, a compiler compiles. The
next one is recorded, which runs nothing, and replayed at once; so is every one after it. The kernels are the same ones.

Outside the graph remain a copy of what was drawn, the ramp, the learning rate and the number of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from okdc import torch_errors
from okdc.assembly.job import Job
from okdc.data.augmentation import Examples
from okdc.data.batches import Drawn, Source
from okdc.distributed import Ranks
from okdc.errors import DeviceError, one_line
from okdc.methods import METHODS
from okdc.methods.base import Batch
from okdc.seeds import seeded
from okdc.training.device import Settings
from okdc.training.metrics import Totals, accumulate
from okdc.training.step import TrainStep

Inputs = Examples | Drawn  # of a step
WARM = 3  # steps before the one that is recorded
LIBRARIES = ("okdc", "torch", "torchvision", "timm", "_operator", "builtins", "math")


def decide(settings: Settings, job: Job, ranks: Ranks) -> Settings:
    """The settings with `cuda_graph` on or off, and the reason at the end of the reasons, on a GPU alone.

    Raises DeviceError where it was asked for and cannot be.
    """
    chosen, reason = _choose(settings, job, ranks)
    if settings.cuda_graph == "on" and chosen == "off":
        raise DeviceError(f"engine.cuda_graph=on: {reason}", hint="leave engine.cuda_graph to auto")
    reasons = (*settings.reasons, f"CUDA graph {chosen} ({reason})") if settings.cuda else settings.reasons
    return replace(settings, cuda_graph=chosen, reasons=reasons)


def _choose(settings: Settings, job: Job, ranks: Ranks) -> tuple[str, str]:
    if not settings.cuda:
        return "off", "only a GPU replays a step"
    if not ranks.alone:
        return "off", "the processes exchange gradients within a step"
    if settings.cuda_graph != "auto":
        return settings.cuda_graph, "as asked"
    if foreign := _foreign(job):
        return "off", f"{foreign} may decide anew in Python at each step"
    return "on", "one launch a step"


def _foreign(job: Job) -> str:
    """The first part of a job that holds Python of somebody else, as a name.

    A network that okdc has traced still calls the layers that were kept as their author wrote them, and all hooks.
    """
    if (name := job.recipe.method["name"]) not in METHODS.own:
        return f"method.name={name}"
    for network in job.method.cohort.backbones():
        if not _known(type(network)):
            return network.architecture
        for path, layer in network.named_modules():
            hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
            if not _known(type(layer)) or not all(_known(hook) for group in hooks for hook in group.values()):
                return f"{network.architecture}: {path} ({type(layer).__name__})"
            nodes = layer.graph.nodes if isinstance(layer, fx.GraphModule) else ()
            if other := [node for node in nodes if node.op == "call_function" and not _known(node.target)]:
                return f"{network.architecture}: {other[0].name}"
        for path, parameter in network.named_parameters():
            if parameter._backward_hooks:
                return f"{network.architecture}: a hook of {path}"
    return ""


def _known(code: object) -> bool:
    """Whether a class, a hook or a function is of a library whose layers decide nothing in Python from step to step."""
    module: str = getattr(code, "__module__", None) or type(code).__module__
    return module.partition(".")[0] in LIBRARIES


class CountedStep:
    """The step of a training, with the batches that it is made of and the sums that it is counted in."""

    def __init__(self, step: TrainStep, batches: Source, seed: int, say: Callable[[str], object]) -> None:
        """`say` is given the reason where a GPU's steps are not recorded after all."""
        self.step, self.batches, self.seed, self.say = step, batches, seed, say
        self.recorded = step.settings.cuda_graph == "on"
        self._taken = 0
        self._recording: Recording | None = None
        self._names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # of terms and heads

    def begin(self, epoch: int) -> str:
        """As `TrainStep.begin`. Where the steps are others from here on, the step is recorded anew."""
        if changed := self.step.begin(epoch):
            self._recording, self._taken = None, 0
        return changed

    def inputs(self, epoch: int, start: int) -> Iterator[Inputs]:
        """What each step of an epoch takes, from step `start` on: examples, or what they are made of."""
        return self.batches.drawn(epoch, start) if self.recorded else self.batches.epoch(epoch, start)

    def __call__(self, inputs: Inputs, done: float, totals: Totals, number: int) -> None:
        """Take one step, when the fraction `done` of the training is over. `number` is its place in the whole run.

        Dropout draws by that number, so that a step can be repeated. Raises as TrainStep does.
        """
        ranks, device = self.step.ranks, self.step.settings.torch_device
        with seeded(self.seed, "step", number, ranks.rank, device=device):
            self._take(inputs, done, totals, number)

    def _take(self, inputs: Inputs, done: float, totals: Totals, number: int) -> None:
        if isinstance(inputs, Examples):
            examples = inputs
        else:
            if self._taken == WARM:
                self._recording = self._try_to_record(inputs)
            self._taken += 1
            if self._recording is not None:
                self.step.set_time(done)
                self._recording.replay(inputs, totals, number)
                return
            examples = self.batches.made(*inputs)
        totals.add(self.step(Batch(*examples), done), examples.labels, number)
        self._names = totals.terms, totals.heads

    def close(self) -> None:
        """Give back the memory of the recording, which holds all maps of a step. Steps after that are eager."""
        self._recording = None
        self.step.optimizer.zero_grad(set_to_none=True)  # the gradients lie there, too

    def _try_to_record(self, inputs: Drawn) -> Recording | None:
        """A recording of the step. None where it cannot be recorded: nothing has run then, and nothing changed."""
        try:
            return Recording.of(self.step, self.batches, inputs, *self._names)
        except RuntimeError as error:
            self.step.forget()
            if torch_errors.out_of_memory(error):
                reason = "the GPU's memory does not hold it"
            elif torch_errors.not_compilable(error):
                first = error.__context__  # the end of a recording complains of an error within it, and says no more
                reason = one_line(first if isinstance(first, RuntimeError) else error)
            else:
                raise
        self.say(f"the step is not replayed as a CUDA graph: {reason}")
        return None


@dataclass(frozen=True)
class Recording:
    """A recorded step: the graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Drawn
    number: Tensor  # 0-d int64
    totals: Totals
    images: int  # of a step

    @classmethod
    def of(
        cls, step: TrainStep, batches: Source, inputs: Drawn, terms: tuple[str, ...], heads: tuple[str, ...]
    ) -> Recording:
        """Record a step from what one takes. Its kernels do not run."""
        device = step.settings.torch_device
        own = tuple(torch.empty_like(tensor, device=device) for tensor in inputs)
        number, sums = torch.zeros((), dtype=torch.int64, device=device), Totals(device)
        sums.begin(terms, heads)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that pins what was decoded, may call CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            examples = batches.made(*own)
            accumulate(step.compute(Batch(*examples)), examples.labels, number, sums.sums, sums.bad)
        return cls(graph, own, number, sums, len(examples.labels))

    def replay(self, inputs: Drawn, totals: Totals, number: int) -> None:
        """Take a step and count it in `totals`, which from then on share the recording's tensors."""
        if totals.sums is not self.totals.sums:  # of another epoch than the step before
            totals.move(self.totals)
        for own, tensor in zip(self.inputs, inputs, strict=True):
            own.copy_(tensor, non_blocking=True)
        self.number.fill_(number)
        self.graph.replay()
        totals.took(self.images)
