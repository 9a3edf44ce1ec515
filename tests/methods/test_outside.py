"""A method that okdc does not bring: what it leaves out has a default, what it does wrong is told with its name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import ask

from okdc import plugins

Captured = pytest.CaptureFixture[str]

MODULE = """
import torch
from okdc import Config, Method, Step


class Plain(Method[Config]):
    def forward(self, batch, progress):
        z = self.cohort.logits(self.cohort(batch.images))
        losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
        return self.changed(Step(losses, {f"student{k}": z_k for k, z_k in enumerate(z)}))

    def changed(self, step):
        return step


class OtherTitle(Plain):
    title = 3


class Unbuildable(Plain):
    def setup(self):
        {}["fused"]


class Leaving(Plain):
    def setup(self):
        raise SystemExit(3)


class OtherDefaultConfig(Config):
    weight: float = "heavy"


class OtherDefault(Plain, Method[OtherDefaultConfig]):
    pass


class OwnInit(Plain):
    def __init__(self, *arguments):
        torch.nn.Module.__init__(self)


class OtherLeader(Plain):
    def setup(self):
        self.leader = 7


class Views(Plain):
    views = -1


class OtherArguments(Plain):
    def forward(self, images, labels, progress):
        return None


class OtherShapes(Plain):
    def changed(self, step):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


class Nothing(Plain):
    def changed(self, step):
        return None


class NoStudent1(Plain):
    def changed(self, step):
        return Step(step.losses, {"student0": step.logits["student0"]})


class NoLoss(Plain):
    def changed(self, step):
        return Step({}, step.logits)


class LossOfEachImage(Plain):
    def changed(self, step):
        return Step({"ce": step.logits["student0"].mean(1)}, step.logits)


class LossIsANumber(Plain):
    def changed(self, step):
        return Step({"ce": 1.0}, step.logits)


class BeginFails(Plain):
    def begin(self, done):
        {}["epoch"]


class BeginSaysTrue(Plain):
    def begin(self, done):
        return True


class OnePart(Plain):
    parts = 2


class LatePart(Plain):
    parts = (0.5,)


class PartsFall(Plain):
    parts = (0.0, 0.6, 0.4)


class Thaws(Plain):
    parts = (0.0, 0.5)

    def begin(self, done):
        learns = done >= 0.5
        for parameter in self.cohort.backbone(1).parameters():
            parameter.requires_grad_(learns)
        return "student1 learns" if done == 0.5 else ""

    def forward(self, batch, progress):
        step = super().forward(batch, progress)
        learn = [k for k, student in enumerate(self.cohort.backbones()) if next(student.parameters()).requires_grad]
        return Step({f"ce_student{k}": step.losses[f"ce_student{k}"] for k in learn or [0, 1]}, step.logits)
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    """A module of methods in the working directory."""
    name = "methods_from_outside"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    yield name
    sys.modules.pop(name, None)


def distill(capsys: Captured, method: str) -> tuple[int, str]:
    answer = ask(capsys, "distill", f"method.name={method}", "optim.epochs=1", "data.train_images=64", "-o", "runs/it")
    return answer.code, answer.err


def test_a_method_without_a_title_is_called_by_its_class(capsys: Captured, module: str) -> None:
    code, said = distill(capsys, f"{module}:Plain")
    assert code == 0, said
    card = json.loads(Path("runs/it/result.json").read_text())["method_card"]
    assert (card["title"], card["summary"]) == ("Plain", "Trained with Plain.")


def test_what_the_result_is_to_record_of_it_is_checked_before_it_trains(capsys: Captured, module: str) -> None:
    code, said = distill(capsys, f"{module}:OtherTitle")
    assert code == 2
    line = said[said.index("error[recipe]") :].splitlines()[1]
    assert f"{module}:OtherTitle" in line
    assert "title" in line
    assert not Path("runs").exists()


def test_a_default_of_another_type_is_told(capsys: Captured, module: str) -> None:
    code, said = distill(capsys, f"{module}:OtherDefault")
    assert code == 2
    assert "method.weight" in said[said.index("error[recipe]") :]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("Unbuildable", "KeyError: 'fused'"),
        ("Leaving", "SystemExit"),
        ("OwnInit", "__init__"),
        ("OtherLeader", "leader"),
        ("Views", "views"),
        ("OnePart", "parts: expected fractions"),
        ("LatePart", "found (0.5,)"),
        ("PartsFall", "found (0.0, 0.6, 0.4)"),
    ],
)
def test_what_keeps_it_from_being_built_is_a_problem_of_the_recipe(
    capsys: Captured, module: str, name: str, named: str
) -> None:
    code, said = distill(capsys, f"{module}:{name}")
    assert code == 2
    line = said[said.index("error[recipe]") :].splitlines()[1]
    assert f"{module}:{name}" in line
    assert named in line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "error", "named"),
    [
        ("OtherArguments", "TypeError", "progress"),
        ("OtherShapes", "RuntimeError", "shapes"),
        ("Nothing", "TypeError", "NoneType"),
        ("NoStudent1", "ValueError", "student1"),
        ("NoLoss", "ValueError", "loss"),
        ("LossOfEachImage", "TypeError", "[32]"),
        ("LossIsANumber", "TypeError", "float"),
    ],
)
def test_what_its_forward_does_wrong_is_told_at_the_first_step(
    capsys: Captured, module: str, name: str, error: str, named: str
) -> None:
    code, said = distill(capsys, f"{module}:{name}")
    assert code == 2
    line = said[said.index("error[") :].splitlines()[0]
    assert line.startswith("error[training]: ")
    assert f"{module}:{name}" in line
    assert f" {error}: " in line
    assert named in line.partition(error)[2]


@pytest.mark.parametrize(
    ("name", "said"), [("BeginFails", "begin raised KeyError: 'epoch'"), ("BeginSaysTrue", "a sentence or '' from it")]
)
def test_what_its_begin_does_wrong_is_told(capsys: Captured, module: str, name: str, said: str) -> None:
    code, told = distill(capsys, f"{module}:{name}")
    assert code == 2
    line = told[told.index("error[") :].splitlines()[0]
    assert line.startswith(f"error[training]: method.name={module}:{name}: begin raised ")
    assert said in line


def test_a_student_may_begin_to_learn_in_a_later_part(capsys: Captured, module: str) -> None:
    words = (f"method.name={module}:Thaws", "optim.epochs=4", "data.train_images=64", "-o", "runs/it")
    answer = ask(capsys, "distill", *words)
    assert answer.code == 0, answer.err
    assert "student1 learns" in answer.err
    rows = [json.loads(line) for line in Path("runs/it/log.jsonl").read_text().splitlines()]
    assert [len(row["losses"]) for row in rows] == [1, 1, 2, 2]


def test_a_package_that_cannot_be_imported_hides_no_other_method(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "broken-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text("[okdc.methods]\nbroken = no_such_module:It [extra]\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    plugins._entry_points.cache_clear()
    try:
        for words in (["method"], ["keys", "method.rampup"]):
            answer = ask(capsys, "recipes", *words, "--json")
            assert answer.code == 0, answer.err
            assert "method.rampup" in {row["key"] for row in json.loads(answer.out)}
            assert (
                "warning: left out: method broken: no_such_module:It: there is no module no_such_module" in answer.err
            )
        assert ask(capsys, "recipes", "method.broken").code == 2
    finally:
        plugins._entry_points.cache_clear()
