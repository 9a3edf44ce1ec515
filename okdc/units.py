"""Amounts in words: seconds, bytes and large counts, in the units that a reader thinks in."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`9.3 s`, `45 s`, `12 min`, `3.2 h`, `2.5 days`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, below, size in (("s", 100, 1), ("min", 5400, 60), ("h", 48 * 3600, 3600)):
        if seconds < below:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size(count: int) -> str:
    """Of a file: `12.3 kB`, `4.56 MB`, `1.20 GB`."""
    for unit, of, decimals in (("GB", 1e9, 2), ("MB", 1e6, 2)):
        if count >= of:
            return f"{count / of:,.{decimals}f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def large(count: int) -> str:
    """Of something counted: `812`, `12.3 M`, `4.56 T`, three digits."""
    for unit, of in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if (value := count / of) >= 1:
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return str(count)
