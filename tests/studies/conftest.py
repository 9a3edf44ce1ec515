from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import ask

NAME = "tiny.toml"
TINY = """
title = "A table of a few seconds"
seeds = [0, 1]
keys = ["optim.epochs=1", "data.train_images=64", "cohort.keep=0", "cohort.keep_epoch=last", "engine.dtype=float32"]
baseline = "baseline"

[columns]
same = ["digits_resnet8"]
unlike = ["digits_resnet8", "students=resnet8,resnet14"]

[methods]
baseline = ["method=baseline"]
kd = ["method=kd"]
fefr = ["method=fefr"]

[where]
baseline = ["same"]
kd = ["same"]

[teacher]
methods = ["kd"]
recipes = { digits = ["digits_resnet8", "method=baseline", "students=resnet14"] }
"""


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the study of TINY was trained by the command. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        (folder / NAME).write_text(TINY, encoding="utf-8")
        yield folder


def trained_by_command(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Train the study, once."""
    if not (folder / "studies/tiny/table.json").is_file():
        answer = ask(capsys, "study", NAME)
        assert answer.code == 0, answer.err
