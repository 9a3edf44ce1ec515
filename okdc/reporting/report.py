"""`okdc report`: from paths to tables, and to the page."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from okdc.errors import UsageError
from okdc.progress import EachNoteOnce, Progress
from okdc.reporting import page
from okdc.reporting.run import Wanted, of_run
from okdc.reporting.several import of_runs
from okdc.runs.files import refuse_other, write
from okdc.runs.run import RunDir
from okdc.studies import standing, table
from okdc.studies.opened import opened as open_study
from okdc.studies.schema import FILE as STUDY
from okdc.studies.schema import TEACHERS

FILE = "report.html"
MARK = b'name="generator" content="okdc report"'  # by which a page of okdc's is known, and may be replaced
PICTURE_MARK = b'data-generator="okdc report"'
POLL_S = 1.0


def facts(paths: Sequence[Path], wanted: Wanted, baseline: str | None, tell: Progress) -> dict[str, Any]:
    """The tables that `okdc report --json` prints: `run` of one run, else `several`, and `study` of a study's folder.

    Raises RunError for what is no run and for damaged files, UsageError for a baseline of one run, and as `okdc
    compare`.
    """
    report: dict[str, Any] = {
        "schema": 1,
        "written_at": page.now(),
        "of": list(map(str, paths)),
        "run": None,
        "several": None,
        "study": None,
    }
    if is_one_run(paths):
        if baseline is not None:
            raise UsageError("--baseline: one run has no row to be compared with", hint="name several runs")
        return report | {"run": of_run(RunDir.open(paths[0]), wanted, tell)}
    if len(paths) == 1 and (paths[0] / STUDY).is_file():
        study = open_study([str(paths[0])], None)
        stood = standing.standings(study.runs)
        report["study"] = table.table(study.study, stood)
        paths = [each.run.folder for each in stood if each.finished and each.run.column != TEACHERS] or paths
    return report | {"several": of_runs(paths, baseline)}


def is_one_run(paths: Sequence[Path]) -> bool:
    """Whether the paths name a run, or nothing that is there, and no folder of runs."""
    return len(paths) == 1 and (RunDir.is_at(paths[0]) or not paths[0].is_dir())


def place(paths: Sequence[Path], out: Path | None) -> Path:
    """Where the page goes: `out`, else beside the files of the one run or folder, else the working directory.

    Raises as `check_place`.
    """
    file = out or (paths[0] / FILE if len(paths) == 1 and paths[0].is_dir() else Path(FILE))
    check_place(file, MARK, "--out")
    return file


def check_place(file: Path, mark: bytes, option: str) -> None:
    """Raises UsageError where a file without this mark would be replaced, DiskError where there is no folder."""
    refuse_other(file, lambda there: mark in _beginning(there), option, "file that okdc report has made")


def check_picture(file: Path, one_run: bool) -> None:
    """Raises UsageError where it is not of one run, for a file of another kind than SVG, and as `check_place`."""
    if not one_run:
        raise UsageError("--picture is of one run", hint="name one")
    if file.suffix.lower() != ".svg":
        raise UsageError(f"--picture {file}: expected a name that ends with .svg", hint=f"--picture {file.stem}.svg")
    check_place(file, PICTURE_MARK, "--picture")


def _beginning(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(4096)


def write_picture(file: Path, report: dict[str, Any]) -> None:
    """Replace the picture of one run in one step.

    Raises UsageError for a run that is not complete or was not validated, and as `check_picture`.
    """
    check_picture(file, bool(report["run"]))
    write(file, page.picture(report["run"]).encode())


def write_page(file: Path, report: dict[str, Any], watched: bool = False) -> int:
    """Replace the page in one step; returns its size in bytes. Raises DiskError."""
    words = shlex.join(report["of"])
    content = page.html(report, f"okdc report {words if len(words) < 200 else 'RUN ...'}", watched).encode()
    write(file, content)
    return len(content)


def watch(
    run: RunDir, file: Path, wanted: Wanted, tell: Progress, wait: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """Write the page of a run after each epoch of its training, and once more, in full, when the training has ended.

    Until then the page is `quick`, so that the training keeps its processors. An interrupted watch leaves a page that
    no longer reloads itself. Returns the last report. Raises as `facts` and `write_page`.
    """
    seen, tell, report = -1, EachNoteOnce(tell), None
    try:
        while run.state() == "running":
            if (epochs := len(run.rows())) != seen:
                seen = epochs
                report = facts([run.path], Wanted(True, wanted.data_root), None, tell)
                write_page(file, report, watched=True)
                tell.note(f"{file}: epoch {epochs}")
            wait(POLL_S)
        last = facts([run.path], wanted, None, tell)
    except KeyboardInterrupt:
        if report:
            write_page(file, report)
        raise
    write_page(file, last)
    return last
