"""Amounts in words: seconds, bytes and other numbers, in the units that a reader thinks in."""

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


def number(value: float) -> str:
    """Of something counted or measured: `0.05`, `12`, `1.2k`, `3M`, `1.5G`, `2.4T`, four digits at most."""
    for of, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= of:
            return f"{value / of:.4g}{letter}"
    return f"{value:.4g}"
