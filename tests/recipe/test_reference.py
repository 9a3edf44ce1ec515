"""The reference of keys: complete, as the tables themselves are, and the same in the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tomli_w
from asking import ask
from pydantic import Field

from okdc.methods.base import Config
from okdc.recipe import catalog
from okdc.recipe.draft import check, load, read
from okdc.recipe.reference import Key, keys
from okdc.recipe.schema import Recipe

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]
KEYS = {key.key: key for key in keys(Recipe)}


def leaves(tables: dict[str, Any], prefix: str = "") -> set[str]:
    inner = {key: value for key, value in tables.items() if isinstance(value, dict) and not key.endswith("_error")}
    below = [leaves(value, f"{prefix}{key}.") for key, value in inner.items()]
    return set().union({prefix + key for key in tables.keys() - inner.keys()}, *below)


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_every_key_of_a_table_is_one_sentence(key: Key) -> None:
    assert key.description[0].isupper()
    assert key.description.endswith(".")
    assert len(key.description) > 20


def test_every_key_of_a_recipe_is_in_the_reference() -> None:
    for name in catalog.recipes():
        recipe, problems = check(load([name]))
        assert recipe is not None, problems
        tables = recipe.model_dump(mode="json") | {"method": {"name": "fefr"}}
        assert leaves(tables) <= set(KEYS) | {"about.paper"}
    assert catalog.keys() == list(KEYS)


def test_a_default_is_what_a_recipe_gets_that_does_not_name_the_key() -> None:
    tables = {"data": {"name": "digits"}, "cohort": {"students": ["resnet8"]}, "method": {"name": "fefr"}}
    recipe = Recipe.model_validate(tables).model_dump(mode="json")
    for key, row in KEYS.items():
        value: Any = recipe
        for part in key.split("."):
            value = (value or {}).get(part)
        if not row.required and not key.startswith("about.paper."):
            assert value == row.default, key


class Switches(Config):
    name: Literal["mine"]
    rate: Annotated[float, Field(gt=0, le=1, description="How fast.")] = 0.5
    kind: Annotated[Literal["a", "b"] | int, Field(description="Which.")] = "a"
    sizes: tuple[int, int]
    names: tuple[str, ...] = ()
    weights: dict[str, float] | None = None


def test_what_a_key_takes_is_read_from_the_model_in_words_and_as_json_schema() -> None:
    rows = {row.key: row for row in keys(Switches, "method.", "mine")}
    assert {key: (row.takes, row.default_text) for key, row in rows.items()} == {
        "method.rate": ("number > 0, ≤ 1", "0.5"),
        "method.kind": ("a, b or integer", "a"),
        "method.sizes": ("list of 2: integer", "required"),
        "method.names": ("list: text", "[]"),
        "method.weights": ("table: number", ""),
    }
    assert rows["method.rate"].schema == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert rows["method.rate"].method == "mine"


def test_the_readme_has_the_same_reference(capsys: Captured) -> None:
    answer = ask(capsys, "recipes", "keys", "--md")
    assert answer.code == 0
    section = (ROOT / "recipes/README.md").read_text(encoding="utf-8").partition("## Every key\n\n")[2]
    assert section == answer.out, "write it again: recipes/README.md says how"


# --- the command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["keys"], list(KEYS)),
        (["keys", "optim"], [key for key in KEYS if key.startswith("optim.")]),
        (["about"], [key for key in KEYS if key.startswith("about.")]),
        (["optim.lr"], ["optim.lr"]),
        (["seed", "data.root"], ["seed", "data.root"]),
        (["lr", "flip"], ["optim.lr", "augment.flip"]),
        (["method.name"], ["method.name"]),
        (["keys", "method.kdcl.temperature"], ["method.temperature"]),
    ],
)
def test_keys_are_named_by_table_key_and_method(capsys: Captured, words: list[str], expected: list[str]) -> None:
    rows = json.loads(ask(capsys, "recipes", *words, "--json").out)
    assert [row["key"] for row in rows] == expected
    answer = ask(capsys, "recipes", *words)
    assert answer.code == 0
    assert all(key in answer.out for key in expected)


def test_a_key_of_several_methods_is_explained_for_each(capsys: Captured) -> None:
    rows = json.loads(ask(capsys, "recipes", "method.groups", "--json").out)
    assert [(row["method"], row["key"]) for row in rows] == [("mfef", "method.groups"), ("fefr", "method.groups")]
    of_fefr = json.loads(ask(capsys, "recipes", "method.fefr", "--json").out)
    assert {"method.taps", "method.groups"} <= {row["key"] for row in of_fefr}
    assert {row["method"] for row in of_fefr} == {"fefr"}


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("digit_resnet8", "digits_resnet8"),
        ("optm", "optim"),
        ("optim.lrr", "optim.lr"),
        ("method.ffr", "fefr"),
        ("method.tap", "taps"),
        ("method.fefr.tap", "taps"),
        ("qqqqqqqq", None),
    ],
)
def test_a_word_that_names_nothing_is_told_with_the_nearest(capsys: Captured, word: str, near: str | None) -> None:
    answer = ask(capsys, "recipes", word)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error[usage]: ")
    assert word in answer.err
    assert (f"did you mean {near!r}?" in answer.err) == (near is not None)


def test_the_beginning_of_a_recipes_name_is_told_with_the_whole_names(capsys: Captured) -> None:
    for word in ("folder", "cinic10", "digits"):
        answer = ask(capsys, "recipes", word)
        assert answer.code == 2
        assert all(repr(name) in answer.err for name in catalog.recipes() if name.startswith(f"{word}_"))


def test_a_recipe_is_printed_as_it_stands_with_its_command(capsys: Captured) -> None:
    path = catalog.recipes()["cifar10_resnet20"]
    answer = ask(capsys, "recipes", "cifar10_resnet20")
    assert answer.out == path.read_text(encoding="utf-8")
    assert str(path) in answer.err
    assert "next: okdc distill cifar10_resnet20" in answer.err
    facts = json.loads(ask(capsys, "recipes", "cifar10_resnet20", "--json").out)
    assert (facts["path"], facts["command"]) == (str(path), "okdc distill cifar10_resnet20")
    assert facts["text"] == answer.out
    assert facts["optim"]["epochs"] == 300


def test_a_recipe_of_ones_own_is_printed_and_one_that_is_wrong_is_explained(capsys: Captured) -> None:
    tables = read(catalog.recipes()["digits_resnet8"])
    Path("my recipe.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    assert "next: okdc distill 'my recipe.toml'" in ask(capsys, "recipes", "my recipe.toml").err
    Path("wrong.toml").write_text(tomli_w.dumps(tables | {"sed": 1}), encoding="utf-8")
    answer = ask(capsys, "recipes", "wrong.toml")
    assert (answer.code, answer.out) == (2, "")
    assert "sed: unknown key" in answer.err


@pytest.mark.parametrize("words", [[], ["digits_resnet8"], ["keys", "--json"]])
def test_markdown_is_of_keys_alone(capsys: Captured, words: list[str]) -> None:
    answer = ask(capsys, "recipes", *words, "--md")
    assert answer.code == 2
    assert "--md prints the keys" in answer.err + answer.out
