"""Everything that an exact continuation needs, in one file that is never half there."""

from __future__ import annotations

import io
from typing import Any

import torch

from okdc.errors import RunError
from okdc.runs.files import write, writing
from okdc.runs.run import Run

VERSION = 3  # since 2, `best` is a list: the best epoch of each student; since 3, `totals`: the counts of each process


def save(run: Run, state: dict[str, Any]) -> None:
    """Write checkpoint.pt; the one before it stays as checkpoint.previous.pt. Raises DiskError, both then untouched."""
    buffer = io.BytesIO()
    torch.save(state | {"version": VERSION}, buffer)
    write(run.checkpoint, buffer.getvalue(), previous=run.previous_checkpoint)


def load(run: Run) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that can be read, and notes on those that could not. None: the run never wrote one.

    Raises RunError where there are checkpoints and none can be read.
    """
    notes: list[str] = []
    paths = [path for path in (run.checkpoint, run.previous_checkpoint) if path.exists()]
    for path in paths:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if state["version"] != VERSION:
                raise RunError(
                    f"{path}: checkpoint format {state['version']}, this okdc reads {VERSION}",
                    hint=f"the version that began it continues it; or start again: okdc distill {run.recipe}",
                )
        except RunError:
            raise
        except Exception as error:  # a cut file: RuntimeError, EOFError, UnpicklingError, KeyError, ...
            notes.append(f"{path} is damaged ({type(error).__name__}): the checkpoint before it is used")
        else:
            if notes:  # put the good one back: at the next save the damaged file would take its place
                with writing(run.checkpoint):
                    path.replace(run.checkpoint)
            return state, notes
    if paths:
        raise RunError(f"{run.path}: no checkpoint can be read", hint="start again: okdc distill", details=notes)
    return None, notes
