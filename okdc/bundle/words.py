"""What a stranger's file says, put into a message: on one line, of bearable length, nothing that a terminal obeys."""

from __future__ import annotations


def quoted(thing: object, most: int = 200) -> str:
    """Any value as Python writes it, its first `most` characters."""
    text = repr(thing)
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: BaseException) -> str:
    """What an exception says; names in it may be a file's. Its kind, where it says nothing."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line)
