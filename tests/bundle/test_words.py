"""A stranger's words in a message: one line, bearable, nothing that a terminal obeys."""

from __future__ import annotations

from okdc.bundle.words import first_line, quoted


def test_an_exception_that_says_nothing_is_named_by_its_kind() -> None:
    assert first_line(MemoryError()) == "MemoryError"
    assert first_line(ValueError("\nbelow")) == "ValueError"


def test_a_message_is_one_line_without_what_a_terminal_obeys() -> None:
    assert first_line(ValueError("node \x1b[2Jx\nstack")) == "node ?[2Jx"
    assert quoted("a\n\x1b") == r"'a\n\x1b'"


def test_what_is_long_is_cut() -> None:
    assert quoted("x" * 500, 10) == f"'{'x' * 9}..."
    assert quoted("x" * 8, 10) == "'xxxxxxxx'"
