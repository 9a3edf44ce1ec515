"""The committed tables of results, held against their logs: recipes/results/STUDY.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from okdc.comparison import stats
from okdc.recipe import catalog
from okdc.studies.markdown import markdown, sentences
from okdc.studies.schema import TEACHERS, read, studies

RECIPES = catalog.folder("recipes")
README = (RECIPES / "README.md").read_text(encoding="utf-8")
LOGS = sorted((RECIPES / "results").glob("*.json"))
SHA256 = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(params=LOGS, ids=[path.stem for path in LOGS])
def log(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def report_of(log: Path) -> dict[str, Any]:
    report = json.loads(log.read_text(encoding="utf-8"))
    assert isinstance(report, dict)
    return report


def test_the_guide_prints_each_log_as_the_command_does(log: Path) -> None:
    title, _, table = markdown(report_of(log)).partition("\n")
    assert f"#{title}\n" in README or f"##{title}\n" in README
    assert table.strip() in README
    assert f"](results/{log.name})" in README


def test_a_key_that_a_method_has_from_its_columns_recipe_is_named() -> None:
    report = report_of(RECIPES / "results/few_readings.json")
    for row in report["rows"]:
        row["variant"] += " teacher_indices=[0, 2] ce_weight=0.5"
    lines = sentences(report)
    assert "fefr: method=fefr; its runs have teacher_indices=[0, 2], ce_weight=0.5" in lines
    (other,) = (line for line in lines if line.startswith("T1: "))
    assert other.endswith("method.temperature=1; its runs have teacher_indices=[0, 2], ce_weight=0.5"), "and once"


def test_a_log_has_every_run_of_its_study_with_what_a_repetition_has_to_give(log: Path) -> None:
    report, path = report_of(log), studies()[log.stem]
    study = read(path)
    assert report["left_out"] == []
    assert (report["title"], report["remarks"]) == (study.title, list(study.remarks))
    assert report["methods"] == {name: list(words) for name, words in study.methods.items()}
    wanted = {f"{column}/{method}/seed{seed}" for column, method in study.cells() for seed in study.seeds}
    runs = {each["run"]: each for each in report["runs"] if not each["run"].startswith(f"{TEACHERS}/")}
    assert set(runs) == wanted
    for each in runs.values():
        assert all(SHA256.fullmatch(each[key]) for key in ("recipe_sha256", "weights_sha256", "data_sha256"))
    assert sum(maker["runs"] for maker in report["made_by"]) == len(report["runs"])
    assert all(maker["versions"]["torch"] and maker["processor"] for maker in report["made_by"])


def test_the_numbers_of_a_log_go_together(log: Path) -> None:
    report = report_of(log)
    for row in report["rows"]:
        errors = row["error_pct_by_seed"]
        assert list(errors) == list(map(str, report["seeds"]))
        assert row["error_pct"] == pytest.approx(sum(errors.values()) / len(errors), abs=2e-4)
        low, high = row["interval_pct"]
        assert low <= row["error_pct"] <= high
        if row["head"] == "student":
            for seed, error in errors.items():
                (run,) = [r for r in report["runs"] if r["run"] == f"{row['column']}/{row['method']}/seed{seed}"]
                # The student that is kept answers by itself: of 10,000 images one may be a tie but for rounding.
                assert error == pytest.approx(100 - run["top1_pct"], abs=0.0101)
            assert row["training_macs"] > 0
        if difference := row["minus_baseline"]:
            (base,) = [
                r
                for r in report["rows"]
                if (r["column"], r["method"], r["head"]) == (row["column"], report["baseline"], "student")
            ]
            assert difference["points"] == pytest.approx(row["error_pct"] - base["error_pct"], abs=3e-4)
            ends = difference["interval_points"]
            assert difference["verdict"] == stats.verdict(difference["n"], (-ends[1], -ends[0]))


def test_a_log_names_no_place_of_the_machine_that_made_it(log: Path) -> None:
    assert not re.search(r'"/|/(tmp|home|root|work|Users)/', log.read_text(encoding="utf-8"))
