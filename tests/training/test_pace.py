"""The time that is left: steps, validations and judging, from what this process has taken."""

from __future__ import annotations

import pytest

from okdc.training.pace import Pace, Work


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def epoch(pace: Pace, clock: Clock, step_s: float, steps: int) -> list[bool]:
    pace.begin()
    asked = []
    for _ in range(steps):
        clock.now += step_s
        asked.append(pace.step())
    pace.end()
    return asked


def test_nothing_is_known_before_the_second_step_and_the_first_does_not_count() -> None:
    clock = Clock()
    pace = Pace(4, 0, 0, clock)
    clock.now += 60  # it was compiled
    assert not pace.step()
    assert pace.left(19, 2) is None
    clock.now += 2
    assert pace.step()
    assert pace.left(18, 2) == pytest.approx(18 * 2)


def test_steps_validations_and_the_judging_are_counted() -> None:
    clock = Clock()
    pace = Pace(batch_size=10, validation=200, judging=400, clock=clock)
    epoch(pace, clock, 0.5, 100)
    an_image = 0.5 / 10 / 3  # a forward pass
    assert pace.left(201, 3) == pytest.approx(201 * 0.5 + 3 * 200 * an_image + (2 * 400 + 200) * an_image)
    clock.now += 7
    pace.validated(7)
    assert pace.left(200, 2) == pytest.approx(200 * 0.5 + 2 * 7 + (2 * 400 + 200) * 7 / 200)
    epoch(pace, clock, 0.5, 100)
    pace.validated(7)
    epoch(pace, clock, 0.5, 100)
    assert pace.left(0, 0) == pytest.approx((2 * 400 + 200) * 7 / 200), "the judging is left"


def test_without_validation_images_the_judging_is_estimated_from_the_steps() -> None:
    clock = Clock()
    pace = Pace(2, 0, 30, clock)
    epoch(pace, clock, 1.5, 10)
    assert pace.left(0, 0) == pytest.approx(2 * 30 * 1.5 / 2 / 3)


def test_the_pace_is_that_of_the_last_minute() -> None:
    clock = Clock()
    pace = Pace(1, 0, 0, clock)
    epoch(pace, clock, 0.1, 1000)
    epoch(pace, clock, 2.0, 100)
    assert pace.left(8900, 9) == pytest.approx(8900 * 2.0, rel=0.05)


def test_it_is_asked_about_once_a_second() -> None:
    clock = Clock()
    assert sum(epoch(Pace(1, 0, 0, clock), clock, 0.25, 101)) == 25


def test_the_steps_of_a_part_tell_how_long_those_of_another_take() -> None:
    clock, work = Clock(), Work(30, [0, 10], [12, 4])
    assert [work.of(step) for step in (0, 9, 10, 29)] == [1, 1, 1 / 3, 1 / 3]
    assert work.left(0) == pytest.approx(10 + 20 / 3)
    assert work.left(10) == pytest.approx(20 / 3)
    assert work.left(30) == 0
    pace = Pace(1, 0, 0, clock)
    for step in range(15):
        clock.now += 6 * work.of(step)
        pace.step(work.of(step))
        if step:
            assert pace.left(work.left(step + 1), 0) == pytest.approx(6 * work.left(step + 1))


@pytest.mark.parametrize("work", [Work(30), Work(30, [0, 10]), Work(30, [0, 10], [0, 5])])
def test_where_nothing_is_counted_all_steps_are_alike(work: Work) -> None:
    assert [work.of(step) for step in (0, 12, 29)] == [1, 1, 1]
    assert work.left(8) == 22
