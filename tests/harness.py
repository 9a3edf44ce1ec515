"""What the tests of the training share: a recipe of a second, a quiet progress, and what of a run may be compared."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making import run_info
from safetensors.torch import save_file

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly.job import Job
from okdc.assembly.origins import Origin
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.assembly.weights import Loaded
from okdc.backbones.pretrained import Facts
from okdc.progress import Progress
from okdc.recipe.draft import load
from okdc.runs.artefacts import ExportCheck, Provenance, RunSettings
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.runs.series import SeriesDir
from okdc.training import checkpoint, device, loop
from okdc.training import series as training
from okdc.training import start as starts
from okdc.training.checkpoint import Position

TEXT = """
[data]
name = "digits"
image_size = 8
train_images = 50
val_fraction = 0.05

[augment]
padding = 1

[cohort]
students = ["resnet8", "resnet8"]
share = "low"

[method]
name = "fefr"

[optim]
epochs = 3
batch_size = 16
lr = 0.05

[engine]
device = "cpu"
dtype = "float32"
threads = 1
"""
STEPS, EPOCHS = 3, 3  # of that recipe: 50 images are three whole batches of 16 and two images left over
CALLS = EPOCHS * (STEPS + 1)  # of the progress bar: after every step, and after every epoch's checkpoint


def built(resolved: ResolvedRecipe) -> Job:
    """A recipe's images and method, ready to be trained."""
    return assembly.job(resolved, lambda: assembly.dataset(resolved))


@contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where the host would wait for the GPU."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Quiet(Progress):
    """Keeps the notes and the counts of the progress bar, and calls `at` with the number of each call of the bar."""

    def __init__(self, at: Callable[[int], None] | None = None) -> None:
        self.notes: list[str] = []
        self.counts: list[tuple[int, int]] = []
        self.at = at

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def training(self) -> Iterator[Callable[[int, int, str], None]]:
        def bar(done: int, total: int, text: str) -> None:  # noqa: ARG001
            self.counts.append((done, total))
            if self.at:
                self.at(len(self.counts))

        yield bar


def signalled(call: int, number: signal.Signals) -> Quiet:
    """A progress through which this process signals itself at one call of the bar."""
    return Quiet(lambda now: os.kill(os.getpid(), number) if now == call else None)


def write_recipe() -> Path:
    path = Path("tiny.toml")
    path.write_text(TEXT, encoding="utf-8")
    return path


def recipe(*words: str) -> ResolvedRecipe:
    """The recipe above with overrides, resolved."""
    return resolve(load([str(write_recipe()), *words]))


def start(
    *words: str, tell: Quiet | None = None, out: Path | None = None, export_check: ExportCheck | None = None
) -> RunDir:
    tables = replace(recipe(*words), stem="tiny")
    return starts.start(tables, out, Provenance(), tell or Quiet(), export_check=export_check)


def begun_elsewhere(patch: pytest.MonkeyPatch, labels: Sequence[str], sha256s: Sequence[str], *words: str) -> Job:
    """The job of a recipe whose students start from a network that told these ten classes apart, 8×8 pixels.

    Its head is given back where they are not the digits. `sha256s`: of each student's weights, as if read from a file.
    """
    torch.manual_seed(4)
    network = backbones.build("resnet8", 10, torch.Size((3, 8, 8)))
    save_file(network.weights(), "w.safetensors")
    origin = Origin("w.safetensors", Facts(classes=10, labels=tuple(labels)))
    loaded = [Loaded(origin, sha256, network.weights()) for sha256 in sha256s]
    patch.setattr(assembly, "weights_of", lambda _: loaded)
    return built(recipe(*words, "cohort.weights=w.safetensors"))


def resume(path: Path, tell: Quiet | None = None) -> RunDir:
    return starts.resume(RunDir.open(path), tell or Quiet())


