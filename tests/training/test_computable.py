"""Before its first step a training asks whether its students can be computed in bfloat16: autocast does not say."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from harness import Quiet, built, recipe, resume, start, write_recipe

from okdc.assembly import job as assembly
from okdc.errors import RecipeError
from okdc.training import computable, device
from okdc.training.device import Settings

Captured = pytest.CaptureFixture[str]

NETS = """
import random
import numpy as np
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, classes, pairs, width):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Dropout(0.1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Bilinear(8, width, classes) if pairs else nn.Linear(width, classes)
        self.pairs = pairs

    def forward(self, x):
        x = self.b(self.a(x)).mean((2, 3))
        return self.fc(x, x) if self.pairs else self.fc(x)

class Drawing(nn.Module):
    def forward(self, x):
        return x + random.random() + np.random.rand() if self.training else x

def pairs(classes):
    return Mine(classes, True, 8)

def plain(classes):
    return Mine(classes, False, 8)

def drawing(classes):
    network = plain(classes)
    network.b.append(Drawing())
    return network
"""
SHORT = ("method.name=dml", "cohort.share=none", "optim.epochs=1")


@pytest.fixture(autouse=True)
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "computed_nets", raising=False)
    Path("computed_nets.py").write_text(NETS, encoding="utf-8")


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` takes on a processor that has it."""
    monkeypatch.setattr(device, "_dtype", lambda *_: ("bfloat16", "amx_bf16"))


def words(*names: str, dtype: str = "auto") -> tuple[str, ...]:
    return (*SHORT, f"cohort.students={[f'computed_nets:{name}' for name in names]}", f"engine.dtype={dtype}")


def test_a_type_that_was_asked_for_and_that_a_student_refuses_is_an_error_before_the_images_are_read(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object) -> None:
        raise AssertionError("the images were read before the students were tried")

    monkeypatch.setattr(assembly, "dataset", unread)
    asked = (str(write_recipe()), *words("plain", "pairs", dtype="bfloat16"))
    answer = ask(capsys, "distill", *asked, "-o", "refused")
    assert answer.code == 2
    assert answer.err.count("error[recipe]: ") == 1
    assert all(part in answer.err for part in ("engine.dtype=bfloat16", "computed_nets:pairs", "on cpu"))
    assert answer.err.rpartition("hint: ")[2].strip() == "engine.dtype=float32"
    assert not Path("refused").exists()
    assert ask(capsys, "check", *asked).code == 2


@pytest.mark.usefixtures("bfloat16")
def test_a_type_that_nobody_asked_for_is_float32_then_and_the_run_says_why_and_keeps_it() -> None:
    tell = Quiet()
    run = start(*words("plain", "pairs"), tell=tell, export_check="skipped")
    assert run.read_info().settings.dtype == "float32"
    (note,) = [note for note in tell.notes if note.startswith("dtype float32")]
    assert "computed_nets:pairs" in note
    assert resume(run.path).read_info().settings.dtype == "float32"
    assert start(*words("plain", "plain"), export_check="skipped").read_info().settings.dtype == "bfloat16"


def test_the_question_changes_nothing_in_the_student_and_in_random_numbers() -> None:
    cohort = built(recipe(*words("drawing", "drawing"))).method.cohort
    before = {name: tensor.clone() for name, tensor in cohort.state_dict().items()}

    def states() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist()

    drawn, settings = states(), Settings("cpu", "bfloat16", "contiguous", 1)
    assert computable.settled(settings, cohort.backbones(), 8, "auto", "here") is settings
    assert states() == drawn
    assert all(torch.equal(tensor, before[name]) for name, tensor in cohort.state_dict().items())
    assert all(parameter.grad is None for parameter in cohort.parameters())


@pytest.mark.parametrize("message", ["can't allocate memory", "it is wrong in any type"])
def test_what_float32_does_not_help_is_left_to_the_first_step(message: str) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu") or "memory" not in message:
                raise RuntimeError(message)
            return x

    student = built(recipe(*words("plain", "plain"))).method.cohort.backbone(0)
    student.stages.append(Wrong())
    settings = Settings("cpu", "bfloat16", "contiguous", 1)
    assert computable.settled(settings, [student], 8, "bfloat16", "here") is settings


def test_only_networks_that_are_not_okdcs_own_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(computable, "_refusal", lambda *_: "not in this one")
    own = built(recipe("optim.epochs=1")).method.cohort.backbones()
    foreign = built(recipe(*words("plain", "plain"))).method.cohort.backbones()
    settings = Settings("cpu", "bfloat16", "contiguous", 1)
    assert computable.settled(settings, own, 8, "bfloat16", "here") is settings
    with pytest.raises(RecipeError) as caught:
        computable.settled(settings, foreign, 8, "bfloat16", "here")
    assert "not in this one" in caught.value.message
    monkeypatch.setattr(computable, "_refusal", raises)
    whole = Settings("cpu", "float32", "contiguous", 1)
    assert computable.settled(whole, foreign, 8, "auto", "here") is whole
