"""How many images of each class a drawn split has. No torch: whoever plans a training counts as it will."""

from __future__ import annotations

from collections.abc import Sequence

from okdc.errors import DataError

TEST_SHARE = 0.2  # of a data set without splits


def test_images(count: int) -> int:
    """How many of `count` images the test split of a data set without splits has."""
    return round(TEST_SHARE * count)


def validation_images(val_fraction: float, train_images: int) -> int:
    """How many training images are held out, where the data brings no validation split."""
    return round(val_fraction * train_images)


def most_outside(sizes: Sequence[int]) -> int:
    """The most images that a drawn split may have: each class keeps an image outside it."""
    return sum(max(size - 1, 0) for size in sizes)


def apportion(sizes: Sequence[int], count: int, purpose: str, everyone: bool = False) -> list[int]:
    """The images that each class, of so many, has in a split of `count`: in proportion, by largest remainders.

    Each class keeps an image outside the split; with `everyone`, each has an image in the split instead. Raises
    DataError, which names `purpose`, where that is impossible.
    """
    least = [min(1, n) if everyone else 0 for n in sizes]
    most = list(sizes) if everyone else [max(n - 1, 0) for n in sizes]
    whole = sum(sizes)
    if not sum(least) <= count <= sum(most):
        raise DataError(
            f"{purpose}: expected {sum(least)} to {sum(most)} of {whole} images, found {count} (each class keeps one)",
            hint="more images of each class, or another data.val_fraction or data.train_images",
        )
    exact = [count * n / whole for n in sizes]
    take = [min(max(int(e), low), high) for e, low, high in zip(exact, least, most, strict=True)]
    while sum(take) != count:
        sign = 1 if sum(take) < count else -1
        adjustable = [c for c in range(len(take)) if least[c] <= take[c] + sign <= most[c]]
        best = max(adjustable, key=lambda c: (sign * (exact[c] - take[c]), -c))
        take[best] += sign
    return take
