"""Everything that okdc prints: data on stdout, talk on stderr. No other module prints."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from okdc import signals
from okdc.cli.progress_line import ProgressLine, TimeLeft
from okdc.errors import DiskError, Interrupted, OkdcError
from okdc.escaping import json_text, paragraphs, shown
from okdc.progress import WARNING, Progress


class _Stream:
    """stdout or stderr, as it is at each write, in any alphabet.

    What is said on stderr may be lost: no training dies of its talk. What is printed on stdout may be lost to a reader
    that goes away (`| head`), which ends the printing and not the work; any other loss raises DiskError.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.name = name

    @property
    def stream(self) -> TextIO | None:
        """None where the process was started without it."""
        stream = getattr(sys, self.name)  # beside a progress bar a proxy of rich's, which would print by this again
        return getattr(stream, "rich_proxied_file", stream)  # type: ignore[no-any-return]

    @property
    def encoding(self) -> str:
        return (self.stream and self.stream.encoding) or "ascii"

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    def takes(self, text: str) -> bool:
        """Whether its alphabet has every letter. That of a file name may have no letters: bytes that are no text."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return False
        return True

    def write(self, text: str) -> int:
        spelt = text if self.takes(text) else _spelt(text, self.encoding)
        self._do(lambda stream: stream.write(spelt))
        return len(text)

    def flush(self) -> None:
        if self.stream is not None and not self.stream.closed:  # else nothing waits, and a write has said so
            self._do(lambda stream: stream.flush())

    def line(self, text: str) -> bool:
        """Write and flush. False if the reader has gone."""
        return self._do(lambda stream: stream.write(text + "\n")) and self._do(lambda stream: stream.flush())

    def _do(self, work: Callable[[TextIO], object]) -> bool:
        """False where the stream takes nothing any more and that is no error. Raises DiskError where it is one."""
        stream, reason = self.stream, "it is closed"
        try:
            if stream is not None:
                work(stream)
                return True
        except BrokenPipeError:
            _mute(stream)
            return False
        except OSError as error:
            _mute(stream)
            reason = error.strerror or str(error)
        except ValueError:  # closed since
            pass
        if self.name == "stdout":
            raise DiskError(
                f"stdout cannot be written: {reason}", hint="what is on disk is whole; only the output is lost"
            )
        return False


_SPELT = str.maketrans({"±": "+-", "×": "x", "–": "-", "…": "...", "≥": ">=", "≤": "<=", "·": "-", "→": "->"})


def _spelt(text: str, encoding: str) -> str:
    """The text in a smaller alphabet."""
    return text.translate(_SPELT).encode(encoding, "backslashreplace").decode(encoding)


class _Console(Console):
    """rich's console on one of these streams. `:smile:` is printed as it is written."""

    def __init__(self, stream: Literal["stdout", "stderr"] = "stdout", **options: Any) -> None:
        # rich takes any digits in COLUMNS and LINES for a size, and prints nothing in 0 columns.
        sizes = {name: os.environ.get(name, "") for name in ("COLUMNS", "LINES")}
        odd = [name for name, size in sizes.items() if not re.fullmatch("[1-9][0-9]{0,4}", size)]
        environment = {name: value for name, value in os.environ.items() if name not in odd}
        file: Any = _Stream(stream)
        super().__init__(file=file, highlight=False, emoji=False, _environ=environment, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except DiskError:
            with contextlib.suppress(DiskError), self.capture():
                pass  # takes out what was not written, which rich keeps and would print before the next line
            raise


def _plain(text: str) -> str:
    """Text on one line whose markup and control characters do nothing: it may come out of a stranger's file."""
    return escape(shown(text))


def _mute(stream: TextIO | None) -> None:
    """Redirect to the null device what takes nothing more; otherwise Python fails on it again at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


# These live as long as the process: a stream looks up sys.stdout or sys.stderr at each write.
_out = _Console("stdout", soft_wrap=True)
_err = _Console("stderr", soft_wrap=True)
_stdout = _Stream("stdout")

SILENCE_S, LONGEST_SILENCE_S = 10.0, 600.0  # without a terminal: before the first count, and doubled to at most


class Talk(Progress):
    """The okdc.progress.Progress of the command line: notes, one progress line with the time left, a line an epoch."""

    def __init__(self) -> None:
        self._left = TimeLeft()

    def note(self, text: str) -> None:
        signals.check()
        if text.startswith(WARNING):
            warn(text.removeprefix(WARNING))
        else:
            note(text)

    @contextmanager
    def reading(self) -> Iterator[Callable[[int, int], None]]:
        with progress("reading images") as update:
            yield lambda done, total: update(done, total, "")

    @contextmanager
    def training(self) -> Iterator[Callable[[int, int, str], None]]:
        self._left = TimeLeft(from_counts=False)  # each seed of a series has its own; the first step may compile
        with progress("training", self._left, each_text=True) as update:
            yield update

    def remaining(self, seconds: float) -> None:
        self._left.tell(seconds)


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


def ask(question: str) -> bool | None:
    """A question on stderr, answered by y or n, where Enter is n. None without a terminal, or where stdin ends."""
    if not (_err.is_terminal and sys.stdin is not None and sys.stdin.isatty()):
        return None
    while True:
        _err.print(_plain(question), end=" ")
        line = sys.stdin.readline()
        if not line:
            _err.print()
            return None
        if (answer := line.strip().lower()) in ("y", "yes", "n", "no", ""):
            return answer.startswith("y")


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


def out_text(text: str) -> None:
    """Lines of a file as they are, for another file; on a terminal without what that would obey."""
    _stdout.line(paragraphs(text) if _stdout.isatty() else text)


def out_json(facts: Any) -> None:
    _stdout.line(_json(facts, 2))


def out_line(facts: Any) -> bool:
    """One JSON document on one line, flushed. False if the reader has closed the pipe."""
    return _stdout.line(_json(facts))


def _json(facts: Any, indent: int | None = None) -> str:
    """JSON with its letters as they are, or escaped where the stream's alphabet lacks one of them."""
    text = json_text(json.dumps(facts, indent=indent, ensure_ascii=False))
    return text if _stdout.takes(text) else json.dumps(facts, indent=indent)


def settle() -> bool:
    """Whether all that was printed, by okdc or anybody else, has left. Python would find out after the exit code."""
    _err.file.flush()
    try:
        _out.file.flush()
    except DiskError as error:
        fail(error)
        return False
    return True


GAP = 2  # columns of the terminal between two columns of a table
_NUMBER = re.compile(r"[-+≥]?\s*\d")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout. A column with numbers is set right. In a pipe no line is wrapped, and none ends in spaces.

    On a narrow terminal no word and no number is split, so that each can be read and copied: cells are wrapped between
    words, those of the last column first, and columns without room follow below, beside the first column again.
    """
    headers = ["\n".join(map(shown, header.split("\n"))) for header in headers]
    rows = [[shown(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *rows, strict=True))
    for i, widths in enumerate(_blocks(columns, _out.width if _out.is_terminal else sys.maxsize)):
        if i:
            _out.print()
        block = Table(box=None, pad_edge=False, header_style="bold")
        for k, width in widths.items():
            numeric = any(cell[:1].isdigit() for cell in columns[k][1:])
            block.add_column(escape(headers[k]), justify="right" if numeric else "left", width=width, overflow="fold")
        for row in rows:
            block.add_row(*(escape(row[k]) for k in widths))
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


def is_terminal() -> bool:
    """Whether stdout is a terminal that can be written anew."""
    return _out.is_terminal and not _out.is_dumb_terminal


def clear() -> None:
    """Empty the terminal, for what is then printed at its top."""
    _out.clear()


@contextmanager
def beside_lines(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """`progress` of a command that prints lines as it works: on a terminal these lines show the progress."""
    if _stdout.isatty():
        yield lambda *_: None
        return
    with progress(label) as update:
        yield update


@contextmanager
def progress(
    label: str, left: TimeLeft | None = None, each_text: bool = False
) -> Iterator[Callable[[int, int, str], None]]:
    """`update(done, total, text)`: a live line on a terminal; elsewhere about twenty lines for the whole work.

    `left` is told the time that is left, else it follows from the work done. With `each_text` every text is a line of
    its own, in the terminal's history too.
    """
    left = left or TimeLeft()
    if _err.is_terminal and not _err.is_dumb_terminal:
        line = ProgressLine(label, left)
        last = ""

        def live(done: int, total: int, text: str) -> None:
            nonlocal last
            left.count(done, total)
            if each_text and text and text != last:
                last = text
                say(text)
            line.done, line.total, line.text = done, total, "" if each_text else text

        # Not redirected: rich would send to stderr what a command writes to stdout meanwhile, for a pipe perhaps.
        with Live(line, console=_err, transient=True, redirect_stdout=False, refresh_per_second=5):
            yield live
        return
    yield _in_lines(label, left, each_text)


def _in_lines(label: str, left: TimeLeft, each_text: bool) -> Callable[[int, int, str], None]:
    """`update` of a progress without a terminal: texts with the time left, and counts where no text comes for long."""
    mark, last, spoke, patience = 0.0, "", time.monotonic(), SILENCE_S

    def update(done: int, total: int, text: str) -> None:
        nonlocal mark, last, spoke, patience
        left.count(done, total)
        if text and text != last and (each_text or done >= mark * total or done == total):
            say("  ".join(filter(None, (text, left.words() if each_text and done < total else ""))))
            mark, last, spoke = done / total + 0.05, text, time.monotonic()
        elif time.monotonic() - spoke > patience:
            say("  ".join(filter(None, (f"{label} {done:,} of {total:,}", left.words()))))
            spoke, patience = time.monotonic(), min(2 * patience, LONGEST_SILENCE_S)

    return update
