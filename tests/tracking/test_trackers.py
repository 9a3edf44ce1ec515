"""Trackers: what they are told and when, and that nothing they do changes a training."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask
from harness import EPOCHS, STEPS, Quiet, outcome, recipe, resume, start, uninterrupted

from okdc.errors import Interrupted, RecipeError, TrainingError, UsageError
from okdc.progress import WARNING, EachNoteOnce, Row
from okdc.recipe.schema import Recipe
from okdc.runs.artefacts import Provenance
from okdc.runs.run import RunDir
from okdc.training import checkpoint, series
from okdc.training import start as starts


class Tracker(Quiet):
    """Keeps what it is told. It draws random numbers, spoils the rows that it gets, and raises in some methods."""

    def __init__(self, *raising: str, stop_at: int | None = None, error: type[BaseException] = ValueError) -> None:
        super().__init__(lambda now: signal.raise_signal(signal.SIGINT) if now == stop_at else None)
        self.raising, self.error = raising, error
        self.told: list[tuple[Any, ...]] = []

    def begun(self, run: Path, rows: Sequence[Row]) -> None:
        self._told("begun", run, [row["epoch"] for row in rows])
        for row in rows:
            row["losses"].clear()

    def epoch(self, row: Row) -> None:
        self._told("epoch", row["epoch"])
        row["losses"].clear()

    def ended(self, run: Path, state: str) -> None:
        self._told("ended", run, state)

    def _told(self, method: str, *facts: Any) -> None:
        torch.rand(3), random.random(), np.random.rand(3)
        self.told.append((method, *facts))
        if method in self.raising:
            raise self.error(method)

    @property
    def warnings(self) -> list[str]:
        return [note for note in self.notes if note.startswith(WARNING)]


def test_a_training_tells_its_tracker_of_each_epoch_after_its_checkpoint() -> None:
    saved: list[int] = []

    class Saved(Tracker):
        def epoch(self, row: Row) -> None:
            super().epoch(row)
            state, _ = checkpoint.load(RunDir(Path("run")))
            assert state is not None
            saved.append(state["epoch"])

    tracker = Saved()
    run = start(tell=tracker, out=Path("run"))
    epochs = list(range(1, EPOCHS + 1))
    assert tracker.told == [
        ("begun", run.path, []), *(("epoch", epoch) for epoch in epochs), ("ended", run.path, "complete"),
    ]  # fmt: skip
    assert (saved, tracker.warnings) == (epochs, [])
    assert outcome(run) == uninterrupted()


def test_a_tracker_hears_of_a_stop_and_goes_on_from_the_epochs_of_before() -> None:
    tracker = Tracker(stop_at=STEPS + 2)  # in the second epoch
    with pytest.raises(Interrupted):
        start(tell=tracker, out=Path("run"))
    assert tracker.told[-2:] == [("epoch", 1), ("ended", Path("run"), "resumable")]
    tracker = Tracker()
    run = resume(Path("run"), tracker)
    assert tracker.told == [
        ("begun", Path("run"), [1]), ("epoch", 2), ("epoch", 3), ("ended", Path("run"), "complete"),
    ]  # fmt: skip
    assert outcome(run) == uninterrupted()


def test_a_tracker_hears_that_a_training_failed() -> None:
    tracker = Tracker("ended")
    with pytest.raises(TrainingError):
        start("optim.lr=1e30", tell=tracker, out=Path("run"))
    assert tracker.told[-1] == ("ended", Path("run"), "failed")


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_tracker_that_raises_everywhere_changes_nothing_and_warns_once(error: type[BaseException]) -> None:
    tracker = Tracker("begun", "epoch", "ended", error=error)
    run = start(tell=tracker)
    assert [told[0] for told in tracker.told] == ["begun", "epoch", "epoch", "epoch", "ended"]
    (warning,) = tracker.warnings
    assert "Tracker.begun" in warning
    assert error.__name__ in warning
    assert outcome(run) == uninterrupted()


@pytest.mark.parametrize("method", ["note", "training"])
def test_what_else_a_progress_raises_ends_the_training_as_before(method: str) -> None:
    def spoiled(*_: object) -> Any:
        raise ValueError(method)

    tracker = Tracker()
    setattr(tracker, method, spoiled)
    with pytest.raises(ValueError, match=method):
        start(tell=tracker)


def test_each_seed_of_a_series_is_a_training_of_its_own() -> None:
    tracker = Tracker("epoch")
    series.start(recipe("optim.epochs=1"), (0, 1), Path("series"), Provenance(), tracker)
    seeds = [Path("series/seed0"), Path("series/seed1")]
    ends = [("ended", seed, "complete") for seed in seeds]
    assert tracker.told == [
        ("begun", seeds[0], []), ("epoch", 1), ends[0], ("begun", seeds[1], []), ("epoch", 1), ends[1],
    ]  # fmt: skip
    assert len(tracker.warnings) == 1


def test_an_object_with_the_older_methods_alone_is_no_tracker() -> None:
    whole = Quiet()

    class Older:
        note, reading, training, remaining = whole.note, whole.reading, whole.training, whole.remaining

    run = starts.start(recipe(), Path("run"), Provenance(), Older())  # type: ignore[arg-type]
    assert run.state() == "complete"
    assert not [note for note in whole.notes if note.startswith(WARNING)]


def test_a_wrapper_passes_the_three_methods_on() -> None:
    tracker = Tracker()
    once = EachNoteOnce(tracker)
    once.begun(Path("run"), [])
    once.epoch({"epoch": 1, "losses": {}})
    once.ended(Path("run"), "failed")
    assert [told[0] for told in tracker.told] == ["begun", "epoch", "ended"]


# --- engine.track


def test_trackers_are_no_part_of_what_a_recipe_is() -> None:
    plain, tracked = recipe().recipe, recipe("track=tensorboard").recipe
    assert (plain.engine.track, tracked.engine.track) == ((), ("tensorboard",))
    assert plain.sha256() == tracked.sha256()
    assert "track" not in tracked.portable()["engine"]
    assert Recipe.model_validate(tracked.tables()) == tracked


def test_an_unknown_tracker_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe("track=tensorbord")
    (problem,) = caught.value.details
    assert problem.startswith("engine.track[0]: ")
    assert "'tensorboard'?" in problem


def test_a_run_can_be_resumed_with_another_tracker() -> None:
    with pytest.raises(Interrupted):
        start(tell=Tracker(stop_at=STEPS + 2), out=Path("run"))
    text = Path("run/recipe.toml").read_text(encoding="utf-8")
    assert "track = []" in text
    Path("run/recipe.toml").write_text(text.replace("track = []", 'track = ["tensorboard"]'), encoding="utf-8")
    run = resume(Path("run"))
    assert list(Path("run/tensorboard").glob("events.*"))
    assert outcome(run) == uninterrupted()


def test_without_the_package_a_training_ends_before_its_first_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError) as caught:
        start("track=tensorboard", out=Path("run"))
    assert caught.value.hint == "pip install 'okdc[track]'"
    assert not Path("run").exists()
    answer = ask(capsys, "distill", "tiny.toml", "track=tensorboard", "-o", "run")
    assert answer.code == 2
    assert "pip install 'okdc[track]'" in answer.err
    assert start(out=Path("run")).state() == "complete"  # nothing is asked for by default
    assert ask(capsys, "track", "run", "--tensorboard", "events").code == 2