def train(job: Job, tell: Quiet | None = None, name: str = "held") -> RunDir:
    """Train a job that the test holds in its hands: its method can be watched and looked at afterwards."""
    settings = starts.decided(device.choose(job.recipe.engine, job.recipe.data.image_size), job)
    info = run_info(
        recipe=job.recipe.tables(),
        classes=job.dataset.classes,
        data_sha256=job.dataset.fingerprint,
        settings=RunSettings.model_validate(settings.saved()),
    )
    run = RunDir.create(name, info)
    loop.train(job, run, settings, Position(), None, tell or Quiet())
    return run


# ---------------------------------------------------------------------------------------------------------------------
# What two equal runs have in common


def rows(run: RunDir) -> list[dict[str, Any]]:
    """The log without its times."""
    return [_timeless(row) for row in run.rows()]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("seconds")}


def result(run: RunDir) -> dict[str, Any]:
    """result.json without its times."""
    times = ("seconds", "images_per_s", "log_sha256", "sha256")  # the hashes are of times, too
    return {key: value for key, value in read_json(run.result).items() if key not in times}


def outcome(run: RunDir) -> dict[str, Any]:
    """The log, the numbers, every student and the state of every module and of the optimiser, to the bit."""
    state, _ = checkpoint.load(run)
    assert state is not None
    return {
        "rows": rows(run),
        "result": result(run),
        "weights": hashlib.sha256(run.weights.read_bytes()).hexdigest(),
        "student": read_json(run.student),
        "others": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.students.glob("*")},
        "state": digest(_timeless(state) | {"rows": [_timeless(row) for row in state["rows"]]}),
    }


def digest(thing: Any) -> Any:
    """Nested state, each tensor replaced by its type, its layout and a hash of its bytes."""
    if isinstance(thing, torch.Tensor):
        content = thing.detach().cpu().contiguous().numpy().tobytes()
        return (str(thing.dtype), tuple(thing.shape), thing.stride(), hashlib.sha256(content).hexdigest())
    if isinstance(thing, dict):
        return {key: digest(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [digest(value) for value in thing]
    return thing


@functools.cache
def uninterrupted(*words: str) -> dict[str, Any]:
    """The outcome of the recipe in one go, trained once for all tests of a process."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        return outcome(start(*words))


# ---------------------------------------------------------------------------------------------------------------------
# Death


def in_child(die_at: int | None, after_s: float | None, path: Path, *words: str) -> int:
    """Start or resume the run at `path` in a process of its own; its exit code, -9 for one that was killed.

    It is killed as a power cut would: before its `die_at`th write or rename reaches the disk, or after `after_s`.
    """
    return in_process(_child, (die_at, path.absolute(), words), after_s)


def series_in_child(die_at: int, path: Path, seeds: tuple[int, ...]) -> int:
    """The same of a series."""
    return in_process(_series_child, (die_at, path.absolute(), seeds), None)


def in_process(target: Callable[..., None], args: tuple[object, ...], after_s: float | None = None) -> int:
    """`target` is of this module: a child finds those of test modules only where the checkout is on its path."""
    context = multiprocessing.get_context("forkserver")
    # A child starts in no time where all that a training imports, in the end, is there.
    context.set_forkserver_preload(["okdc.training.series", "torch._dynamo"])
    process = context.Process(target=target, args=args)
    process.start()
    process.join(after_s)
    if process.is_alive() and after_s is not None:
        process.kill()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def _child(die_at: int | None, path: Path, words: tuple[str, ...]) -> None:
    _mortal(die_at, path.parent)
    if (path / "run.json").exists():
        resume(path)
    else:
        start(*words, out=path)


def _series_child(die_at: int, path: Path, seeds: tuple[int, ...]) -> None:
    _mortal(die_at, path.parents[1])
    if SeriesDir.is_at(path):
        training.resume(SeriesDir.open(path), Provenance(), Quiet())
    else:
        training.start(recipe(), seeds, path, Provenance(), Quiet())


def _mortal(die_at: int | None, folder: Path) -> None:
    """Let this process, in `folder`, die before its `die_at`th write or rename."""
    torch.set_num_threads(1)
    os.chdir(folder)
    left = die_at or 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return wrapped

    os.fsync = deadly(os.fsync)
    Path.replace = deadly(Path.replace)  # type: ignore[method-assign]
