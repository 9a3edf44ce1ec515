from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from okdc.cli import console
from okdc.errors import CheckFailed, DataError, OkdcError

Captured = pytest.CaptureFixture[str]


def test_an_error_is_its_kind_and_message_then_details_then_a_blank_line_and_the_hint(capsys: Captured) -> None:
    console.fail(DataError("2 images cannot be read", hint="replace them", details=["a.png: cut", "b.png: empty"]))
    assert capsys.readouterr() == (
        "",
        "error[data]: 2 images cannot be read\n  a.png: cut\n  b.png: empty\n\nhint: replace them\n",
    )


def test_an_error_without_hint_ends_after_its_message(capsys: Captured) -> None:
    console.fail(CheckFailed("parity", "differs"))
    assert capsys.readouterr().err == "error[parity]: differs\n"


def test_every_one_of_many_details_is_listed(capsys: Captured) -> None:
    console.fail(DataError("many", details=[f"file {i}" for i in range(300)]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [f"  file {i}" for i in range(300)]


@pytest.mark.parametrize(
    "text", ["[bold]x[/bold]", "photos/[1].png", "[/]", "\\[red]", "100 % :smile: done", "photos\\"]
)
def test_what_users_name_their_files_is_printed_as_it_stands(capsys: Captured, text: str) -> None:
    console.fail(OkdcError(text, hint=text, details=[text]))
    console.note(text)
    console.say(text)
    console.warn(text)
    console.next_step(text)
    console.out(text)
    console.table([text], [[text]])
    out, err = capsys.readouterr()
    assert err.count(text) == 7
    assert out.count(text) == 3


def test_a_next_step_can_be_pasted_whatever_a_folder_is_called(capsys: Captured) -> None:
    console.next_step("okdc predict", Path("my runs/it's one"), "IMAGE ...")
    said = capsys.readouterr().err
    assert shlex.split(said) == ["next:", "okdc", "predict", "my runs/it's one", "IMAGE", "..."]
    console.next_step("okdc profile", Path("runs/digits-1"))
    assert capsys.readouterr().err == "next: okdc profile runs/digits-1\n", "no quotes where none are needed"


@pytest.mark.parametrize("control", ["\x1b[31m", "\x9b31m", "\x00", "\x07", "\x7f"])
def test_no_control_character_of_a_file_reaches_the_terminal(control: str, capsys: Captured) -> None:
    text = f"a{control}b"
    console.out(text)
    console.say(text)
    console.fail(DataError(text, hint=text, details=[text]))
    console.table([text], [[text]])
    captured = capsys.readouterr()
    assert control[0] not in captured.out + captured.err


def test_a_table_in_a_pipe_is_whole(capsys: Captured) -> None:
    wide = ["x" * 120, "y" * 120]
    console.table(["first", "second"], [wide])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["first", "second"]
    assert row.split() == wide


def test_numbers_are_set_right_and_words_left(capsys: Captured) -> None:
    console.table(["name", "count"], [["a", "5"], ["bbbb", "1,234"]])
    _, first, second = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert first.startswith("a ")
    assert len(first) == len(second)
    assert first.endswith("    5")


def of_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Let stdout be a terminal."""
    drawn = console._Console(soft_wrap=True, width=width, force_terminal=True, no_color=True)
    monkeypatch.setattr(console, "_out", drawn)


def plain(text: str) -> str:
    """The text without what sets it bold."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


SAID = "baseline 26.30, mfef attention=false 23.54, mfef 23.37"


@pytest.mark.parametrize("width", [40, 46, 50, 60, 80])
def test_no_name_and_no_number_is_split_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, width: int
) -> None:
    of_width(monkeypatch, width)
    name = "cifar100_resnet110_ablation"
    console.table(["recipe", "top-1 % on test", "n", "paper"], [[name, "63.93 ± 0.09", "5", SAID]])
    out = plain(capsys.readouterr().out)
    assert re.search(rf"^{name} ", out, re.MULTILINE)
    assert "63.93 ± 0.09" in out
    assert set(SAID.split()) <= set(out.split())
    assert max(len(line.rstrip()) for line in out.splitlines()) <= max(width, len(name) + 2 + len("attention=false"))


def test_the_last_column_that_has_words_is_wrapped_first(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    of_width(monkeypatch, 60)
    console.table(["what", "n", "paper"], [["a name of words", "12", SAID]])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["a", "name", "of", "words", "12", *SAID.split()[:4]]
    assert second.split() == SAID.split()[4:]


def test_columns_without_room_follow_below_with_the_names_again(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    of_width(monkeypatch, 30)
    console.table(["name", "kept", "last"], [["abcdefgh", "63.93 ± 0.09", "60.00 ± 1.09"]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1::3] == [["abcdefgh", "63.93", "±", "0.09"], ["abcdefgh", "60.00", "±", "1.09"]]


def test_a_column_that_is_as_narrow_as_it_can_be_leaves_the_wrapping_to_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    of_width(monkeypatch, 44)
    cells = ["one_name_of_25_characters two_more", "short words that may be wrapped anywhere"]
    console.table(["a", "b"], [cells])
    lines = plain(capsys.readouterr().out).splitlines()
    assert sorted(" ".join(lines[1:]).split()) == sorted(" ".join(cells).split())
    assert max(map(len, lines)) <= 44


def test_no_line_of_a_table_in_a_pipe_ends_in_spaces(capsys: Captured) -> None:
    console.table(["name", "notes"], [["a", "short"], ["bbbb", "much longer"], ["c", ""]])
    assert capsys.readouterr().out == "name  notes\na     short\nbbbb  much longer\nc\n"


def test_json_goes_to_stdout_alone_and_keeps_its_letters(capsys: Captured) -> None:
    console.out_json({"title": "größe 8×8", "n": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"title": "größe 8×8", "n": 1}
    assert "größe 8×8" in out
    assert err == ""


def test_without_a_terminal_progress_is_a_line_now_and_then_and_always_the_last(capsys: Captured) -> None:
    with console.progress("training") as update:
        for done in range(1, 1001):
            update(done, 1000, f"epoch {done // 10}/100" if done >= 10 else "")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[-1] == "epoch 100/100"
    assert len(set(lines)) == len(lines)
    assert 10 <= len(lines) <= 25


def test_without_a_terminal_each_epoch_is_one_line_with_the_time_left(capsys: Captured) -> None:
    talk = console.Talk()
    with talk.training() as update:
        for done in range(1, 1001):
            talk.remaining(2.0 * (1000 - done))
            update(done, 1000, f"epoch {done // 10}/100" if done >= 10 else "")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [f"epoch {n}/100" for n in range(1, 101)]
    assert lines[0] == "epoch 1/100  33:00 left"
    assert lines[-1] == "epoch 100/100"


def test_without_a_terminal_a_long_silence_is_broken_less_and_less_often(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("okdc.cli.console.time.monotonic", lambda: now)
    with console.Talk().training() as update:
        for done in range(1, 3601):  # an hour without an epoch
            now += 1.0
            update(done, 10_000, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training 11 of 10,000")
    assert 8 <= len(lines) <= 14


def test_on_a_terminal_each_epoch_stays_in_the_history_above_one_line_of_progress(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = console._Console("stderr", soft_wrap=True, width=80, force_terminal=True, no_color=True)
    monkeypatch.setattr(console, "_err", drawn)
    monkeypatch.setattr(drawn, "_environ", {"TERM": "xterm"})
    with console.Talk().training() as update:
        for done in range(1, 31):
            update(done, 30, f"epoch {done // 10}/3  loss 1.0" if done >= 10 else "")
    err = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert [line.strip() for line in err.splitlines() if "epoch" in line] == [
        f"epoch {n}/3  loss 1.0" for n in (1, 2, 3)
    ]
    assert "30/30" in err


def test_a_dumb_terminal_gets_lines(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = console._Console("stderr", soft_wrap=True, width=80, force_terminal=True)
    monkeypatch.setattr(console, "_err", drawn)
    monkeypatch.setattr(drawn, "_environ", {"TERM": "dumb"})
    with console.Talk().training() as update:
        update(1, 1, "epoch 1/1")
    assert capsys.readouterr().err == "epoch 1/1\n"


def test_without_a_terminal_reading_images_says_nothing(capsys: Captured) -> None:
    with console.Talk().reading() as update:
        update(64, 128)
        update(128, 128)
    assert capsys.readouterr() == ("", "")
