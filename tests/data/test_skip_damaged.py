"""Damaged images that a recipe leaves out: run, evaluation, bundle and verification leave out the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import ask, write_tree

from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
BAD = ["train/a/003.png", "test/b/001.png"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.fixture
def root() -> Path:
    made = write_tree(Path("root"), {"train": {"a": 12, "b": 12}, "test": {"a": 6, "b": 6}})
    for name in BAD:
        cut(made / name)
    return made


def test_every_command_leaves_out_the_same_images_and_says_so(capsys: Captured, root: Path) -> None:
    words = ["data.name=folder", "data.root=root", "data.image_size=8", "optim.epochs=1", "optim.batch_size=4"]
    words += ["method.name=baseline", "-o", "run"]
    answer = ask(capsys, "distill", *words)
    assert (answer.code, Path("run").exists()) == (2, False)
    assert all(f"root/{name}" in answer.err for name in BAD)
    answer = ask(capsys, "distill", "data.skip_damaged=true", *words)
    assert answer.code == 0, answer.err
    assert "2 of 36 images are damaged" in answer.err
    run = RunDir.open(Path("run"))
    assert sorted(line.partition(": ")[0] for line in run.read_info().skipped_images) == sorted(BAD)
    assert run.read_result().images == 11
    assert ask(capsys, "evaluate", "run").code == 0

    answer = ask(capsys, "export", "run", "--onnx")
    assert answer.code == 0, answer.err
    card = Path("run/bundle/README.md").read_text(encoding="utf-8")
    assert "2 damaged images" in card
    assert all(name in card for name in BAD)
    for command in ("verify", "evaluate"):
        answer = ask(capsys, command, "run/bundle", "--data-root", "root")
        assert answer.code == 0, answer.err

    cut(root / "test/a/000.png")
    (root / BAD[0]).write_bytes((root / "train/a/000.png").read_bytes())
    answer = ask(capsys, "evaluate", "run")
    assert answer.code == 2
    assert f"left out when it started: {BAD[0]}" in answer.err
    assert "left out now: test/a/000.png" in answer.err
    assert ask(capsys, "verify", "run/bundle", "--data-root", "root").code != 0
