"""The training of a series: one run after the other, each through the one loop, stopped and continued as one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from okdc import signals
from okdc.assembly import reopen
from okdc.assembly.resolve import ResolvedRecipe
from okdc.errors import DeviceError, DiskError, Interrupted, OkdcError, TrainingError
from okdc.progress import EachNoteOnce, Progress
from okdc.recipe.schema import TEACHER, WEIGHTS
from okdc.runs import trust
from okdc.runs.artefacts import ExportCheck, Provenance, Settings
from okdc.runs.provenance import differences
from okdc.runs.run import refuse_taken
from okdc.runs.series import SeriesDir
from okdc.training import cards
from okdc.training import start as starts

ENDED = ("complete", "failed")  # what a failed seed would do again


def start(
    resolved: ResolvedRecipe,
    seeds: tuple[int, ...],
    out: Path | None,
    provenance: Provenance,
    tell: Progress,
    export_check: bool = True,
) -> SeriesDir:
    """Train a resolved recipe once with each seed, in a new directory. Each seed is then complete or failed.

    `export_check`: the students' export is tried before the first seed is trained.

    Raises as `starts.start` does, but for a TrainingError, which ends its seed alone.
    """
    refuse_taken(out)
    tell = EachNoteOnce(tell)
    settings = _settings(resolved)
    provenance = cards.recorded(provenance, torch.device(settings.device))
    begun = datetime.now(UTC).isoformat(timespec="microseconds")
    series = SeriesDir.create(resolved.stem, resolved.recipe, seeds, begun, settings, provenance, out, export_check)
    if note := trust.record(series.path, begun, trust.code_of(resolved.recipe.tables())):
        tell.note(note)
    tell.note(f"series {series.path}: {len(seeds)} seed{'s' if len(seeds) > 1 else ''}")
    try:
        with series.held():
            _train(series, resolved, provenance, tell, None)
    except (Interrupted, DiskError):
        raise
    except OkdcError:  # images that are missing, for example: nothing came of the series
        if not any(series.state_of(seed) for seed in seeds):
            series.discard()
        raise
    return series


def resume(series: SeriesDir, provenance: Provenance, tell: Progress, data_root: str | None = None) -> SeriesDir:
    """Skip the seeds that are complete, continue the one that was interrupted to the bit, start the others.

    Raises as `start`; RunError where another process trains the series, DataError for other images, DeviceError where
    the seeds to come would be trained otherwise than those before.
    """
    tell = EachNoteOnce(tell)
    with series.held():
        states = {seed: series.state_of(seed) for seed in series.seeds()}
        if all(state in ENDED for state in states.values()):
            tell.note(f"{series.path}: no seed is left to train")
            return series
        resolved = reopen.recipe_of(series, data_root)
        for note in resolved.notes:
            tell.note(note)
        missing = [seed for seed, state in states.items() if state is None]
        begun = [seed for seed, state in states.items() if state in ("complete", "resumable")]
        if missing:
            settings = _same_settings(series, resolved)
            for difference in differences(
                series.read_info(), cards.recorded(provenance, torch.device(settings.device))
            ):
                tell.note(f"not exact to the bit: {difference}")
        if missing and begun:  # the seeds to come have to learn from the images of those before
            reopen.data_of(series.run(begun[0]), resolved, tell)
        _train(series, resolved, provenance, tell, data_root)
    return series


def _train(
    series: SeriesDir, resolved: ResolvedRecipe, provenance: Provenance, tell: Progress, data_root: str | None
) -> None:
    """Bring every seed to its end, the failed ones to theirs. Raises Interrupted at a signal, with the way to go on."""
    go_on = f"okdc resume {series.path}"
    with signals.raised():  # between two trainings; the loop, which saves first, notes signals itself
        try:
            for number, seed in enumerate(series.seeds(), 1):
                run, state = series.run(seed), series.state_of(seed)
                if state in ENDED:
                    continue
                tell.note(f"seed {seed}: {number} of {len(series.seeds())}")
                try:
                    if state is None:
                        teacher, export_check = _teacher(series), _export_check(series)
                        same = resolved.with_teacher(teacher) if teacher else resolved
                        same = same.with_weights(weights) if (weights := _weights(series)) else same
                        starts.start(
                            same.with_seed(seed),
                            run.path,
                            provenance,
                            tell,
                            export_check=export_check,
                            streamed=_streamed(series),
                        )
                    else:
                        starts.resume(run, tell, data_root)
                except TrainingError as error:  # the run remembers it; other seeds may do better
                    tell.note(f"seed {seed} failed: {error.message}")
        except Interrupted as error:
            raise Interrupted(error.message, exit_code=error.exit_code, hint=go_on, run=series.path) from None
        except KeyboardInterrupt as stop:  # between two trainings: nothing of either is lost
            signal = signals.signal_of(stop)
            message = f"{signal.name}: {series.path} can be continued"
            raise Interrupted(message, exit_code=128 + signal, hint=go_on, run=series.path) from None
        except DiskError as error:
            raise DiskError(error.message, hint=f"free some space, then: {go_on}") from error


def _teacher(series: SeriesDir) -> str | None:
    """The hash of the teacher that the seeds before had, so that another in its place is refused."""
    begun = [series.run(seed).read_recipe() for seed in series.seeds() if series.state_of(seed) is not None]
    return next((recipe["method"][TEACHER] for recipe in begun if TEACHER in recipe["method"]), None)


def _weights(series: SeriesDir) -> tuple[str, ...] | None:
    """The hashes of the weights that the seeds before started from, so that others in their place are refused."""
    begun = [series.run(seed).read_recipe() for seed in series.seeds() if series.state_of(seed) is not None]
    return next((tuple(recipe["cohort"][WEIGHTS]) for recipe in begun if WEIGHTS in recipe["cohort"]), None)


def _streamed(series: SeriesDir) -> bool | None:
    """Whether the images of the seeds before stayed in their files. None: it is to be decided."""
    begun = [series.run(seed).read_info() for seed in series.seeds() if series.state_of(seed) is not None]
    return next((info.streamed for info in begun), None)


def _export_check(series: SeriesDir) -> ExportCheck | None:
    """What is known of the students' export: the seeds before have the same students. None: it is to be tried."""
    if not series.read_info().export_check:
        return "skipped"
    begun = [series.run(seed).read_info() for seed in series.seeds() if series.state_of(seed) is not None]
    return next((info.export_check for info in begun), None)


def _settings(resolved: ResolvedRecipe) -> Settings:
    """The settings that change the weights. The number of workers that decode images is none of them."""
    return Settings.model_validate(starts.settings_of(resolved, resolved.recipe.engine).saved())


def _same_settings(series: SeriesDir, resolved: ResolvedRecipe) -> Settings:
    """The settings of the seeds to come. Raises DeviceError where those before had others: no repetitions."""
    settings = _settings(resolved)
    then, now = dict(series.read_info().settings), dict(settings)
    other = [f"{name} {now[name]} now, {then[name]} when it began" for name in now if now[name] != then[name]]
    if other:
        threads = f"OMP_NUM_THREADS={then['threads']} " if now["threads"] != then["threads"] else ""
        raise DeviceError(
            f"{series.path}: the seeds to come would be trained otherwise: {'; '.join(other)}",
            hint=f"continue it where it began, or as there: {threads}okdc resume {series.path}",
        )
    return settings
