"""Checkpoints that were cut, mixed up or never written; what a resumed run makes of them is in test_resume.py."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from okdc.errors import DiskError, RunError
from okdc.runs.run import RunDir
from okdc.training import checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "method": {"w": torch.full((50,), float(epoch))}, "totals": None, "best": []}


def test_a_run_without_a_checkpoint_has_none_and_says_nothing(run: RunDir) -> None:
    assert checkpoint.load(run) == (None, [])


def test_what_was_saved_is_loaded_and_the_one_before_is_kept(run: RunDir) -> None:
    for epoch in (1, 2, 3):
        checkpoint.save(run, state(epoch))
    found, notes = checkpoint.load(run)
    assert found is not None
    assert notes == []
    assert found["epoch"] == 3
    assert torch.equal(found["method"]["w"], torch.full((50,), 3.0))
    run.checkpoint.unlink()  # a process that died between the two moves of a save
    found, notes = checkpoint.load(run)
    assert found is not None
    assert (found["epoch"], notes) == (2, [])


def test_the_layout_of_a_tensor_survives(run: RunDir) -> None:
    """Momenta are added to weights in raw memory."""
    kernel = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    checkpoint.save(run, {"momentum": kernel})
    found, _ = checkpoint.load(run)
    assert found is not None
    assert found["momentum"].stride() == kernel.stride()
    assert torch.equal(found["momentum"], kernel)


@pytest.mark.parametrize("keep", [0, 1, 30, 0.3, 0.5, 0.9, -100, -1])
def test_a_checkpoint_cut_short_falls_back_to_the_one_before_with_a_note(run: RunDir, keep: float) -> None:
    checkpoint.save(run, state(1))
    checkpoint.save(run, state(2))
    content = run.checkpoint.read_bytes()
    cut = int(keep * len(content)) if isinstance(keep, float) else keep
    run.checkpoint.write_bytes(content[:cut])
    found, notes = checkpoint.load(run)
    assert found is not None
    assert found["epoch"] == 1
    assert len(notes) == 1
    assert "checkpoint.pt is damaged" in notes[0]


def test_one_that_was_fallen_back_to_is_not_lost_at_the_next_save(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The damaged file must not become the one before: a death between the two moves would leave nothing."""
    checkpoint.save(run, state(1))
    checkpoint.save(run, state(2))
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:100])
    checkpoint.load(run)
    move = Path.replace

    def dying(path: Path, target: Path) -> Path:
        if path.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return move(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(DiskError):
            checkpoint.save(run, state(3))
    found, _ = checkpoint.load(run)
    assert found is not None
    assert found["epoch"] == 1


def test_a_bit_that_was_flipped_anywhere_is_damage(run: RunDir) -> None:
    """torch reads the tensors of its archive without a look at their checksums."""
    checkpoint.save(run, state(1))
    checkpoint.save(run, state(2))
    whole = run.checkpoint.read_bytes()
    numbers = random.Random(0)
    for place in [0, len(whole) - 1, *(numbers.randrange(len(whole)) for _ in range(60))]:
        content = bytearray(whole)
        content[place] ^= 1 << numbers.randrange(8)
        run.checkpoint.write_bytes(content)
        before = run.previous_checkpoint.read_bytes()
        loaded, notes = checkpoint.load(run)
        assert loaded is not None
        assert (loaded["epoch"], len(notes)) == (1, 1), place
        run.previous_checkpoint.write_bytes(before)


def test_torch_alone_reads_a_checkpoint(run: RunDir) -> None:
    checkpoint.save(run, state(3))
    assert torch.load(run.checkpoint, weights_only=True)["epoch"] == 3
    with zipfile.ZipFile(run.checkpoint) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(checkpoint.MARK)


def test_two_checkpoints_cut_short_are_an_error_that_names_both(run: RunDir) -> None:
    checkpoint.save(run, state(1))
    checkpoint.save(run, state(2))
    for path in (run.checkpoint, run.previous_checkpoint):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="no checkpoint can be read") as caught:
        checkpoint.load(run)
    assert [line.split()[0] for line in caught.value.details] == [str(run.checkpoint), str(run.previous_checkpoint)]
    assert not any("is used" in line for line in caught.value.details)
    assert str(run.recipe) in caught.value.hint


def sealed(run: RunDir, content: object) -> None:
    """Any content as a checkpoint with a hash that fits."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    checkpoint._seal(buffer)
    run.checkpoint.write_bytes(buffer.getvalue())


class Malice:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("owned"), "")


def test_a_checkpoint_runs_no_code(run: RunDir) -> None:
    sealed(run, state(1) | {"version": checkpoint.VERSION, "more": Malice()})
    with pytest.raises(RunError, match="no checkpoint can be read"):
        checkpoint.load(run)
    assert not Path("owned").exists()


@pytest.mark.parametrize("version", [1, 2, 99])
def test_another_format_is_named_and_not_taken_for_damage(run: RunDir, version: int) -> None:
    """Though a checkpoint of this one lies before it: to go back would lose what the other okdc has trained."""
    checkpoint.save(run, state(1))
    checkpoint.save(run, state(2))
    sealed(run, state(2) | {"version": version})
    with pytest.raises(RunError, match=f"checkpoint format {version}, this okdc reads {checkpoint.VERSION}") as caught:
        checkpoint.load(run)
    assert f"okdc distill {run.recipe}" in caught.value.hint


def test_a_file_of_another_kind_counts_as_damaged(run: RunDir) -> None:
    checkpoint.save(run, state(1))
    checkpoint.save(run, state(2))
    sealed(run, [1, 2])
    found, notes = checkpoint.load(run)
    assert found is not None
    assert (found["epoch"], len(notes)) == (1, 1)


def test_a_save_that_fails_leaves_the_old_checkpoint(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(run, state(1))
    before = run.checkpoint.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match=r"checkpoint\.pt: cannot be written: No space left"):
        checkpoint.save(run, state(2))
    assert run.checkpoint.read_bytes() == before
    assert [path.name for path in run.path.iterdir()] == ["checkpoint.pt"]
