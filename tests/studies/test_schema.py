"""A study's file: strict about its keys, and every shipped one can be trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from okdc.errors import RecipeError
from okdc.methods import METHODS
from okdc.studies.plan import planned
from okdc.studies.schema import FILE, find, read, studies

GOOD: dict[str, Any] = {
    "title": "one",
    "seeds": [0, 1],
    "keys": ["optim.epochs=1"],
    "baseline": "baseline",
    "columns": {"small": ["digits_resnet8"], "large": ["digits_resnet8", "students=resnet14,resnet14"]},
    "methods": {"baseline": ["method=baseline"], "fefr": ["method=fefr"]},
}


def written(**keys: Any) -> Path:
    path = Path("one.toml")
    path.write_text(tomli_w.dumps({**GOOD, **keys}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"seed": [0]}, ["seed", "seeds"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [1, 1]}, ["seeds"]),
        ({"seeds": [-1]}, ["seeds[0]"]),
        ({"columns": {}}, ["columns"]),
        ({"columns": {"a/b": ["digits_resnet8"]}}, ["columns"]),
        ({"columns": {"teachers": ["digits_resnet8"]}}, ["columns", "teachers"]),
        ({"columns": {"small": []}}, ["columns", "at least 1"]),
        ({"methods": {"..": ["method=fefr"]}}, ["methods"]),
        ({"methods": {"fefr": ["fefr"]}, "baseline": "fefr"}, ["KEY=VALUE", "'fefr'"]),
        ({"keys": ["optim.epochs"]}, ["KEY=VALUE", "'optim.epochs'"]),
        ({"baseline": "basline"}, ["baseline", "did you mean"]),
        ({"where": {"fefr": ["smal"]}}, ["where.fefr", "did you mean"]),
        ({"where": {"fefer": ["small"]}}, ["where", "did you mean"]),
        ({"teacher": {"methods": ["kd"], "recipes": {"digits": ["digits_resnet8"]}}}, ["teacher.methods", "kd"]),
        ({"teacher": {"methods": ["fefr"]}}, ["teacher.recipes"]),
        ({"plot": "epochs"}, ["plot", "students"]),
        ({"columns": {"small": "digits_resnet8"}}, ["columns.small", "a list"]),
        ({"columns": {"größe": ["digits_resnet8"]}}, ["columns", "größe"]),
        ({"columns": {"logs": ["digits_resnet8"]}}, ["columns", "logs"]),
        ({"keys": ["seed=3"]}, ["keys", "seed=3"]),
        ({"columns": {"small": ["digits_resnet8", "seed=3"]}}, ["columns.small", "seed=3"]),
        (
            {"keys": ["method.teacher=a"], "teacher": {"methods": ["fefr"], "recipes": {"digits": ["digits_resnet8"]}}},
            ["keys", "method.teacher=a"],
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_a_line_that_names_the_key(keys: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        read(written(**keys))
    assert "one.toml" in caught.value.message
    assert any(all(name in line for name in named) for line in caught.value.details), caught.value.details


def test_a_study_is_found_by_name_file_or_folder_and_a_wrong_name_has_the_nearest() -> None:
    assert find("digits") == find("recipes/studies/digits.toml") == find("Digits") == studies()["digits"]
    assert find(str(written())) == Path("one.toml")
    Path("folder").mkdir()
    (Path("folder") / FILE).write_text("", encoding="utf-8")
    assert find("folder") == Path("folder") / FILE
    with pytest.raises(RecipeError, match="did you mean 'digits'") as caught:
        find("digts")
    assert all(name in caught.value.hint for name in studies())
    Path("empty").mkdir()
    with pytest.raises(RecipeError, match=FILE):
        find("empty")
    for word in ("elsewhere/digits", "/digits", "elsewhere/recipes/studies/digits.toml"):
        with pytest.raises(RecipeError, match="no such study"):
            find(word)


PAPERS = {  # of each study of a paper: how many cells the paper prints, students' and fused ones
    "mfef_table1": 98,
    "mfef_table2": 4,
    "mfef_table3": 12,
    "mfef_table4": 12,
    "mfef_table5": 7,
}


@pytest.mark.parametrize("name", list(studies()))
def test_every_run_of_a_shipped_study_has_a_recipe_that_resolves_and_a_folder_of_its_own(name: str) -> None:
    path = studies()[name]
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# okdc study {name}"
    study = read(path)
    runs = planned(study, Path("folder"), path)
    assert len({run.folder for run in runs}) == len(runs)
    printed = set()
    for run in runs:
        if run.seed != study.seeds[0]:
            continue
        resolved = run.resolved(needs_data=False)
        assert resolved.recipe.method["name"] in METHODS.own
        assert resolved.recipe.seed == run.seed
        if (paper := resolved.recipe.about.paper) and run.column in study.columns:
            for kind, errors in (("student", paper.student_error), ("fused", paper.fused_error)):
                error = errors.get(resolved.variant, errors.get(run.method))
                for number in error if isinstance(error, list) else [error]:
                    if number is not None:
                        printed.add((run.column, run.method, kind, number))
    assert len(printed) == PAPERS.get(name, len(printed))
    if study.baseline:
        assert study.baseline in study.methods


def test_every_table_of_mfef_and_every_figure_of_fefr_has_a_study() -> None:
    own = {
        "few_labels",
        "few_methods",
        "few_photographs",
        "few_recipes",
        "few_long",
        "few_long_peers",
        "few_long_10",
        "few_long_wrn",
        "few_readings",
        "few_unequal",
        "few_digits",
        "digits",
    }
    assert {*PAPERS, "fefr_ablation", "fefr_expansion", *own} == set(studies())


def test_the_guide_names_every_study_and_every_key() -> None:
    guide = Path(find("digits")).with_name("README.md").read_text(encoding="utf-8")
    tables = set(re.findall(r"`mfef_table(\d)`", guide))
    assert tables == {"1", "5"}  # from 1 to 5
    assert all(f"`{name}`" in guide for name in studies() if not name.startswith("mfef_table"))
    example = guide.split("```toml\n")[1].split("```")[0]
    Path("mine.toml").write_text(example, encoding="utf-8")
    Path("photos.toml").write_text('[data]\nname = "folder"\n', encoding="utf-8")
    assert len(planned(read(Path("mine.toml")), Path("studies/mine"), Path("mine.toml"))) == 1 + 3 * (
        2 * 2 + 1
    )  # a teacher, and of each seed two methods in both columns
