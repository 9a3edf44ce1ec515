"""Numbers of threads and processes that no machine can start are refused with the bound, everywhere they are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from asking import ask
from harness import recipe

import okdc
from okdc.data.workers import cores, refuse_too_many
from okdc.errors import DeviceError
from okdc.recipe.schema import Engine
from okdc.training import device

Captured = pytest.CaptureFixture[str]
MANY = "100000"


@pytest.mark.parametrize(
    "words",
    [
        ("distill", "--threads", MANY),
        ("distill", f"engine.threads={MANY}"),
        ("distill", f"engine.workers={MANY}"),
        ("bench", "--threads", MANY, "--seconds", "1"),
        ("profile", "resnet8", "--threads", MANY),
    ],
)
def test_too_many_threads_are_refused_with_the_bound(capsys: Captured, words: tuple[str, ...]) -> None:
    answer = ask(capsys, *words)
    assert answer.code == 2
    assert "error[device]" in answer.err
    assert "found 100,000" in answer.err
    assert f"{64 if 'workers' in words[1] else 4 * cores():,} at most" in answer.err or cores() > 16
    assert not Path("runs").exists()


def test_a_bundle_is_not_asked_with_too_many_threads(capsys: Captured, exported: Path) -> None:
    answer = ask(capsys, "predict", str(exported), str(exported / "sample"), "--threads", MANY)
    assert (answer.code, answer.out) == (2, "")
    assert "error[device]: threads" in answer.err
    with pytest.raises(DeviceError):
        okdc.Bundle(exported).predict(np.zeros((1, 8, 8, 3), np.uint8), threads=int(MANY))
    assert ask(capsys, "predict", str(exported), str(exported / "sample"), "--batch", "1" + "0" * 30).code == 0


@pytest.mark.parametrize("number", [MANY, " 100000 ", "9" * 30])
def test_the_environment_asks_for_no_more_either(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    answer = ask(capsys, "recipes")
    assert answer.code == 2
    assert "OMP_NUM_THREADS" in answer.err


def test_as_many_as_are_of_use_are_taken() -> None:
    refuse_too_many("threads", 4 * cores())
    refuse_too_many("workers", 64, processes=True)
    with pytest.raises(DeviceError):
        refuse_too_many("threads", 4 * cores() + 1)
    chosen = device.choose(Engine(threads=cores(), workers=64), recipe().recipe.data.image_size)
    assert (chosen.threads, chosen.workers) == (cores(), 64)
