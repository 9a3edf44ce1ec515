"""CITATION.cff cites this version of okdc and the two papers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import okdc

ROOT = Path(__file__).resolve().parents[1]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_version_is_the_packages() -> None:
    assert re.findall(r"^version: (.*)$", CITATION, re.M) == [okdc.__version__]


def test_the_licence_and_the_papers_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nlicense: {project['license']}\n" in CITATION
    papers = {"https://doi.org/" + doi for doi in re.findall(r"^    doi: (.*)$", CITATION, re.M)}
    papers |= set(re.findall(r'^    url: "(.*)"$', CITATION, re.M))
    assert papers == set(project["urls"].values())
