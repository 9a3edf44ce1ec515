"""Ctrl-C as a command starts: a sample of what `tests/interrupting.py` tries."""

from __future__ import annotations

import pytest
from interrupting import TRAINING, Ended, at_import


@pytest.mark.parametrize(("module", "times"), [(1, 1), ("typer", 2), ("rich.console", 3), ("okdc.recipe.schema", 2)])
def test_ctrl_c_while_a_command_is_imported_ends_it_with_one_line(module: str | int, times: int) -> None:
    """A signal that comes while a module is imported is looked at again 0.02 s later: this command may be done."""
    ended = at_import(module, times, ["recipes"])
    lines = ended.err.splitlines()
    assert (ended.code, lines[-1:]) == (130, ["interrupted"])
    assert lines[:-1] in ([], ["next: okdc distill RECIPE"])


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_torch_imports_numpy_is_not_swallowed(times: int) -> None:
    ended = at_import("numpy", times, TRAINING)
    assert ended == Ended(130, "interrupted\n")
