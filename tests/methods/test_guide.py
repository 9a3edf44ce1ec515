"""The guide's method, as it is printed, trains a run and is known by its own words."""

from __future__ import annotations

import re
from pathlib import Path

import okdc.methods
from okdc.__main__ import main
from okdc.runs.files import read_json

GUIDE = Path(okdc.methods.__file__).with_name("README.md")


def block(language: str) -> str:
    """The first of the guide's blocks in that language."""
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_guides_method_trains_a_run() -> None:
    Path("mymethod.py").write_text(block("python"), encoding="utf-8")
    command, *_ = block("sh").splitlines()
    assert main(command.split()[1:]) == 0
    result = read_json(Path("runs/digits_resnet8-1/result.json"))
    assert result["method"] == "mymethod:MyMethod"
    assert result["variant"] == "mymethod:MyMethod start=0.2"
    assert result["method_card"]["title"] == "Late peers"
    assert set(result["heads_last_epoch_top1_pct"]) == {"student0", "student1", "ensemble"}


def test_the_guides_attributes_are_those_of_a_method() -> None:
    from okdc.methods.base import Method

    names = re.findall(
        r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE))
    )
    declared = set(Method.__annotations__)
    assert set(names) <= declared
    assert declared - set(names) == {"Config", "notes", "label_smoothing", "class_weights", "teacher"} | {
        "unrolled"  # where the guide speaks of `forward`
    }
