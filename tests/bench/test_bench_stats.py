"""An interval that holds the median as often as it says, and a rule for what is too noisy to tell."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from asking import tried
from hypothesis import given
from hypothesis import strategies as st

from okdc.bench.stats import FEWEST, WIDEST, judged, median_interval, rounded

values = st.lists(st.floats(0.01, 100), min_size=FEWEST, max_size=80)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (30, 10), (60, 22)])
def test_the_order_statistics_are_those_of_the_tables(n: int, k: int) -> None:
    """Conover, table A3: of n values the k-th smallest and the k-th largest."""
    assert median_interval(random.Random(0).sample(range(1, n + 1), n)) == (k, n + 1 - k)


@pytest.mark.parametrize("n", range(FEWEST))
def test_fewer_than_six_values_have_no_interval(n: int) -> None:
    assert median_interval([1.0] * n) is None


@pytest.mark.parametrize("n", [6, 10, 25])
@pytest.mark.parametrize("draw", ["lognormvariate", "uniform"])
def test_it_holds_the_median_in_95_of_100_cases_whatever_the_distribution(n: int, draw: str) -> None:
    source = random.Random(1)
    median = 1.0 if draw == "lognormvariate" else 0.5
    cases, held = 2000, 0
    for _ in range(cases):
        low, high = median_interval([getattr(source, draw)(0, 1) for _ in range(n)]) or (1, 0)
        held += low <= median <= high
    assert held / cases > 0.95 - 3 * math.sqrt(0.95 * 0.05 / cases)


@given(values)
@tried
def test_the_median_lies_inside_and_both_ends_are_values(found: list[float]) -> None:
    low, high = median_interval(found) or (math.nan, math.nan)
    assert low <= statistics.median(found) <= high
    assert {low, high} <= set(found)


def test_quiet_pairs_give_their_median_and_interval() -> None:
    found, why = judged([2.0, 2.1, 2.2, 2.0, 2.1, 2.1, 2.0])
    assert found == {"median": 2.1, "low": 2.0, "high": 2.2, "n": 7}
    assert why == ""


def test_few_pairs_tell_nothing_and_how_many_there_were_is_said() -> None:
    for n, words in ((0, "0 pairs"), (1, "1 pair in"), (5, "5 pairs")):
        found, why = judged([2.0] * n)
        assert found is None
        assert words in why


@given(values)
@tried
def test_an_interval_wider_than_half_of_the_median_is_too_noisy(ratios: list[float]) -> None:
    low, high = median_interval(ratios) or (math.nan, math.nan)
    found, why = judged(ratios)
    assert (found is None) == (high - low > WIDEST * statistics.median(ratios))
    assert (found is None) == why.startswith("too noisy")


@pytest.mark.parametrize("odd", [[-1.0, 1.0] * 5, [math.nan] * 8, [0.0, 0.1] * 5])
def test_what_is_no_ratio_tells_nothing(odd: list[float]) -> None:
    """What a third student adds may come out negative where the machine is noisy."""
    assert judged(odd)[0] is None


def test_numbers_have_four_digits() -> None:
    assert [rounded(x) for x in (123456.7, 1.23456, 0.000123456)] == [123500.0, 1.235, 0.0001235]
