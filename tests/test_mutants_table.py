"""The table of mutants stays one that can be planted: nothing is run here, `python tests/mutants.py` does that."""

from __future__ import annotations

from collections import Counter

import mutants
import pytest
from mutants_table import MUTANTS, Mutant

AREAS = (
    "methods", "blocks", "cohort", "loop", "selection", "checkpoint", "resume", "data", "parity", "trial", "precision",
    "statistics", "budget", "profile", "backbones", "starts", "verify", "hashes", "survey", "gpu", "words", "progress",
    "tracking", "report",
)  # fmt: skip


def test_every_mutant_has_its_place_and_its_tests() -> None:
    assert [line for mutant in MUTANTS for line in mutants.problems(mutant)] == []


def test_names_are_different_and_every_area_has_mutants() -> None:
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
    assert {mutant.name.partition("/")[0] for mutant in MUTANTS} == set(AREAS)
    assert [mutant.name for mutant in MUTANTS if mutant.old == mutant.new] == []
    assert len(MUTANTS) >= 60


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"old": "no such text"}, "occurs 0 times"),
        ({"old": "import"}, "expected once"),
        ({"new": "FACTOR ="}, "no Python"),
        ({"tests": ("tests/deploy/test_onnx.py::test_that_is_not_there",)}, "no test"),
        ({"file": "okdc/nothing.py"}, "okdc/nothing.py"),
    ],
)
def test_a_table_that_rots_is_noticed(changed: dict[str, object], said: str) -> None:
    facts = {"name": "a", "file": "okdc/deploy/parity.py", "old": "FACTOR = 16", "new": "FACTOR = 1", "tests": ()}
    (line,) = mutants.problems(Mutant(**(facts | changed)))  # type: ignore[arg-type]
    assert said in line
