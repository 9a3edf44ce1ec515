"""TensorBoard's events of a run, read back as TensorBoard reads them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask
from harness import EPOCHS, STEPS, Quiet, outcome, resume, signalled, start, uninterrupted
from making import make_run
from PIL import Image

import okdc
from okdc.errors import Interrupted, UsageError
from okdc.progress import WARNING
from okdc.runs import mistakes, predictions
from okdc.runs.run import RunDir
from okdc.tracking.confusion import drawn

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

Captured = pytest.CaptureFixture[str]
Scalars = dict[str, list[tuple[int, float]]]


def read(folder: Path) -> tuple[Scalars, dict[str, bytes]]:
    """By tag: (step, value) of each event, and the one image as a PNG file."""
    events = accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0}, purge_orphaned_data=False
    ).Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: events.Images(tag) for tag in tags["images"]}
    assert all(len(each) == 1 for each in images.values())
    return scalars, {tag: each[0].encoded_image_string for tag, each in images.items()}


def logged(run: RunDir) -> Scalars:
    """The numbers of log.jsonl as events."""
    events: Scalars = {}
    for row in run.rows():
        for key, value in row.items():
            for name, number in value.items() if isinstance(value, dict) else [("", value)]:
                events.setdefault(f"{key}/{name}".rstrip("/"), []).append((row["epoch"], float(np.float32(number))))
    del events["epoch"]
    return events


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that TensorBoard followed, stopped in its second epoch, killed in its third, and resumed. Only read."""
    folder, before = tmp_path_factory.mktemp("live"), Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(Interrupted):
            start("track=tensorboard", tell=signalled(STEPS + 3, signal.SIGINT), out=Path("run"))
        shutil.copytree("run", "stopped")
        with pytest.raises(Interrupted):
            resume(Path("run"), signalled(STEPS + 1, signal.SIGINT))
        # A kill before the checkpoint: the events know an epoch that the run has lost.
        shutil.rmtree("stopped/tensorboard")
        shutil.copytree("run/tensorboard", "stopped/tensorboard")
        assert [len(read(Path("stopped/tensorboard"))[0]["loss"]), len(RunDir(Path("stopped")).rows())] == [2, 1]
        return resume(Path("stopped").absolute(), Quiet())
    finally:
        os.chdir(before)


def test_a_tracked_run_that_was_stopped_has_each_epoch_once_and_the_weights_of_one_that_was_not(live: RunDir) -> None:
    scalars, _ = read(live.path / "tensorboard")
    judged = {tag: scalars.pop(tag) for tag in list(scalars) if tag.startswith("judged_")}
    assert scalars == logged(live)
    assert [step for step, _ in scalars["loss"]] == list(range(1, EPOCHS + 1))
    result = live.read_result()
    accuracies = {f"judged_top1_pct/student{row.student}": row.top1_pct for row in result.cohort}
    accuracies["judged_top1_pct/kept"] = result.kept.top1_pct
    assert judged == {tag: [(EPOCHS, float(np.float32(value)))] for tag, value in accuracies.items()}
    assert outcome(live) == uninterrupted()


def test_what_is_written_afterwards_is_what_was_written_live(live: RunDir, capsys: Captured) -> None:
    answer = ask(capsys, "track", str(live.path), "--tensorboard", "events", "--json")
    report = json.loads(answer.out)
    assert (answer.code, report["state"], report["epochs"], report["missing"]) == (0, "complete", EPOCHS, None)
    assert (report["confusion"], report["pictures"]) == (True, 16)
    assert read(Path("events")) == read(live.path / "tensorboard")
    again = okdc.track(okdc.Run(live.path), tensorboard="events")  # its own folder is written anew
    assert again == report
    assert read(Path("events")) == read(live.path / "tensorboard")


def test_the_pictures_are_the_confusion_matrix_and_the_most_confident_mistakes(live: RunDir) -> None:
    _, images = read(live.path / "tensorboard")
    pixels = {tag: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for tag, content in images.items()}
    confusion = pixels.pop("confusion")
    stored = predictions.read(live.predictions, live.read_result())
    answers, right = stored.judging, stored.students[live.read_result().kept.student]
    counts = mistakes.confusion(answers, right)
    by_hand = np.zeros_like(counts)
    for label, answer in zip(answers.labels, answers.logits.argmax(1), strict=True):
        by_hand[label, answer] += 1
    np.testing.assert_array_equal(counts, by_hand)
    np.testing.assert_array_equal(confusion, drawn(counts, live.read_info().classes))
    dataset = _dataset(live)
    confident = np.exp(answers.logits - answers.logits.max(1, keepdims=True)).sum(1)  # 1 over the confidence
    rows = answers.rows[~right][np.argsort(confident[~right], kind="stable")[:16]]
    assert len(pixels) == 16
    for tag, row in zip(sorted(pixels), rows, strict=True):
        np.testing.assert_array_equal(pixels[tag], dataset[int(row)])
        assert f" {live.read_info().classes[answers.labels[answers.rows == row][0]]} " in tag


def _dataset(run: RunDir) -> Any:
    from okdc.assembly import reopen

    return reopen.data_of(run, reopen.recipe_of(run), Quiet()).images.numpy()


def test_a_run_that_is_not_complete_has_its_epochs_and_no_pictures() -> None:
    with pytest.raises(Interrupted):
        start(tell=signalled(STEPS + 3, signal.SIGINT), out=Path("run"))
    report = okdc.track("run", tensorboard="events")
    assert (report["state"], report["epochs"], report["confusion"], report["pictures"]) == ("resumable", 1, False, 0)
    scalars, images = read(Path("events"))
    assert (scalars, images) == (logged(RunDir(Path("run"))), {})


def test_without_the_images_a_run_has_all_but_its_mistakes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")  # its recipe has other images than it says
    report = okdc.track(run, tensorboard="events")
    assert report["missing"]
    assert (report["confusion"], report["pictures"]) == (True, 0)
    assert list(read(Path("events"))[1]) == ["confusion"]


def test_a_folder_that_holds_something_else_is_left_alone(live: RunDir, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    okdc.track(other, tensorboard="taken")
    Path("mine").mkdir()
    Path("mine/events.out.tfevents.1").write_text("mine", encoding="utf-8")
    Path("file").touch()
    for folder in ("taken", "mine"):
        before = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        with pytest.raises(UsageError):
            okdc.track(live.path, tensorboard=folder)
        assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == before
    with pytest.raises(okdc.OkdcError):
        okdc.track(live.path, tensorboard="file")


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_training() -> None:
    class Taken(Quiet):
        def note(self, text: str) -> None:
            super().note(text)
            if text == "run run":
                Path("run/tensorboard").write_text("in the way", encoding="utf-8")

    tell = Taken()
    run = start("track=tensorboard", tell=tell, out=Path("run"))
    (warning,) = [note for note in tell.notes if note.startswith(WARNING)]
    assert "TensorBoard.begun" in warning
    assert outcome(run) == uninterrupted()


def test_names_of_classes_are_drawn_as_they_are() -> None:
    """A dollar begins no formula, and a letter that the font lacks is no error."""
    names = ["$\\frac", "犬", "a" * 200]
    assert drawn(np.eye(3, dtype=np.int64), names).shape == (640, 640, 3)
    assert drawn(np.eye(120, dtype=np.int64), [str(k) for k in range(120)]).shape == (640, 640, 3)
