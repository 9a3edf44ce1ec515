"""What a training step asks of a GPU: kernels, graphs, copies and waits, counted on the device that is not there.

python tests/fakegpu python tests/launches.py                                      # the default recipe, eager
python tests/fakegpu python tests/launches.py cifar10_resnet20 method.name=fefr \\
    'cohort.students=["resnet32","resnet32"]' --batch 128 --dtype bfloat16 --compile off
python tests/fakegpu python tests/launches.py cifar10_resnet20 --compile on --graph on --top 30
python tests/fakegpu python tests/launches.py cifar10_resnet20 --by operation          # the operations that launch them

No data set is needed: images are random. The step counted is the fifth; kernels are chosen, compiled and recorded in
those before. A step has three parts: the batch (crop, mirroring, normalisation), the step itself (forward, backward,
optimiser), and what the loop counts of it. Nothing is said of time. A wait in the step is an error.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import fakegpu
import torch
from fakegpu.counting import Counts
from harness import no_waiting
from torch.utils._python_dispatch import TorchDispatchMode

from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.bench.okdc_step import random_images
from okdc.data.augmentation import Augmentation, Examples
from okdc.data.batches import Normalise, TrainBatches
from okdc.methods.base import Batch
from okdc.recipe.draft import load
from okdc.recipe.schema import Engine
from okdc.training import device
from okdc.training.metrics import Totals
from okdc.training.recording import CountedStep
from okdc.training.step import TrainStep

WARM = 4  # steps before the one that is counted
WIDTH = 110  # characters of a kernel's name


class ByOperation(TorchDispatchMode):
    """Counts the launches of each operation that torch dispatches, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = fakegpu.counts().launches.total()
        result = func(*args, **(kwargs or {}))
        if launches := fakegpu.counts().launches.total() - before:
            self.launches[str(func)] += launches
            self.calls[str(func)] += 1
        return result


class Launches(NamedTuple):
    """The counts of one step, by its parts."""

    parts: dict[str, Counts]
    operations: ByOperation | None  # of the whole step, where they were asked for
    memory_mib: int  # the most that torch held

    @property
    def eager(self) -> int:
        """Launches one by one, of all parts."""
        return sum(part.launches.total() for part in self.parts.values())

    @property
    def copies(self) -> Counter[str]:
        return sum((part.copies for part in self.parts.values()), Counter[str]())

    @property
    def waits(self) -> Counter[str]:
        return sum((part.waits for part in self.parts.values()), Counter[str]())


def of_step(
    resolved: ResolvedRecipe, settings: device.Settings, classes: int = 10, operations: bool = False
) -> Launches:
    """What a step of a recipe asks of the device once it is warm. Raises RuntimeError where the host waits for it."""
    device.apply(settings, resolved.recipe.deterministic)
    recipe, where = resolved.recipe, settings.torch_device
    method = assembly.assemble(resolved, resolved.classes or classes).method
    steps = WARM + 1
    size, batch_size = recipe.data.image_size, recipe.optim.batch_size
    dataset = random_images(steps * batch_size, size, resolved.classes or classes).to(where)
    normalise = Normalise((0.5,) * 3, (0.25,) * 3, where, settings.torch_memory_format)
    step = TrainStep(method, recipe.optim, settings)
    step.method.train()
    totals = Totals(where)
    batches = TrainBatches(dataset, batch_size, Augmentation(recipe.augment), normalise, recipe.seed)
    whole = CountedStep(step, batches, recipe.seed, print)
    drawn = whole.inputs(0, 0)
    for number in range(WARM):
        whole(next(drawn), number / steps, totals, number)
    parts: dict[str, Counts] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        fakegpu.reset()
        yield
        parts[name] = fakegpu.counts()

    by_operation = ByOperation() if operations else None
    with no_waiting(), by_operation or nullcontext():
        with part("batch"):
            inputs = next(drawn)
        if whole.recorded:  # batch and totals are in the graph, too
            with part("step"):
                whole(inputs, WARM / steps, totals, WARM)
        else:
            assert isinstance(inputs, Examples)
            with part("step"):
                taken = step(Batch(*inputs), WARM / steps)
            with part("totals"):
                totals.add(taken, inputs.labels, WARM)
    return Launches(parts, by_operation, torch.cuda.max_memory_allocated() >> 20)


def lines(launches: Launches, top: int) -> list[str]:
    """The counts for people: a row for each part, then the kernels that are launched most."""
    rows = [f"{'':10}{'eager':>8}{'graphs':>8}{'in graphs':>11}  copies, waits"]
    for name, part in launches.parts.items():
        copies = [f"{number} {kind} ({part.bytes[kind]:,} bytes)" for kind, number in part.copies.most_common()]
        waits = [f"{number} WAITS in {call}" for call, number in part.waits.most_common()]
        of_graphs = f"{part.graphs['launches']:8,}{part.graphs['nodes']:11,}"
        rows.append(f"{name:10}{part.launches.total():8,}{of_graphs}  {', '.join(copies + waits) or 'none'}")
    launched, nodes = (sum(part.graphs[key] for part in launches.parts.values()) for key in ("launches", "nodes"))
    rows.append(f"{'total':10}{launches.eager:8,}{launched:8,}{nodes:11,}  {launches.copies.total()} copies")
    rows.append(f"most memory held: {launches.memory_mib:,} MiB")
    if operations := launches.operations:
        rows += ["", f"{'launches':>8}{'calls':>8}  operation"]
        rows += [f"{n:8,}{operations.calls[name]:8,}  {name}" for name, n in operations.launches.most_common(top)]
        return rows
    for name, part in launches.parts.items():
        names = part.launches
        rows += ["", f"{name}: {names.total():,} launches of {len(names)} kernels"]
        rows += [f"{number:8,}  {kernel[:WIDTH]}" for kernel, number in names.most_common(top)]
    return rows


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="*", metavar="RECIPE or KEY=VALUE", help="as `okdc distill` takes them")
    parser.add_argument("--batch", type=int, metavar="N", help="images of a step; the recipe's")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--memory-format", default="auto", help="auto, contiguous, channels_last")
    parser.add_argument("--compile", default="off", choices=("on", "off"))
    parser.add_argument("--graph", default="off", choices=("on", "off"), help="whether the step is one CUDA graph")
    parser.add_argument("--by", default="kernel", choices=("kernel", "operation"), help="what is listed; eager only")
    parser.add_argument("--top", type=int, default=14, metavar="N", help="rows of each list")
    options = parser.parse_args(words)
    if not fakegpu.present():
        print("launches are counted on the device that is not there: python tests/fakegpu python tests/launches.py")
        return 2
    overrides = [f"optim.batch_size={options.batch}"] if options.batch else []
    resolved = resolve(load([*options.recipe, *overrides]), needs_data=False)
    engine = Engine(
        device="cuda", dtype=options.dtype, memory_format=options.memory_format,
        compile=options.compile, cuda_graph=options.graph,
    )  # fmt: skip
    settings = device.choose(engine, resolved.recipe.data.image_size)
    recipe = resolved.recipe
    print(
        recipe.method["name"], *resolved.architectures, f"batch {recipe.optim.batch_size}", settings.dtype,
        settings.memory_format, f"compile {settings.compile}", f"graph {settings.cuda_graph}",
        torch.cuda.get_device_name(), sep=", ",
    )  # fmt: skip
    warnings.filterwarnings("ignore", "Synchronization debug mode")  # torch says so once: it misses some waits
    print(*lines(of_step(resolved, settings, operations=options.by == "operation"), options.top), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
