from __future__ import annotations

import inspect
import re

import pytest

from okdc import errors
from okdc.errors import CheckFailed, Interrupted, OkdcError, ToldElsewhere, first_line, nearest, quoted

EVERY = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, Exception)]
OWN = [found for found in EVERY if issubclass(found, OkdcError)]


def test_the_tree_in_the_docstring_is_the_tree_of_the_module() -> None:
    drawn = dict(re.findall(r"^ {4}[├└]── (\w+) +(\w+)", errors.__doc__ or "", re.M))
    assert OWN == EVERY
    assert set(drawn) == {found.__name__ for found in OWN} - {"OkdcError"}
    assert all(found.__bases__ == (OkdcError,) for found in OWN if found is not OkdcError)
    for found in OWN:
        if found in (OkdcError, CheckFailed, Interrupted, ToldElsewhere):
            continue
        assert found.kind == drawn[found.__name__]
        assert found.exit_code == 2
    assert OkdcError.exit_code == 2
    assert CheckFailed.exit_code == 1


def test_each_kind_is_used_by_one_error_alone() -> None:
    kinds = [found.kind for found in OWN]
    assert len(set(kinds)) + 1 == len(kinds)  # a check that failed names its own kind instead


def test_a_failed_check_carries_its_kind_and_an_interruption_its_exit_code() -> None:
    assert CheckFailed("parity", "differs").kind == "parity"
    assert [Interrupted("saved", exit_code=code).exit_code for code in (130, 143)] == [130, 143]


def test_an_error_is_its_message_and_keeps_hint_and_details() -> None:
    error = errors.DataError("what", hint="how", details=["a", "b"])
    assert (str(error), error.message, error.hint, error.details) == ("what", "what", "how", ("a", "b"))


@pytest.mark.parametrize(("word", "suggested"), [("epoch", "epochs"), ("batchsize", "batch_size"), ("zzz", None)])
def test_nearest_suggests_a_close_word_and_nothing_for_a_far_one(word: str, suggested: str | None) -> None:
    assert nearest(word, ["epochs", "batch_size", "lr"]) == (f" (did you mean {suggested!r}?)" if suggested else "")


def test_an_exception_without_a_message_is_named_by_its_kind() -> None:
    assert first_line(MemoryError()) == "MemoryError"
    assert first_line(ValueError("\nbelow")) == "below"


def test_a_strangers_message_is_one_line_without_what_a_terminal_obeys() -> None:
    assert first_line(ValueError("node \x1b[2Jx\nstack")) == "node ?[2Jx"
    assert quoted("a\n\x1b") == r"'a\n\x1b'"


def test_a_long_value_is_cut() -> None:
    assert quoted("x" * 500, 10) == f"'{'x' * 9}..."
    assert quoted("x" * 8, 10) == "'xxxxxxxx'"
