"""The line of progress: bar, count and time left at any width, whatever text is beside them."""

from __future__ import annotations

import pytest

from okdc.cli.progress_line import LEAST_BAR, ProgressLine, TimeLeft, clock_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def line(done: int = 1234, total: int = 5678, text: str = "", left: float | None = 3754.0) -> ProgressLine:
    time_left = TimeLeft(Clock())
    if left is not None:
        time_left.tell(left)
    drawn = ProgressLine("training", time_left)
    drawn.done, drawn.total, drawn.text = done, total, text
    return drawn


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 500, "epoch 3/300  loss 0.123  " + "val student0 93.2 " * 9, "漢字" * 99]
)
@pytest.mark.parametrize("width", [40, 60, 79, 80, 119, 200])
def test_bar_count_and_time_left_are_there_at_any_width(width: int, text: str) -> None:
    drawn = line(text=text).at(width)
    assert drawn.cell_len <= width
    assert "1,234/5,678  1:02:34 left" in drawn.plain
    assert drawn.plain.count("━") + drawn.plain.count("─") >= LEAST_BAR


def test_the_text_is_cut_first_then_the_label_goes_then_the_bar_shrinks() -> None:
    text = "a text of some words"
    assert line(text=text).at(100).plain.endswith(f"1:02:34 left  {text}")
    assert line(text=text).at(75).plain.endswith("1:02:34 left  a text of s...")
    assert line(text=text).at(45).plain.startswith("training ━")
    assert line(text=text).at(36).plain.startswith("━")
    assert line(text=text).at(26).plain.strip() == "1,234/5,678  1:02:34 left"


@pytest.mark.parametrize(("done", "filled"), [(0, 0), (1, 0), (50, 12), (99, 23), (100, 24), (200, 24)])
def test_the_bar_is_full_at_the_end_and_not_before(done: int, filled: int) -> None:
    drawn = line(done, 100, left=None).at(79).plain
    assert (drawn.count("━"), drawn.count("━") + drawn.count("─")) == (filled, 24)
    plain = line(done, 100, left=None).at(79, plain=True).plain
    assert (plain.count("#"), plain.isascii()) == (filled, True)


def test_before_anything_is_counted_there_is_the_label() -> None:
    drawn = line(0, 0)
    assert drawn.at(79).plain == "training"
    assert drawn.at(5).plain == "train"


def test_no_control_character_gets_into_the_line() -> None:
    drawn = line(text="a\x1b[31m\nb", left=None)
    assert "\x1b" not in drawn.at(119).plain
    assert "\n" not in drawn.at(119).plain


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0:00"),
        (7.4, "0:07"),
        (245, "4:05"),
        (3599.6, "1:00:00"),
        (11045, "3:04:05"),
        (4 * 86400 + 3 * 3600, "4 d 3 h"),
    ],
)
def test_a_time_is_written_as_a_clock_has_it(seconds: float, words: str) -> None:
    assert clock_of(seconds) == words


def test_a_time_that_was_told_runs_down_by_itself() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    assert (left.seconds(), left.words()) == (None, "")
    left.tell(60)
    clock.now += 20
    assert left.words() == "0:40 left"
    clock.now += 100
    assert left.seconds() == 0


def test_a_time_that_nobody_tells_follows_from_the_last_half_minute() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    for done in range(1, 101):  # one a second
        clock.now += 1
        left.count(done, 1000)
    assert left.seconds() == pytest.approx(900)
    for done in range(110, 1001, 10):  # ten a second
        clock.now += 1
        left.count(done, 1000)
        if done == 600:
            assert left.seconds() == pytest.approx(40)
    assert left.seconds() == 0


def test_the_first_step_of_a_training_says_nothing_of_all_others() -> None:
    clock = Clock()
    left = TimeLeft(clock, from_counts=False)
    clock.now += 120  # compiling
    left.count(1, 1000)
    assert left.words() == ""
    left.tell(30)
    assert left.words() == "0:30 left"
