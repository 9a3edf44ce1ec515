"""Everything that an exact continuation needs, in one file that is never half there.

A checkpoint is a `Position` and the tensors of `okdc.training.step.TrainStep`. The order of the images, their crops and
the learning rate need no place in it: they follow from the seed and the position.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from okdc.distributed import Ranks
from okdc.errors import RunError, first_line
from okdc.runs.files import write, writing
from okdc.runs.run import RunDir
from okdc.training.metrics import Totals
from okdc.training.selection import Record

VERSION = 6  # since 5, the seconds of the epoch that is not over; since 6, averages and counts by class
MARK = b"sha256:"
SEAL = len(MARK) + hashlib.sha256().digest_size * 2  # bytes at the end of the file


@dataclass
class Position:
    """How far a training has come. Each process has one; only the first process fills `best` and `rows`."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch after those
    totals: Totals | None = None  # losses and accuracies of those steps; None between two epochs
    best: list[Record] = field(
        default_factory=list
    )  # each student at its best epoch; empty before the first validation
    seconds: float = 0.0  # spent in steps, over all starts, the waiting for their batches included
    seconds_epoch: float = 0.0  # the same of the epoch that is not over
    seconds_data: float = 0.0  # of these the waiting for batches
    rows: list[dict[str, Any]] = field(default_factory=list)  # log.jsonl

    def state(self, totals: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """For a checkpoint. `totals`: what each process has counted in this epoch; empty between two epochs."""
        return vars(self) | {"totals": list(totals) or None}

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device, ranks: Ranks) -> Position:
        """What `state` gave, for this process, in which the steps run on `device`."""
        totals = Totals.resumed(state["totals"], device, ranks) if state["totals"] else None
        names = [field.name for field in fields(cls) if field.name != "totals"]
        return cls(totals=totals, **{name: state[name] for name in names})


def save(run: RunDir, state: dict[str, Any]) -> None:
    """Write checkpoint.pt; the one before it stays as checkpoint.previous.pt. Raises DiskError, both then untouched."""
    buffer = io.BytesIO()
    torch.save(state | {"version": VERSION}, buffer)
    _seal(buffer)
    write(run.checkpoint, buffer.getbuffer(), previous=run.previous_checkpoint)


def _seal(buffer: io.BytesIO) -> None:
    """Add the sha256 of the file, as the comment of the zip archive that torch.save writes: torch still reads it."""
    buffer.seek(-2, os.SEEK_END)  # the last two bytes of an archive are the length of its comment
    assert buffer.read() == bytes(2)
    buffer.seek(-2, os.SEEK_END)
    buffer.write(SEAL.to_bytes(2, "little"))
    buffer.write(MARK + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())


def _proven(content: bytes) -> dict[str, Any]:
    """What `save` saved. Raises ValueError where a bit of it is another."""
    body, seal = memoryview(content)[:-SEAL], content[-SEAL:]
    if seal != MARK + hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its content has not the sha256 at its end")
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def is_written(run: RunDir) -> bool:
    """Whether there is a checkpoint, good or damaged."""
    return run.checkpoint.exists() or run.previous_checkpoint.exists()


def load(run: RunDir) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that can be read, and notes on those that could not. None: the run never wrote one.

    Raises RunError where there are checkpoints and none can be read.
    """
    damaged: list[str] = []
    paths = [path for path in (run.checkpoint, run.previous_checkpoint) if path.exists()]
    for path in paths:
        try:
            state = _proven(path.read_bytes())
            if state["version"] != VERSION:
                raise RunError(
                    f"{path}: checkpoint format {state['version']}, this okdc reads {VERSION}",
                    hint=f"continue it with the version that began it; or start again: okdc distill {run.recipe}",
                )
        except RunError:
            raise
        except Exception as error:  # of a cut or changed file, and of an older okdc's
            damaged.append(f"{path} is damaged ({first_line(error)})")
        else:
            notes = [f"{each}: the checkpoint before it is used" for each in damaged]
            if notes:  # put the good one back: at the next save the damaged file would take its place
                with writing(run.checkpoint):
                    path.replace(run.checkpoint)
            return state, notes
    if paths:
        stands = "its student and its result stand" if run.result.is_file() else "it cannot go on"
        raise RunError(
            f"{run.path}: no checkpoint can be read",
            hint=f"{stands}; a training with its recipe begins anew: okdc distill {shlex.quote(str(run.recipe))}",
            details=damaged,
        )
    return None, []
