"""The training of a series: one run after the other, each through the one loop, stopped and continued as one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from okdc import signals
from okdc.assembly import reopen
from okdc.errors import DeviceError, DiskError, Interrupted, OkdcError, TrainingError
from okdc.progress import EachNoteOnce, Progress
from okdc.recipe.schema import TEACHER, Recipe, read
from okdc.runs.provenance import differences
from okdc.runs.run import Run, refuse_taken
from okdc.runs.series import Series
from okdc.training import start as starts

ENDED = ("complete", "failed")  # what a failed seed would do again


def start(
    recipe: Recipe, seeds: tuple[int, ...], stem: str, out: Path | None, provenance: dict[str, Any], tell: Progress
) -> Series:
    """Train a resolved recipe once with each seed, in a new directory. Each seed is then complete or failed.

    Raises as `starts.start` does, but for a TrainingError, which ends its seed alone.
    """
    refuse_taken(out)
    tell = EachNoteOnce(tell)
    settings = _settings(recipe)
    begun = datetime.now(UTC).isoformat(timespec="microseconds")
    series = Series.create(stem, recipe, seeds, {"started_at": begun, "settings": settings, **provenance}, out)
    tell.note(f"series {series.path}: {len(seeds)} seed{'s' if len(seeds) > 1 else ''}")
    try:
        with series.held():
            _train(series, recipe, provenance, tell, None)
    except (Interrupted, DiskError):
        raise
    except OkdcError:  # images that are missing, for example: nothing came of the series
        if not any(series.state_of(seed) for seed in seeds):
            series.discard()
        raise
    return series


def resume(series: Series, provenance: dict[str, Any], tell: Progress, data_root: str | None = None) -> Series:
    """Skip the seeds that are complete, continue the one that was interrupted to the bit, start the others.

    Raises as `start`; RunError where another process trains the series, DataError for other images, DeviceError where
    the seeds to come would be trained otherwise than those before.
    """
    tell = EachNoteOnce(tell)
    with series.held():
        states = {seed: series.state_of(seed) for seed in series.seeds}
        if all(state in ENDED for state in states.values()):
            tell.note(f"{series.path}: no seed is left to train")
            return series
        recipe, notes = reopen.recipe_of(Run(series.path), data_root)  # a series' recipe lies where a run's does
        for note in notes:
            tell.note(note)
        missing = [seed for seed, state in states.items() if state is None]
        begun = [seed for seed, state in states.items() if state in ("complete", "resumable")]
        if missing:
            _same_settings(series, recipe)
            for difference in differences(series.facts()):
                tell.note(f"not exact to the bit: {difference}")
        if missing and begun:  # the seeds to come have to learn from the images of those before
            reopen.data_of(series.run(begun[0]), recipe, tell)
        _train(series, recipe, provenance, tell, data_root)
    return series


def _train(series: Series, recipe: Recipe, provenance: dict[str, Any], tell: Progress, data_root: str | None) -> None:
    """Bring every seed to its end, the failed ones to theirs. Raises Interrupted at a signal, with the way to go on."""
    go_on = f"okdc resume {series.path}"
    with signals.raised():  # between two trainings; the loop, which saves first, notes signals itself
        try:
            for number, seed in enumerate(series.seeds, 1):
                series.discard_half(seed)
                run, state = series.run(seed), series.state_of(seed)
                if state in ENDED:
                    continue
                tell.note(f"seed {seed}: {number} of {len(series.seeds)}")
                try:
                    if state is None:
                        one = recipe.model_copy(update={"seed": seed, "method": recipe.method | _teacher(series)})
                        starts.start(one, series.path.name, run.path, provenance, tell)
                    else:
                        starts.resume(run, tell, data_root)
                except TrainingError as error:  # the run remembers it; other seeds may do better
                    tell.note(f"seed {seed} failed: {error.message}")
        except Interrupted as error:
            raise Interrupted(error.message, exit_code=error.exit_code, hint=go_on) from None
        except KeyboardInterrupt as stop:  # between two trainings: nothing of either is lost
            signal = signals.signal_of(stop)
            message = f"{signal.name}: {series.path} can be continued"
            raise Interrupted(message, exit_code=128 + signal, hint=go_on) from None
        except DiskError as error:
            raise DiskError(error.message, hint=f"free some space, then: {go_on}") from error


def _teacher(series: Series) -> dict[str, str]:
    """Which teacher the seeds before had, so that another in its place is refused."""
    for seed in series.seeds:
        if series.state_of(seed) is not None and (known := read(series.run(seed).recipe)["method"].get(TEACHER)):
            return {TEACHER: known}
    return {}


def _settings(recipe: Recipe) -> dict[str, str | int]:
    """The settings that change the weights. The number of workers that decode images is none of them."""
    chosen = starts.settings_of(recipe, recipe.engine).saved()
    return {name: chosen[name] for name in ("device", "dtype", "memory_format", "threads")}


def _same_settings(series: Series, recipe: Recipe) -> None:
    """Raises DeviceError if the seeds to come would be trained with other settings: they would be no repetitions."""
    then, now = series.facts()["settings"], _settings(recipe)
    other = [f"{name} {now[name]} now, {then.get(name)} when it began" for name in now if now[name] != then.get(name)]
    if other:
        threads = f"OMP_NUM_THREADS={then['threads']} " if now["threads"] != then.get("threads") else ""
        raise DeviceError(
            f"{series.path}: the seeds to come would be trained otherwise: {'; '.join(other)}",
            hint=f"continue it where it began, or as there: {threads}okdc resume {series.path}",
        )
