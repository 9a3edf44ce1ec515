"""How a training begins: with a recipe, or where a run was interrupted.

    start()   a recipe becomes a run: cohort, method, a trial of the export, data, a fresh directory, then the loop
    resume()  a run's directory becomes the same again, from its last checkpoint, then the loop

Order of a start, on which exactness rests: students (each from its own stream) and method, images, device and memory
format, optimiser, checkpoint. Global generators are seeded anew for each student and for each step (`okdc.seeds`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from okdc.assembly import job as assembly
from okdc.assembly import reopen
from okdc.assembly.job import Job
from okdc.assembly.resolve import ResolvedRecipe
from okdc.assembly.weights import Loaded, places
from okdc.cohort import Cohort
from okdc.data import memory
from okdc.data.datasets import Dataset
from okdc.distributed import ALONE, Ranks
from okdc.errors import DeviceError, RecipeError, RunError
from okdc.progress import Progress
from okdc.recipe.schema import Engine
from okdc.runs import trust
from okdc.runs.artefacts import ExportCheck, Provenance, RunInfo, RunSettings
from okdc.runs.log import log_bytes
from okdc.runs.provenance import differences, provenance
from okdc.runs.run import RunDir, refuse_taken
from okdc.tracking import trackers
from okdc.training import cards, checkpoint, compiling, computable, device, exportable, loop, recording
from okdc.training.checkpoint import Position
from okdc.training.device import Settings
from okdc.training.interrupts import continuable


def start(
    resolved: ResolvedRecipe,
    out: Path | None,
    made_by: Provenance,
    tell: Progress,
    ranks: Ranks = ALONE,
    export_check: ExportCheck | None = None,
    streamed: bool | None = None,
) -> RunDir:
    """Train a recipe from scratch in a new run directory. Returns the run, complete.

    `export_check` is what is known of the students' export: "skipped" leaves the trial out, None asks for it.
    `streamed`: whether image files stay files, where another run has decided that.
    """
    recipe = resolved.recipe
    settings = settings_of(resolved, recipe.engine, ranks)
    with ranks.joined(settings.device):
        ranks.first_does(lambda: refuse_taken(out))
        room = ranks.first_does(partial(memory.room, ranks.here))  # before any process has read an image

        def read() -> Dataset:
            with tell.reading() as progress:
                return assembly.dataset(resolved, progress, streamed, room)

        def images() -> Dataset:
            dataset = ranks.in_turn(read)
            ranks.agree("the images", dataset.fingerprint)
            return dataset

        def check(cohort: Cohort, classes: int) -> None:
            nonlocal export_check, settings
            ask = partial(exportable.check, cohort.backbones(), recipe.data.image_size, classes, resolved.place)
            export_check = ranks.first_does(lambda: ask(export_check, tell))
            settings = ranks.first_does(partial(computing, resolved, settings, cohort))

        ranks.agree("the recipe's keys", recipe.sha256())
        job = assembly.job(resolved, images, check, partial(_weights, ranks))
        assert export_check is not None
        settings = decided(settings, job, ranks)
        info = RunInfo(
            schema=1,
            recipe=job.recipe.tables(),
            recipe_sha256=job.recipe.sha256(),
            data_sha256=job.dataset.fingerprint,
            classes=job.dataset.classes,
            skipped_images=job.dataset.skipped,
            streamed=job.dataset.files is not None,
            export_check=export_check,
            starts=job.starts,
            started_at=datetime.now(UTC).isoformat(timespec="microseconds"),
            settings=RunSettings.model_validate(settings.saved()),
            reasons=settings.reasons,
            processes=ranks.count,
            processes_here=ranks.here,
            **dict(cards.recorded(made_by, settings.torch_device)),
        )
        run = ranks.first_does(lambda: RunDir.create(resolved.stem, info, out))
        # Here, since all that can be refused before the first step has been: nobody reads settings before an error.
        for note in (*settings.reasons, *job.notes, f"run {run.path}"):
            tell.note(note)
        _trust(run, info, ranks, tell)
        with _held(run, ranks), continuable(run):
            loop.train(job, run, settings, Position(), None, tell, ranks)
    return run


def resume(run: RunDir, tell: Progress, data_root: str | None = None, ranks: Ranks = ALONE) -> RunDir:
    """Continue a run to the bit, with the settings it was started with; what keeps it from being exact is said.

    Raises RunError for a run that failed or that another process trains, DeviceError where this machine lacks its
    device, DataError for other images.
    """
    run_state = run.state()
    if run_state == "complete":
        restored = ranks.first and _restore_log(run)  # the processes are not connected: nothing is left to train
        tell.note(f"{run.path} is complete: " + ("its log is written again" if restored else "nothing to do"))
        return run
    info = run.read_info()
    if run_state == "failed":
        raise RunError(f"{run.path} failed: {info.failed}", hint="it would fail again; start another run")
    resolved = reopen.recipe_of(run, data_root)
    try:
        settings = settings_of(resolved, device.continued(info.settings, ranks), ranks)
    except DeviceError as error:
        raise DeviceError(f"{run.path}: {error.message}", hint="continue it on a machine like its own") from None
    with ranks.joined(settings.device), _held(run, ranks), continuable(run):
        _trust(run, info, ranks, tell)
        ranks.agree("the run's facts", json.dumps(info.to_json(), sort_keys=True))
        if (then := info.processes) != ranks.count:
            before = (*info.processes_before, then)
            now = {"processes": ranks.count, "processes_here": ranks.here, "processes_before": before}
            ranks.first_does(lambda: run.note(**now))
        begins = not ranks.first_does(lambda: checkpoint.is_written(run))
        read = partial(reopen.data_of, run, resolved, tell)
        job = assembly.job(
            resolved, lambda: ranks.in_turn(read), load=partial(_weights_anew, run, ranks), begins=begins
        )
        job = replace(job, starts=info.starts)
        settings = decided(settings, job, ranks)
        state, notes = ranks.first_does(lambda: checkpoint.load(run))
        for note in (*resolved.notes, *_as_started(info, settings, ranks), *notes):
            tell.note(note)
        position = Position()
        if state is None:
            tell.note(f"{run.path}: no checkpoint was written yet, it starts from its first step")
        else:
            position = Position.restored(state, settings.torch_device, ranks)
            tell.note(f"{run.path} continues at epoch {position.epoch + 1}, step {position.step + 1}")
        if ranks.first_does(lambda: run.restore_rows(position.rows)):
            tell.note(f"{run.log} had lost or changed rows: it is written again from the checkpoint")
        loop.train(job, run, settings, position, state, tell, ranks)
    return run


def _weights(ranks: Ranks, resolved: ResolvedRecipe) -> list[Loaded | None]:
    """What the students start from: one process of a machine downloads it."""
    loaded = ranks.in_turn(lambda: assembly.weights_of(resolved))
    ranks.agree("the weights that the students start from", json.dumps([start and start.sha256 for start in loaded]))
    return loaded


def _weights_anew(run: RunDir, ranks: Ranks, resolved: ResolvedRecipe) -> list[Loaded | None]:
    """The same for a run that has no checkpoint yet: where they are missing, nobody can name others."""
    try:
        return _weights(ranks, resolved)
    except (RecipeError, RunError) as error:
        where = ", ".join(map(str, places(resolved.recipe)))
        error.hint = (
            f"{run.path} has no checkpoint yet and starts anew, with the weights it was started with: restore {where}, "
            "then resume; or start another run"
        )
        raise


def _as_started(info: RunInfo, settings: Settings, ranks: Ranks) -> Iterator[str]:
    """The settings of a run that goes on, and what keeps it from being exact."""
    yield "as it was started: " + ", ".join(f"{name} {value}" for name, value in settings.saved().items())
    if (named := info.settings.device) != settings.device:
        yield f"device {settings.device} (it was started on {named}, which cannot be named here)"
    for difference in _differences(info, settings):
        yield f"not exact to the bit: {difference}"
    if (then := info.processes) != ranks.count:
        yield f"not exact to the bit: {then} process{'es' if then > 1 else ''} then, {ranks.count} now"


def settings_of(resolved: ResolvedRecipe, chosen: Engine, ranks: Ranks = ALONE) -> Settings:
    """The choices that a recipe's training takes where `chosen` says, or leaves to be chosen.

    Raises RecipeError for a batch that does not divide, DeviceError for what this machine lacks, UsageError where the
    package of a tracker is not installed.
    """
    recipe = resolved.recipe
    trackers.require(recipe.engine)
    batch = recipe.optim.batch_size
    if batch % ranks.count or batch < 2 * ranks.count:
        raise RecipeError(
            f"optim.batch_size={batch} counts the images of all {ranks.count} processes: expected a multiple of "
            f"{ranks.count}, two images each at least",
            hint="as many processes as divide it; or, in a new run, "
            f"optim.batch_size={ranks.count * max(2, round(batch / ranks.count))}",
        )
    if (recipe.augment.mixup or recipe.augment.cutmix) and batch // ranks.count % 2 and not ranks.alone:
        raise RecipeError(
            f"optim.batch_size={batch} is an odd number of images for each of {ranks.count} processes, and mixup and "
            "cutmix mix neighbours",
            hint=f"in a new run, optim.batch_size={batch + ranks.count}",
        )
    return device.choose(chosen, recipe.data.image_size, recipe.deterministic, ranks)


def computing(resolved: ResolvedRecipe, settings: Settings, cohort: Cohort) -> Settings:
    """The settings with a type that the students can be computed in. Raises RecipeError where another was asked for."""
    recipe = resolved.recipe
    return computable.settled(settings, cohort.backbones(), recipe.data.image_size, recipe.engine.dtype, resolved.place)


def decided(settings: Settings, job: Job, ranks: Ranks = ALONE) -> Settings:
    """The settings with what follows from images and training: workers, whether the step is compiled, and replayed."""
    settings = device.with_workers(settings, job.recipe.engine.workers, job.dataset.files is not None, ranks)
    return recording.decide(ranks.first_does(partial(compiling.decide, settings, job)), job, ranks)


def _differences(info: RunInfo, settings: Settings) -> list[str]:
    """What keeps a continuation on this machine from being exact to the bit."""
    now = cards.recorded(provenance([]), settings.torch_device)
    lines = differences(info, now)
    if info.gpu != now.gpu and device.emulates(settings.device, settings.dtype):
        lines.append(f"bfloat16, which {now.gpu} emulates, slowly; a new run would take float16 there")
    return lines


def _restore_log(run: RunDir) -> bool:
    """Write a complete run's log.jsonl again, where it is not the one that result.json records. Returns whether it was.

    Raises RunError where no checkpoint has the recorded rows.
    """
    try:
        run.rows()
    except RunError as error:
        state, _ = checkpoint.load(run)
        rows = state["rows"] if state else []
        if hashlib.sha256(log_bytes(rows)).hexdigest() != run.read_result().log_sha256:
            raise RunError(error.message, hint="no checkpoint of the run has the recorded rows; restore it") from None
        return run.restore_rows(rows)
    return False


def _trust(run: RunDir, info: RunInfo, ranks: Ranks, tell: Progress) -> None:
    """Remember that this user trains the run here, so that other commands may import the code that it names."""
    if note := ranks.first_does(lambda: trust.record(run.path, info.started_at, trust.code_of(info.recipe))):
        tell.note(note)


@contextmanager
def _held(run: RunDir, ranks: Ranks) -> Iterator[None]:
    """The first process holds the run for all of them."""
    with ExitStack() as stack:
        ranks.first_does(lambda: stack.enter_context(run.held()))
        yield
