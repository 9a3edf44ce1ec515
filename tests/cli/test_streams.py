"""stdout and stderr as they may be: full, closed, of a small alphabet, without a reader, without a width."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from okdc.__main__ import main
from okdc.cli import console
from okdc.errors import DiskError
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
SHORT = ("distill", "optim.epochs=1", "data.train_images=64", "-o", "run")


def full() -> TextIO:
    return Path("/dev/full").open("w", encoding="utf-8")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def without_reader() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


def ascii_only() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[[], TextIO] | None], TextIO | None]]:
    """Put a stream of a kind in the place of sys.stdout or sys.stderr; None: the process was started without it."""
    made: list[TextIO] = []

    def replace(name: str, kind: Callable[[], TextIO] | None) -> TextIO | None:
        stream = kind() if kind else None
        monkeypatch.setattr(sys, name, stream)
        made.extend([stream] if stream else [])
        return stream

    yield replace
    monkeypatch.undo()
    for stream in made:
        stream.close()


@pytest.mark.parametrize("kind", [full, closed, None, without_reader, ascii_only])
def test_a_training_never_dies_of_its_talk(put: Callable[..., TextIO], capsys: Captured, kind: None) -> None:
    put("stderr", kind)
    assert main(SHORT) == 0
    assert RunDir.open(Path("run")).state() == "complete"
    assert "kept student" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [full, closed, None])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_that_is_lost_is_an_error_once_the_work_is_saved(
    put: Callable[..., TextIO], capsys: Captured, kind: None, more: tuple[str, ...]
) -> None:
    put("stdout", kind)
    assert main([*SHORT, *more]) == 2
    assert RunDir.open(Path("run")).state() == "complete"
    assert "error[disk]: stdout cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [full, closed])
def test_output_that_was_lost_is_not_printed_with_the_next(
    put: Callable[..., io.StringIO], kind: Callable[[], TextIO]
) -> None:
    put("stdout", kind)
    with pytest.raises(DiskError):
        console.table(["a"], [["b"]])
    stream = put("stdout", io.StringIO)
    console.out("c")
    assert stream.getvalue() == "c\n"


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_small_alphabet_shows_every_number_and_escapes_the_rest(
    put: Callable[..., io.TextIOWrapper], more: tuple[str, ...]
) -> None:
    stream = put("stdout", ascii_only)
    put("stderr", ascii_only)
    assert main([*SHORT, "about.title='größe \U0001f600'", *more]) == 0
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    if more:
        assert json.loads(text)["run"] == "run"
    else:
        assert "% on 797 test images" in text


def test_names_that_are_no_text_are_printed_escaped(capsys: Captured) -> None:
    name = os.fsdecode(b"caf\xe9")
    console.out(name)
    console.note(name)
    console.out_json({"name": name})
    out, err = capsys.readouterr()
    first, *document = out.splitlines()
    assert first == err.strip() == "caf\\udce9"
    assert json.loads("".join(document)) == {"name": name}


@pytest.mark.parametrize("columns", ["0", "1", "-1", "abc", "²", "9" * 30, ""])
def test_no_width_hides_anything(monkeypatch: pytest.MonkeyPatch, capsys: Captured, columns: str) -> None:
    with monkeypatch.context() as patch:  # before pytest itself asks for the width
        for name in ("COLUMNS", "LINES"):
            patch.setenv(name, columns)
        patch.setattr(console, "_out", console._Console("stdout", soft_wrap=True))
        patch.setattr(console, "_err", console._Console("stderr", soft_wrap=True))
        console.out("one two")
        console.table(["a"], [["b c"]])
        console.note("three")
    assert capsys.readouterr() == ("one two\na\nb c\n", "three\n")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("recipes >&-", 2),
        ("recipes 2>&-", 0),
        ("recipes >/dev/full", 2),
        ("recipes 2>/dev/full", 0),
        ("runs >&- 2>&-", 0),  # there are none, and nothing is printed
        ("--help >/dev/full", 2),
    ],
)
def test_the_exit_code_is_the_commands_whatever_python_finds_at_its_end(words: str, code: int) -> None:
    command = f'exec "$0" -m okdc {words}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_no_file_takes_the_number_of_a_stream_that_is_closed() -> None:
    """What a library writes to number 2 would lie in a checkpoint."""
    code = "from okdc import __main__ as m; m._open_streams(); print(open(m.__file__).fileno() > 2)"
    command = ["sh", "-c", f'exec "$0" -c "{code}" 2>&- <&-', sys.executable]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_json_of_an_error_needs_no_stdout(put: Callable[..., TextIO], capsys: Captured) -> None:
    put("stdout", full)
    assert main(["resume", "nowhere", "--json"]) == 2
    assert capsys.readouterr().err.startswith("error[run]: nowhere")
