"""One training step: every student and the fused classifier forward, one backward, one optimiser. No host read.

The loop repeats it and `okdc bench` times it. What runs is the method itself, or the method compiled, or either inside
torch's DistributedDataParallel; what is saved and judged is always the method, under its own names.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from okdc import kernels, launches, torch_errors
from okdc.assembly.beginnings import Finetuned
from okdc.distributed import ALONE, Ranks
from okdc.errors import DeviceError, OkdcError, TrainingError, one_line
from okdc.methods import METHODS
from okdc.methods.base import Batch, Method, Step
from okdc.recipe.schema import Optim
from okdc.training import compiling, optim
from okdc.training import synchronised as synced
from okdc.training.averaging import Average
from okdc.training.device import Settings
from okdc.training.finetuning import Backbones
from okdc.training.scaling import Scaler

FIRST = 3  # steps that may fail to compile, or show what else cannot work


class TrainStep:
    """A method on its device, its optimiser, and the step that both take together."""

    def __init__(
        self,
        method: Method,
        recipe: Optim,
        settings: Settings,
        ranks: Ranks = ALONE,
        steps: float = math.inf,
        finetuned: Sequence[Finetuned] = (),
    ) -> None:
        """Modules move in place. The memory format is final before the optimiser exists: its fused kernel walks raw
        memory. `steps` is the number of the whole training's, which the schedule needs. `finetuned` are the students
        whose backbones do not learn as all else does.
        """
        if settings.sync_batchnorm and not ranks.alone:
            synced.convert(method)
        if settings.device == "cpu" and settings.dtype == "bfloat16":
            kernels.for_bfloat16(method)
        self.method = method.to(settings.torch_device)
        kernels.lay_out(self.method, settings.torch_memory_format)
        self.backbones = Backbones(finetuned)
        self.optimizer = optim.build_optimizer(method, recipe, self.backbones.parameters)
        self.scaler = Scaler(self.optimizer, settings.torch_device) if settings.dtype == "float16" else None
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.recipe, self.settings, self.ranks, self.steps = recipe, settings, ranks, steps
        self.progress = torch.zeros((), device=settings.torch_device)
        self.rates = optim.Rates(self.optimizer, settings.torch_device)
        self.average = Average(method, recipe.ema) if recipe.ema else None
        eager = self.progress.is_cuda and not settings.compiled  # a compiler does the same in its own way
        self.counts = launches.BatchCounts(method) if eager else None
        # Several processes send gradients while the backward pass goes on: casts at its end would leave none to send.
        cast = eager and ranks.alone and settings.dtype != "float32"
        self.casts = launches.Casts(method, settings.torch_dtype) if cast else None
        self.without_compiler: Callable[[Settings], None] = lambda _: None  # called where it fails and is done without
        self._run: nn.Module | None = None
        self._taken = 0

    def state(self) -> dict[str, Any]:
        """Every tensor that the next step depends on."""
        scaler = {"scaler": self.scaler.state()} if self.scaler else {}
        average = {"average": self.average.state()} if self.average else {}
        return {"method": self.method.state_dict(), "optimizer": self.rates.state(), **scaler, **average}

    def load(self, state: dict[str, Any]) -> None:
        """Take what `state` gave, before the first step."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler:
            self.scaler.load(state["scaler"])
        if self.average:
            self.average.load(state["average"])
        optim.assert_same_strides(self.optimizer)

    def begin(self, epoch: int) -> str:
        """Set the method to training, with its backbones fixed in the first epochs.

        Returns a sentence where it computes something else, or other parameters learn, than in the step before: the
        next steps are then first steps. Else "".
        """
        self.method.train()
        said = [self._backbones_say(epoch)] if self.backbones.set(fixed=epoch < self.recipe.freeze_epochs) else []
        said.append(self._method_says(epoch))  # last: what it fixes stays fixed
        changed = "; ".join(filter(None, said))
        # Also where a checkpoint is from just before.
        if self.method.by_epoch or (self.recipe.freeze_epochs and not self.backbones.fixed):
            optim.begin_momenta(self.optimizer)
        if not changed:
            return ""
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel waits for the gradients that it knew when it was made. Two of them must not be there.
        self._run, self._taken = None, 0
        if not self.ranks.alone:
            gc.collect()
        return changed

    def _method_says(self, epoch: int) -> str:
        """Raises TrainingError where the `begin` of a method from outside okdc does not work."""
        name = self.method.config.name
        try:
            said = self.method.begin(epoch / self.recipe.epochs)
            if not isinstance(said, str):
                raise TypeError(f"expected a sentence or '' from it, found {said!r}")
        except Exception as error:
            if isinstance(error, OkdcError) or name in METHODS.own:
                raise
            raise TrainingError(
                f"method.name={name}: begin raised {one_line(error)}", hint="--debug shows where"
            ) from error
        return said

    def _backbones_say(self, epoch: int) -> str:
        if self.backbones.fixed:
            return f"the backbones are fixed up to epoch {self.recipe.freeze_epochs}: heads and all else learn"
        return f"the backbones learn from epoch {epoch + 1} on"

    def __call__(self, batch: Batch, done: float) -> Step:
        """Learn from a batch, when the fraction `done` of the training is over.

        Where the first steps show that it cannot be compiled, it goes on without if the settings allow that. Otherwise
        it raises DeviceError then, or where a deterministic kernel is missing; TrainingError where a method from
        outside okdc does not work.
        """
        if self._taken >= FIRST:
            return self._learn(batch, done)
        try:
            return self._learn(batch, done)
        except Exception as error:
            if explained := self._explain(error):
                raise explained from error
            raise

    def _explain(self, error: Exception) -> OkdcError | None:
        """The error that the user is shown for an error of a first step, or None where it is shown as it is."""
        if self.settings.compiled and torch_errors.not_compilable(error):
            return DeviceError(
                f"the training step cannot be compiled: {compiling.in_a_line(error)}",
                hint="a new run with --compile off trains without",
            )
        if operator := torch_errors.without_deterministic_kernel(error):
            return DeviceError(
                f"deterministic=true: {operator} does not have a deterministic implementation",
                hint="a new run without it, or other students",
            )
        of_machine = (
            torch_errors.out_of_memory(error) or torch_errors.worker_died(error) or torch_errors.peer_lost(error)
        )
        name = self.method.config.name
        if isinstance(error, OkdcError) or of_machine or name in METHODS.own:
            return None
        return TrainingError(f"method.name={name}: forward raised {one_line(error)}", hint="--debug shows where")

    def _learn(self, batch: Batch, done: float) -> Step:
        self.set_time(done)
        return self.compute(batch)

    def set_time(self, done: float) -> None:
        """Set what of a step follows from the fraction `done` of the training: ramp and learning rate."""
        self.progress.fill_(done)  # one tensor for all steps: a number would be compiled anew at each
        self.rates.set(optim.rate(self.recipe, done, self.steps))

    def compute(self, batch: Batch) -> Step:
        """Everything that the device does in a step."""
        step = self._tried(batch) if self._taken < FIRST and self._may_fall_back else self._gradients(batch)
        self.backbones.put_back()
        if self.recipe.clip:
            if self.scaler:
                self.scaler.unscale()
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)  # one norm over all: parts keep their ratio
        if not self._taken:
            optim.assert_same_strides(self.optimizer)
        (self.scaler or self.optimizer).step()
        with torch.no_grad():
            self.method.after_step()
        if self.average:
            self.average.update()
        self._taken += 1
        return step

    def _gradients(self, batch: Batch) -> Step:
        """Forward and backward. Weights and momenta stay; buffers and random numbers move on."""
        self.optimizer.zero_grad(set_to_none=True)  # here, and their memory is free for the maps
        with self.settings.autocast(), self.casts.applied() if self.casts else nullcontext():
            step: Step = self._runner()(batch, self.progress)
        if self.counts:
            self.counts.add()
        if not self._taken:
            self.method.check_step(step)
        loss = torch.stack(list(step.losses.values())).sum()
        if self.scaler:
            loss = self.scaler.scale(loss)
        loss.backward()  # one for all students: detached teachers keep each gradient where it belongs
        return step

    def forget(self) -> None:
        """Drop what a step has left behind that was recorded and did not come to its end."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.counts:
            self.counts.forget()
        if self.scaler:
            self.scaler.forget()

    @property
    def _may_fall_back(self) -> bool:
        """Not where the processes exchange anything in a forward pass: one that fails leaves the others in there."""
        shared = synced.has_shared_buffers(self.method)
        exchange = self.settings.sync_batchnorm or shared or self.method.exchanges
        return self.settings.may_fall_back and (self.ranks.alone or not exchange)

    def _tried(self, batch: Batch) -> Step:
        """`_gradients`, by all processes without the compiler from here on where it fails in one of them.

        Several processes try it without any exchange first, in which those that succeed would wait for the others.
        """
        before, step, failure = compiling.Before(self.method), None, ""
        run = self._runner()
        try:
            with run.no_sync() if isinstance(run, DistributedDataParallel) else nullcontext():
                step = self._gradients(batch)
        except Exception as error:
            if not torch_errors.not_compilable(error):
                raise
            failure = compiling.in_a_line(error)  # the error itself holds every tensor of the attempt
        failures = self.ranks.gathered(failure)
        if step is not None and self.ranks.alone:
            return step
        before.restore()
        if reason := next(filter(None, failures), ""):
            settings = compiling.without(self.settings, reason)
            self.without_compiler(settings)
            self.settings = settings
            if isinstance(run, DistributedDataParallel):
                run.module = self.method
            else:
                self._run = self.method
        return self._gradients(batch)

    def _runner(self) -> nn.Module:
        """The module that a step calls, built when all weights are in place: DDP sends rank 0's to all ranks."""
        if self._run is None:
            self._run = compiled(self.method) if self.settings.compiled else self.method
            if not self.ranks.alone:
                gpu = [self.ranks.local] if self.settings.cuda else None
                self._run = DistributedDataParallel(
                    self._run,
                    device_ids=gpu,
                    forward_sync_buffers=synced.has_shared_buffers(self.method),
                    gradient_as_bucket_view=True,  # and no gradient lies in memory twice
                )
                if gpu is None and self.ranks.count > 2:  # two numbers have one sum
                    # By a lambda: the wrapper reads annotations, and would take these for text.
                    self._run.register_comm_hook(None, lambda _, bucket: synced.mean_in_order(self.ranks, bucket))
        return self._run

    def share_statistics(self) -> None:
        """Give every process the first one's batch statistics: in training each has those of its own images."""
        if not self.ranks.alone:
            for buffer in (*self.method.buffers(), *(self.average.statistics() if self.average else ())):
                torch.distributed.broadcast(buffer, 0)


def compiled(method: Method) -> nn.Module:
    """The method through torch.compile, for batches of one shape. The method itself stays as it is."""
    compiling.quiet()
    run: nn.Module = torch.compile(method, dynamic=False)  # type: ignore[assignment]
    return run
