"""A method that asks for further views of each image gets them in training, and stands apart in a comparison."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from harness import recipe, start

from okdc.assembly import job as assembly
from okdc.comparison.compare import compare
from okdc.errors import RecipeError
from okdc.methods.base import Batch
from okdc.runs.run import RunDir

MODULE = """
import torch
from okdc import Config, Method, Step


class Twins(Method[Config]):
    least_students = 2
    seen = []

    def setup(self):
        self.views = len(self.cohort.students) - 1

    def forward(self, batch, progress):
        if self.training:
            assert len(batch.views) == self.views
            Twins.seen.append([torch.equal(batch.view(0), batch.view(k)) for k in range(len(self.cohort.students))])
        z = [network(batch.view(k)) for k, network in enumerate(self.cohort.backbones())]
        losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
        return Step(losses, {f"student{k}": z_k for k, z_k in enumerate(z)})
"""
NAME = "method.name=twins:Twins"


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("twins.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "twins", raising=False)


def run_of(name: str, *words: str) -> RunDir:
    return start(name, "optim.epochs=2", *words)


@pytest.mark.usefixtures("twins")
def test_each_network_sees_a_view_of_its_own_in_training_and_the_run_says_how_many() -> None:
    run = run_of(NAME)
    assert run.read_result().views == 1
    seen = sys.modules["twins"].Twins.seen
    assert len(seen) >= 4
    assert all(first and not second for first, second in seen)


@pytest.mark.usefixtures("twins")
def test_a_comparison_names_the_views_in_each_row_and_in_a_note() -> None:
    own, one = run_of(NAME), run_of("method.name=dml")
    report = compare([own.path, one.path])
    assert sorted(row["name"] for row in report["rows"]) == ["dml, 1 view", "twins:Twins, 2 views"]
    assert [note for note in report["notes"] if "views" in note and str(own.path) in note]
    assert not [note for note in compare([one.path])["notes"] if "view" in note]


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize(
    ("words", "named"),
    [(["augment.padding=0", "augment.flip=false"], "[augment]"), (["augment.mixup=0.2"], "augment.mixup")],
)
def test_views_that_would_be_equal_or_mixed_are_refused(words: list[str], named: str) -> None:
    with pytest.raises(RecipeError) as caught:
        assembly.assemble(recipe(NAME, *words), 10)
    (problem,) = caught.value.details
    assert problem.startswith("[method] twins:Twins: ")
    assert named in problem


def test_a_batch_without_further_views_shows_every_network_the_same_images() -> None:
    images, other = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    labels = torch.zeros(1, dtype=torch.int64)
    alone, several = Batch(images, labels), Batch(images, labels, views=(other,))
    assert [alone.view(k) is images for k in range(3)] == [True] * 3
    assert several.view(0) is images
    assert several.view(1) is other
