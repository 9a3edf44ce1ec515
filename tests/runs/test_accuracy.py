from __future__ import annotations

import pytest
from asking import tried
from hypothesis import given
from hypothesis import strategies as st

from okdc.runs.accuracy import ByClass, above_largest_class, not_above, wilson_pct, with_interval


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3: Wilson's score without correction
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_the_interval_is_that_of_the_published_table(right: int, images: int, low: float, high: float) -> None:
    assert wilson_pct(100 * right / images, images) == pytest.approx((low, high), abs=0.006)


counts = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@tried
@given(counts)
def test_an_interval_has_a_width_stays_in_0_to_100_and_holds_its_accuracy(count: tuple[int, int]) -> None:
    right, images = count
    top1_pct = round(100 * right / images, 4)
    low, high = wilson_pct(top1_pct, images)
    assert 0 <= low <= top1_pct <= high <= 100
    assert high - low > 100 / (images + 10)
    if images <= 10_000:
        assert not with_interval(top1_pct, images).endswith("[100.00, 100.00]")


def test_no_accuracy_is_printed_as_certain() -> None:
    assert with_interval(100.0, 60) == "100.00 [93.98, 100.00]"
    assert with_interval(0.0, 60) == "0.00 [0.00, 6.02]"


def test_balanced_accuracy_is_the_mean_of_the_classes_that_occur() -> None:
    counts = ByClass([20, 139, 60, 0], [0, 139, 0, 0])
    assert (counts.top1_pct, counts.balanced_pct) == (63.4703, 33.3333)
    assert (counts.largest_pct, counts.smallest_pct) == (63.4703, 9.1324)
    assert counts.balanced_step == pytest.approx(100 / 60)


@pytest.mark.parametrize(
    ("top1_pct", "images", "above"),
    [(63.4703, 219, False), (68.0, 219, False), (70.0, 219, True), (63.6, 100_000, False), (63.8, 100_000, True)],
)
def test_above_the_largest_class_means_beyond_chance(top1_pct: float, images: int, above: bool) -> None:
    assert above_largest_class(top1_pct, images, 63.4703) == above
    assert bool(not_above(top1_pct, images, 63.4703)) != above
