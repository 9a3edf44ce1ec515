"""All that okdc prints. Data goes to stdout, talk to stderr; nothing else in the package prints."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segments
from rich.table import Table

from okdc.errors import Interrupted, OkdcError


class _Console(Console):
    """A reader that goes away (`| head`) ends the printing, never the work. No emoji: `:smile:` may be a folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        _mute(sys.stderr if self.stderr else sys.stdout)


def _mute(stream: TextIO) -> None:
    """Send what is still printed to a stream nobody reads to nowhere, or the interpreter complains at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# rich asks sys.stdout and sys.stderr anew at each print, so these may live as long as the process.
_out = _Console(soft_wrap=True)
_err = _Console(stderr=True, soft_wrap=True)

SILENCE_S = 10.0  # between two lines of progress where there is no terminal


class Talk:
    """The okdc.progress.Progress of the command line: notes, and one progress line with the time left."""

    def note(self, text: str) -> None:
        note(text)

    @contextmanager
    def reading(self) -> Iterator[Callable[[int, int], None]]:
        with progress("reading images") as update:
            yield lambda done, total: update(done, total, "")

    @contextmanager
    def training(self) -> Iterator[Callable[[int, int, str], None]]:
        with progress("training") as update:
            yield update


def note(text: str) -> None:
    _err.print(escape(text), style="dim")


def say(text: str) -> None:
    _err.print(escape(text))


def warn(text: str) -> None:
    _err.print(f"[yellow]warning:[/] {escape(text)}")


def next_step(*words: str | Path) -> None:
    """Every finish names the next command, which can be pasted: a path is quoted where it has to be."""
    command = " ".join(word if isinstance(word, str) else quoted(word) for word in words)
    _err.print(f"next: [bold]{escape(command)}[/]")


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def fail(error: OkdcError) -> None:
    """`error[kind]: what`, the details, a blank line, the hint."""
    head = "[bold]interrupted[/]" if isinstance(error, Interrupted) else f"[bold red]error\\[{error.kind}][/]"
    _err.print(f"{head}: {escape(error.message)}")
    for line in error.details:
        _err.print(f"  {escape(line)}")
    if error.hint:
        _err.print(f"\n[bold]hint[/]: {escape(error.hint)}")


def out(text: str) -> None:
    _out.print(escape(text))


def out_json(facts: Any) -> None:
    try:
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _mute(sys.stdout)


def out_line(facts: Any) -> bool:
    """One JSON document on one line, at once. False when nobody reads any more."""
    text = json.dumps(facts, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:  # a file name that is no text, or a stream that knows few letters
        text = json.dumps(facts)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _mute(sys.stdout)
        return False
    return True


GAP = 2  # columns of a terminal between two of a table
_NUMBER = re.compile(r"[-+≥]?\s*\d")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout; columns whose cells are numbers are set right. Whole even where stdout is a pipe.

    A terminal that is too narrow never splits a word or a number, which could then neither be read nor copied: words
    are wrapped, those of the last column first, and columns without room follow below, with the first one again.
    """
    columns = [tuple(column) for column in zip(headers, *rows, strict=True)]
    for i, block in enumerate(_blocks(columns, _out.width if _out.is_terminal else None)):
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        if title and i == 0:
            _out.print(escape(title), style="italic")
        for number, width in block:
            header, *cells = columns[number]
            numeric = any(cell[:1].isdigit() for cell in cells)
            drawn.add_column(escape(header), justify="right" if numeric else "left", width=width, overflow="fold")
        for row in rows:
            drawn.add_row(*(escape(row[number]) for number, _ in block))
        if i:
            _out.print()
        # Rendered as wide as it is: where even two columns have no room, the terminal wraps, and copies whole lines.
        wide = _Console(width=sum(width + GAP for _, width in block))
        segments = list(wide.render(drawn))
        if _out.is_terminal:
            _out.print(Segments(segments), end="")
        else:  # what pads the last column there would be part of the file
            lines = "".join(segment.text for segment in segments).splitlines()
            _out.print("\n".join(line.rstrip() for line in lines), markup=False)


def _blocks(columns: Sequence[Sequence[str]], room: int | None) -> list[list[tuple[int, int]]]:
    """Which columns stand side by side, with the width of each: one block where `room` is enough, or not limited."""
    natural = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    least = [max(map(_unbroken, column)) for column in columns]
    blocks: list[list[int]] = [[0]]
    for i in range(1, len(columns)):
        if room is not None and len(blocks[-1]) > 1 and sum(least[k] + GAP for k in (*blocks[-1], i)) - GAP > room:
            blocks.append([0])
        blocks[-1].append(i)
    found = []
    for block in blocks:
        excess = sum(natural[i] + GAP for i in block) - GAP - room if room is not None else 0
        widths = {i: natural[i] for i in block}
        for i in reversed(block):
            given = min(max(excess, 0), natural[i] - least[i])
            widths[i] -= given
            excess -= given
        found.append(list(widths.items()))
    return found


def _unbroken(cell: str) -> int:
    """The width of what must stay in one line: a number with its error or its interval, else the longest word."""
    return cell_len(cell) if _NUMBER.match(cell) else max(map(cell_len, cell.split()), default=0)


@contextmanager
def beside_lines(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """`progress` of what prints lines as it goes: on a terminal the lines themselves are it."""
    if sys.stdout.isatty():
        yield lambda *_: None
        return
    with progress(label) as update:
        yield update


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """`update(done, total, text)`: one live line on a terminal; elsewhere a line for about every twentieth."""
    if _err.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
        )
        # Not redirected: rich would send what is written to stdout meanwhile to stderr, past a pipe that waits for it.
        with Progress(*columns, console=_err, transient=True, redirect_stdout=False) as live:
            task = live.add_task(label, total=None, text="")
            yield lambda done, total, text: live.update(task, completed=done, total=total, text=text)
        return

    mark, last, spoke = 0.0, "", time.monotonic()

    def plain(done: int, total: int, text: str) -> None:
        nonlocal mark, last, spoke
        if text and text != last and (done >= mark * total or done == total):
            say(text)
            mark, last, spoke = done / total + 0.05, text, time.monotonic()
        elif time.monotonic() - spoke > SILENCE_S:
            say(f"{label} {done:,} of {total:,}")
            spoke = time.monotonic()

    yield plain
