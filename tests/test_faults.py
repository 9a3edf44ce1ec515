"""A sample of the faults that `python tests/faults.py` injects everywhere, and proof that the injection injects."""

from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path

import faults
import pytest
import torch
from harness import in_process

from okdc.errors import DiskError
from okdc.runs.files import write

COUNTS: dict[str, int] = {}


def places(name: str, most: int) -> list[int]:
    if name not in COUNTS:
        COUNTS[name] = faults.operations_of(faults.SCENARIOS[name])
    return sorted(random.Random(f"{name} {most}").sample(range(1, COUNTS[name] + 1), most))


@pytest.mark.parametrize("kind", [*faults.KILLS, *faults.DISK])
@pytest.mark.parametrize(("name", "most"), [("training", 2), ("export", 1), ("cache", 3)])
def test_a_fault_at_any_file_operation_is_survived_or_said(name: str, most: int, kind: faults.Kind) -> None:
    for at in places(name, most):
        assert faults.spoil(faults.SCENARIOS[name], kind, at) is None, at


@pytest.mark.parametrize("title", faults.FLIPS)
def test_a_flipped_bit_is_noticed_or_changes_nothing(title: str) -> None:
    flipped, files = faults.FLIPS[title]
    for seed, name in enumerate(files()):
        assert flipped(name, seed) is None


@pytest.mark.parametrize(("title", "count"), [("recipes", 60), ("hostile images", 40), ("hostile bundles", 2)])
def test_a_strangers_file_is_refused_in_words_or_used(title: str, count: int) -> None:
    tried, _ = faults.STRANGERS[title]
    problems = [problem for seed in range(count) if (problem := tried(seed))]
    assert problems == []


# --- the injection


@pytest.mark.parametrize(("kind", "number"), [("ENOSPC", errno.ENOSPC), ("EIO", errno.EIO), ("short", errno.ENOSPC)])
def test_each_operation_of_a_write_can_fail(kind: faults.Kind, number: int) -> None:
    path = Path("file")
    path.write_bytes(b"before")
    counting = faults.Operations(Path())
    with faults.injected(counting):
        write(path, b"before")
    assert counting.count >= 4  # open, write, fsync, replace
    for at in range(1, counting.count + 1):
        with faults.injected(faults.Operations(Path(), kind, at)):
            try:
                write(path, b"after")
            except DiskError as error:
                assert os.strerror(number) in error.message
                assert path.read_bytes() in (b"before", b"after")
        path.write_bytes(b"before")
    with faults.injected(faults.Operations(Path(), kind, 1)), pytest.raises(DiskError):
        write(path, b"after")


def test_an_operation_elsewhere_is_none() -> None:
    Path("inside").mkdir()
    counting = faults.Operations(Path("inside"))
    with faults.injected(counting):
        Path("outside").write_text("")
        Path("outside").rename("other")
        assert counting.count == 0
        Path("inside/file").write_text("")
    assert counting.count == 2  # open, write


def test_a_kill_is_one(tmp_path: Path) -> None:
    assert in_process(faults.act_in_child, ("training", "kill", 3, str(tmp_path))) == -9
    assert in_process(faults.act_in_child, ("training", "torn", 10**6, str(tmp_path))) == 0


def test_a_silent_fault_would_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of the scenarios do see damage that okdc does not."""
    monkeypatch.setattr("okdc.training.checkpoint._proven", _unproven)
    problems = [faults.flip_in_checkpoint("checkpoint.pt", seed) for seed in range(8)]
    assert any(problems)


def _unproven(content: bytes) -> object:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
