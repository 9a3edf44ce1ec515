"""Everything that okdc prints: data on stdout, talk on stderr. No other module prints."""

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
from rich.table import Table
from rich.text import Text

from okdc import signals
from okdc.errors import Interrupted, OkdcError


class _Console(Console):
    """A reader that goes away (`| head`) ends the printing, not the work. `:smile:` is printed as it is written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        _mute(sys.stderr if self.stderr else sys.stdout)


# Rich lets ESC through, by which a text could recolour, erase or retitle the reader's terminal.
_CONTROL = {code: "?" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def _plain(text: str) -> str:
    """Text whose markup and control characters do nothing: names and reasons may come out of a stranger's file."""
    return escape(text.translate(_CONTROL))


def _mute(stream: TextIO) -> None:
    """Redirect to the null device after a broken pipe; otherwise Python prints an error at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# These live as long as the process: rich looks up sys.stdout and sys.stderr at each print.
_out = _Console(soft_wrap=True)
_err = _Console(stderr=True, soft_wrap=True)

SILENCE_S = 10.0  # the longest time between two lines of progress without a terminal


class Talk:
    """The okdc.progress.Progress of the command line: notes, and one progress line with the time left."""

    def note(self, text: str) -> None:
        signals.check()
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
    _err.print(_plain(text), style="dim")


def say(text: str) -> None:
    _err.print(_plain(text))


def warn(text: str) -> None:
    _err.print(f"[yellow]warning:[/] {_plain(text)}")


def next_step(*words: str | Path) -> None:
    """Name the next command, ready to be pasted: `words` are text, or paths, which are quoted for the shell."""
    command = " ".join(word if isinstance(word, str) else quoted(word) for word in words)
    _err.print(f"next: [bold]{_plain(command)}[/]")


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def fail(error: OkdcError) -> None:
    """`error[kind]: message`, the details, a blank line, the hint."""
    head = "[bold]interrupted[/]" if isinstance(error, Interrupted) else f"[bold red]error\\[{error.kind}][/]"
    _err.print(f"{head}: {_plain(error.message)}")
    for line in error.details:
        _err.print(f"  {_plain(line)}")
    if error.hint:
        _err.print(f"\n[bold]hint[/]: {_plain(error.hint)}")


def out(text: str) -> None:
    _out.print(_plain(text))


def out_json(facts: Any) -> None:
    try:
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _mute(sys.stdout)


def out_line(facts: Any) -> bool:
    """One JSON document on one line, flushed. False if the reader has closed the pipe."""
    text = json.dumps(facts, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:  # a file name that is no valid text, or a stream of a small alphabet
        text = json.dumps(facts)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _mute(sys.stdout)
        return False
    return True


GAP = 2  # columns of the terminal between two columns of a table
_NUMBER = re.compile(r"[-+≥]?\s*\d")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout. A column with numbers is set right. In a pipe no line is wrapped, and none ends in spaces.

    On a narrow terminal no word and no number is split, so that each can be read and copied: cells are wrapped between
    words, those of the last column first, and columns without room follow below, beside the first column again.
    """
    columns = list(zip(headers, *rows, strict=True))
    for i, widths in enumerate(_blocks(columns, _out.width if _out.is_terminal else sys.maxsize)):
        if i:
            _out.print()
        block = Table(box=None, pad_edge=False, header_style="bold")
        for k, width in widths.items():
            numeric = any(cell[:1].isdigit() for cell in columns[k][1:])
            block.add_column(_plain(headers[k]), justify="right" if numeric else "left", width=width, overflow="fold")
        for row in rows:
            block.add_row(*(_plain(row[k]) for k in widths))
        # As wide as the block, also where the terminal is narrower: it wraps the line then, and copies it whole.
        for line in _Console(width=sum(widths.values()) + GAP * len(widths)).render_lines(block, pad=False):
            text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
            text.rstrip()
            _out.print(text)


def _blocks(columns: Sequence[Sequence[str]], room: int) -> list[dict[int, int]]:
    """The columns that stand side by side, each with its width: one block if all of them have room.

    rich's own widths do not do: it narrows the widest column, also below its `min_width`, and cuts off what then has
    no room.
    """
    natural = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    least = [max(map(_unbroken, column)) for column in columns]
    blocks = [[0]]
    for i in range(1, len(columns)):
        if len(blocks[-1]) > 1 and sum(least[k] + GAP for k in (*blocks[-1], i)) - GAP > room:
            blocks.append([0])
        blocks[-1].append(i)
    fitted = []
    for block in blocks:
        widths = {i: natural[i] for i in block}
        for i in reversed(block):
            excess = sum(widths.values()) + GAP * (len(block) - 1) - room
            widths[i] = max(least[i], natural[i] - max(excess, 0))
        fitted.append(widths)
    return fitted


def _unbroken(cell: str) -> int:
    """The width that a cell needs: that of a number with its error or interval, else that of the longest word."""
    return cell_len(cell) if _NUMBER.match(cell) else max(map(cell_len, cell.split()), default=0)


@contextmanager
def beside_lines(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """`progress` of a command that prints lines as it works: on a terminal these lines show the progress."""
    if sys.stdout.isatty():
        yield lambda *_: None
        return
    with progress(label) as update:
        yield update


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """`update(done, total, text)`: a live line on a terminal; elsewhere about twenty lines for the whole work."""
    if _err.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
        )
        # Not redirected: rich would send to stderr what a command writes to stdout meanwhile, for a pipe perhaps.
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
