"""Which images calibrate: the same ones anywhere, the same number of each class."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from okdc.errors import DataError
from okdc.precision.calibration import COUNT, FEWEST, choose, pixels_sha256


@given(
    sizes=st.lists(st.integers(0, 80), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= FEWEST),
    count=st.integers(FEWEST, 600),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_class_gives_the_same_number_as_far_as_it_has_them(sizes: list[int], count: int, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = choose(labels, count, seed)
    assert len(rows) == min(count, len(labels))
    assert (np.diff(rows) > 0).all(), "sorted, and none twice"
    taken = np.bincount(labels[rows], minlength=len(sizes))
    most = taken.max()
    for size, n in zip(sizes, taken, strict=True):
        assert n in (most, most - 1) or n == size


def test_the_default_draws_512_in_balance() -> None:
    labels = np.repeat(np.arange(10), 1000)
    taken = np.bincount(labels[choose(labels)])
    assert taken.sum() == COUNT == 512
    assert set(taken) == {51, 52}


def test_another_seed_draws_other_images_and_the_same_seed_the_same() -> None:
    labels = np.arange(1000) % 10
    assert np.array_equal(choose(labels, 100, 3), choose(labels, 100, 3))
    assert not np.array_equal(choose(labels, 100, 3), choose(labels, 100, 4))


def test_the_draw_is_pinned_so_that_two_releases_calibrate_alike() -> None:
    rows = choose(np.arange(1000) % 7, 64, 0)
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16] == "adac92679322d7be"


@pytest.mark.parametrize(("there", "asked"), [(63, 512), (1000, 63)])
def test_too_few_images_are_refused(there: int, asked: int) -> None:
    with pytest.raises(DataError, match="calibration"):
        choose(np.zeros(there, np.int64), asked)


def test_the_hash_is_that_of_the_pixels_in_order_whatever_their_layout() -> None:
    images = np.random.default_rng(0).integers(0, 256, (130, 4, 5, 3), dtype=np.uint8)
    assert pixels_sha256(images) == hashlib.sha256(images.tobytes()).hexdigest()
    assert pixels_sha256(np.asfortranarray(images)) == pixels_sha256(images)
    assert pixels_sha256(images[::-1]) != pixels_sha256(images)
