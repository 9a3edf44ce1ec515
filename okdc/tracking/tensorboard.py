"""TensorBoard's event files of a run: live, by `engine.track`, and from the files of a run, by `okdc track`.

    RUN/tensorboard/  or DIR/
        okdc.json                  which run these are of
        events.out.tfevents.*      written anew by each start, each resume and each `okdc track`

Written anew, a resumed run has each epoch once, whatever an interrupted process had written. The tags are the keys of
log.jsonl, at the epoch as step: loss, losses/TERM, val_top1_pct/HEAD, lr, seconds. A complete run adds
judged_top1_pct/STUDENT, `confusion` and `mistakes/..`. The time of an event is the start of the run plus the seconds of
its epochs, so that live and afterwards give the same events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from okdc.assembly import reopen
from okdc.data.datasets import Dataset
from okdc.errors import OkdcError, RunError, UsageError, one_line
from okdc.escaping import shown
from okdc.progress import Progress, Row
from okdc.runs import mistakes, predictions
from okdc.runs.artefacts import Result, RunInfo
from okdc.runs.files import read_json, write_json, writing
from okdc.runs.predictions import Answers, Bits
from okdc.runs.run import RunDir
from okdc.tracking.confusion import drawn

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # of a run, live
MARK = "okdc.json"
EVENTS = "events.out.tfevents.*"
INSTALL = "pip install 'okdc[track]'"
MISTAKES = 16  # pictures


def require(what: str) -> type[SummaryWriter]:
    """torch's writer of events. Raises UsageError about `what` where the package tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(f"{what} needs the package tensorboard: {one_line(error)}", hint=INSTALL) from None
    return SummaryWriter


class TensorBoard(Progress):
    """The tracker of `engine.track`. Its pictures are of the training's own images, which need not be read again."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.events: Events | None = None

    def begun(self, run: Path, rows: Sequence[Row]) -> None:
        self.events = Events(run / FOLDER, RunDir(run).read_info(), rows)

    def epoch(self, row: Row) -> None:
        if self.events:
            self.events.add(row)

    def ended(self, run: Path, state: str) -> None:
        if not self.events:
            return
        with closing(self.events):
            if state == "complete":
                result = RunDir(run).read_result()
                self.events.judge(result, *_judging(RunDir(run), result), self.dataset)


def write(run: RunDir, folder: Path, tell: Progress, data_root: str | None = None) -> dict[str, Any]:
    """The report of `okdc track --json`; the events of a run in any state go to `folder`, which is written anew.

    `missing` says why a complete run has no pictures of mistakes. Raises UsageError for a folder that holds something
    else, or that a training writes at this moment, and where tensorboard is not installed; RunError and CheckFailed for
    damaged files, DiskError.
    """
    require("okdc track --tensorboard")
    info, rows, state = run.read_info(), run.rows(), run.state()
    if state == "running" and folder.resolve() == (run.path / FOLDER).resolve():
        raise UsageError(f"{folder} is written by the training of {run.path}", hint="another folder, or later")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--tensorboard {folder}: expected a folder, found a file", hint="choose another name")
    result = run.read_result() if state == "complete" else None
    judging = _judging(run, result) if result else None
    dataset, missing = _images(run, tell, data_root) if result else (None, f"{run.path} is {state}")
    with closing(Events(folder, info, rows)) as events:
        pictures = events.judge(result, *judging, dataset) if result and judging else 0
    facts = {"schema": 1, "run": str(run.path), "state": state, "tensorboard": str(folder)}
    return facts | {"epochs": len(rows), "confusion": result is not None, "pictures": pictures, "missing": missing}


def _images(run: RunDir, tell: Progress, data_root: str | None) -> tuple[Dataset | None, str | None]:
    """The run's images, or the reason why they cannot be had."""
    try:
        return reopen.data_of(run, reopen.recipe_of(run, data_root), tell), None
    except OkdcError as error:
        return None, error.message


def _judging(run: RunDir, result: Result) -> tuple[Answers, Bits]:
    """The kept student's answers to the images that judged it, and which of them were right."""
    answers = predictions.read(run.predictions, result)
    return answers.judging, answers.students[result.kept.student]


class Events:
    """The event files of one run in one folder. Raises UsageError where it holds something else, DiskError."""

    def __init__(self, folder: Path, info: RunInfo, rows: Sequence[Row]) -> None:
        writer = require(FOLDER)
        self.classes = info.classes
        self.time = datetime.fromisoformat(info.started_at).timestamp()
        with writing(folder):
            _made_ready(folder, info)
            # A reader that has seen the files of before forgets them: `purge_step` is the first step that is new.
            self.writer = writer(str(folder), purge_step=1)
            for row in rows:
                self.add(row)

    def add(self, row: Row) -> None:
        """The numbers of an epoch, on disk when this returns."""
        self.time += row["seconds"]
        for tag, value in scalars(row):
            self.writer.add_scalar(tag, value, row["epoch"], self.time)
        self.writer.flush()

    def judge(self, result: Result, answers: Answers, right: Bits, dataset: Dataset | None) -> int:
        """What judged the run, at its last epoch. Returns the number of pictures: 0 without images."""
        step, names = result.last_epoch, [shown(name) for name in self.classes]
        for row in result.cohort:
            self.writer.add_scalar(f"judged_top1_pct/student{row.student}", row.top1_pct, step, self.time)
        self.writer.add_scalar("judged_top1_pct/kept", result.kept.top1_pct, step, self.time)
        counts = mistakes.confusion(answers, right)
        self.writer.add_image("confusion", drawn(counts, names), step, self.time, dataformats="HWC")
        worst, _ = mistakes.extremes(answers, right, MISTAKES, 0) if dataset else ([], [])
        for number, each in enumerate(worst, 1):
            assert dataset is not None
            words = f"{names[each.label]} taken for {names[each.answer]}, {each.confidence_pct:.1f} %"
            pixels = dataset.pixels(torch.tensor([each.row]))[0].cpu().numpy()
            self.writer.add_image(f"mistakes/{number:02} {words}", pixels, step, self.time, dataformats="HWC")
        return len(worst)

    def close(self) -> None:
        self.writer.close()


def scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a row of log.jsonl, by tag: those of a table have its key before theirs."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif f"{prefix}{key}" != "epoch":
            yield f"{prefix}{key}", float(value)


def _made_ready(folder: Path, info: RunInfo) -> None:
    """An empty folder, or one of this run without its events, with the mark in it."""
    mark = {"schema": 1, "started_at": info.started_at, "recipe_sha256": info.recipe_sha256}
    folder.mkdir(parents=True, exist_ok=True)
    if {path.name for path in folder.iterdir()} - {f".{MARK}.new"} and _mark(folder / MARK) != mark:
        raise UsageError(f"{folder} holds something else than the events of this run", hint="choose an empty folder")
    write_json(folder / MARK, mark)
    for file in folder.glob(EVENTS):
        file.unlink()


def _mark(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except RunError:
        return {}
