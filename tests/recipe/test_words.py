"""What newcomers type: understood, with a note, where it can mean one thing; else answered by the words to type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from okdc.assembly.resolve import resolve
from okdc.errors import DataError, OkdcError, RecipeError, UsageError
from okdc.recipe import catalog
from okdc.recipe.draft import Draft, load, read
from okdc.recipe.shorthand import full_keys, suggestions, typed
from okdc.recipe.words import Flag


def value(draft: Draft, key: str) -> Any:
    table: Any = draft.tables
    for name in key.split("."):
        table = table[name]
    return table


def refused(*words: str | Flag) -> OkdcError:
    with pytest.raises((RecipeError, UsageError)) as caught:
        resolve(load(words))
    return caught.value


def test_a_name_that_one_table_has_is_that_tables_key() -> None:
    keys = catalog.keys()
    for key in keys:
        table, _, name = key.rpartition(".")
        if table.startswith("about"):
            continue
        others = [k for k in keys if k.rpartition(".")[2] == name and not k.startswith("about")]
        assert full_keys(name) == ([key] if name in ("seed", "deterministic") else others), key
    assert full_keys("name") == ["data.name", "method.name"], "which one is for the user to say"
    assert full_keys("title") == full_keys("about") == full_keys("optim") == [], "nothing of these changes a training"


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["lr=0.05"], "optim.lr", 0.05),
        (["LR=0.05"], "optim.lr", 0.05),
        (["batch-size=16"], "optim.batch_size", 16),
        (["root=pics", "folder_resnet20"], "data.root", "pics"),
        (["method=dml"], "method.name", "dml"),
        (["data=digits"], "data.name", "digits"),
        (["optim.lr", "=", "0.05"], "optim.lr", 0.05),
        (["lr", "=0.05"], "optim.lr", 0.05),
        (["lr=", "0.05"], "optim.lr", 0.05),
        (["students=[resnet8,resnet14]"], "cohort.students", ["resnet8", "resnet14"]),
        ([Flag("--device", "engine.device", "gpu")], "engine.device", "cuda"),
        (["device=gpu:1"], "engine.device", "cuda:1"),
        (["engine.device=CPU"], "engine.device", "cpu"),
        (["dtype=bf16"], "engine.dtype", "bfloat16"),
        (["engine.compile=true"], "engine.compile", "on"),
        (["engine.compile=Off"], "engine.compile", "off"),
        (["deterministic=yes"], "deterministic", True),
        (["deterministic=False"], "deterministic", False),
    ],
)
def test_what_can_mean_one_thing_is_understood_and_said(
    words: Sequence[str | Flag], key: str, expected: object
) -> None:
    draft = load(["digits_resnet8", *words] if "folder_resnet20" not in words else words)
    assert value(draft, key) == expected
    assert key in draft.overridden
    (note,) = draft.notes
    assert f" is read as {key}=" in note


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cohort.students=[resnet8,resnet14]", ["resnet8", "resnet14"]),
        ("cohort.students=resnet8, resnet14", ["resnet8", "resnet14"]),
        ("cohort.students=resnet8", ["resnet8"]),
        ("cohort.students=torchvision:resnet18,mine.nets:small", ["torchvision:resnet18", "mine.nets:small"]),
        ("cohort.students=resnet8,resnet14,", ["resnet8", "resnet14"]),
        ("cohort.students=resnet8,,resnet14", ["resnet8", "", "resnet14"]),
        ("cohort.students=[resnet8", "[resnet8"),
        ("cohort.students=['a,b']", ["a,b"]),
        ("optim.milestones=0.5,0.75", [0.5, 0.75]),
        ("optim.milestones=0.5", [0.5]),
        ("data.mean=[0.5, 0.5, 0.5]", [0.5, 0.5, 0.5]),
    ],
)
def test_a_key_that_holds_a_list_takes_words_between_commas(word: str, expected: object) -> None:
    draft = load(["digits_resnet8", word])
    assert value(draft, word.partition("=")[0]) == expected
    assert draft.notes == ()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("teacher_indices=0,1", [0, 1]),
        ("method.teacher_indices=1", [1]),
        ("method.teacher_indices=[1, 0]", [1, 0]),
        ("method.teacher_indices=[]", []),
    ],
)
def test_so_does_a_methods_key_that_holds_one(word: str, expected: list[int]) -> None:
    words = ["digits_resnet8", "method=switokd", word]
    assert resolve(load(words)).recipe.method["teacher_indices"] == expected


def test_a_word_that_is_no_number_in_such_a_list_is_refused_by_its_key() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(load(["digits_resnet8", "method=switokd", "teacher_indices=0,resnet8"]))
    assert caught.value.details[0].startswith("method.teacher_indices")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("runs/A-1,none", ["runs/A-1", "none"]),
        ("[runs/A-1,none]", ["runs/A-1", "none"]),
        ("[runs/A-1, 'none']", ["runs/A-1", "none"]),
        ("none, none", ["none", "none"]),
        ("a.safetensors,b.pt", ["a.safetensors", "b.pt"]),
        ("[pretrained]", ["pretrained"]),
        ('["a", "b"]', ["a", "b"]),
        ("pretrained", "pretrained"),
        ("'a,b'", "a,b"),
        ("[a", "[a"),
        ("run,1", "run,1"),
        ("[run]", "[run]"),
        ("~nobody-here/a,none", ["~nobody-here/a", "none"]),
        (f"{'a' * 300},none", ["a" * 300, "none"]),
    ],
)
def test_a_key_of_text_or_a_list_takes_words_between_commas_but_for_a_path(words: str, expected: object) -> None:
    Path("run,1").touch()
    Path("[run]").mkdir()
    draft = load(["digits_resnet8", f"cohort.weights={words}"])
    assert value(draft, "cohort.weights") == expected
    assert draft.notes == ()
    short = load(["digits_resnet8", f"weights={words}"])
    assert value(short, "cohort.weights") == expected
    assert short.notes == (f"weights={words} is read as cohort.weights={words}",)


@pytest.mark.parametrize("values", [["a"], ["a", "none"], ["a b/c.pt", "none"], ["a,b.pt", "none"], ["it's", "[x]"]])
def test_a_list_is_typed_as_it_is_read(values: list[str]) -> None:
    (word,) = shlex.split(typed("cohort.students", values))
    assert value(load([word]), "cohort.students") == values


def test_a_recipe_after_an_empty_value_is_the_recipe() -> None:
    draft = load(["about.title=", "folder_resnet20"])
    assert (draft.stem, draft.tables["about"]["title"]) == ("folder_resnet20", "")


def test_an_inline_table_stays_one() -> None:
    assert load(['method={name = "dml"}']).tables["method"] == {"name": "dml"}


def test_a_short_key_of_the_method_is_the_methods() -> None:
    resolved = resolve(load(["digits_resnet8", "temperature=5"]))
    assert resolved.recipe.method["temperature"] == 5
    assert resolved.notes == ("temperature=5 is read as method.temperature=5",)
    assert resolve(load(["method=ffl", "temperature=5"])).recipe.method["temperature"] == 5
    assert refused("reconstruct=cyclic", "method=dml").details[0].startswith("reconstruct: unknown key")


@pytest.mark.parametrize(
    ("words", "corrections"),
    [
        (["batch=16"], {("batch=16",): ("optim.batch_size=16",)}),
        (["learning_rate=0.1"], {("learning_rate=0.1",): ("optim.lr=0.1",)}),
        (["model=resnet8"], {("model=resnet8",): ("cohort.students=resnet8",)}),
        (["epoch=3"], {("epoch=3",): ("optim.epochs=3",)}),
        (["data.lr=3"], {("data.lr=3",): ("optim.lr=3",)}),
        (["size=16"], {}),  # of the images, or of a batch
        (["name=fefr"], {}),
        (["qqq=1"], {}),
        (["dropout=0.5"], {}),
        (["data_dir=0.5"], {}),  # a number is no folder
        (["epoch=many"], {}),
        (["optim=sgd"], {("optim=sgd",): ("optim.optimizer=sgd",)}),
        (["optim=none"], {}),  # of several keys
        (["method=dml", "target=linear"], {}),
        (["digits_resnet8,epochs=3"], {("digits_resnet8,epochs=3",): ("digits_resnet8", "epochs=3")}),
        (["epochs", "3"], {("epochs", "3"): ("optim.epochs=3",)}),
        (["seed", "1"], {("seed", "1"): ("seed=1",)}),
        (["epochs:3"], {("epochs:3",): ("optim.epochs=3",)}),
        (["digits_resnet8", "epochs", "3"], {("epochs", "3"): ("optim.epochs=3",)}),
        (["digits"], {("digits",): ("digits_resnet8",)}),
        (["timm:resnet18.a1_in1k"], {("timm:resnet18.a1_in1k",): ("cohort.students=timm:resnet18.a1_in1k",)}),
        (["fefr"], {}),
        (["cifar10"], {}),  # seven recipes
        (["root=pics"], {("root=pics",): ("folder_resnet20", "data.root=pics")}),
    ],
)
def test_a_guess_is_answered_by_the_words_to_type(words: list[str], corrections: dict[Any, Any]) -> None:
    assert refused(*words).corrections == corrections


def test_where_two_keys_may_be_meant_both_are_named() -> None:
    assert suggestions("size") == ["data.image_size", "optim.batch_size"]
    (problem,) = refused("name=digits").details
    assert problem.startswith("name: unknown key (did you mean 'data.name' or 'method.name'?)")
    (problem,) = refused("size=16").details
    assert "(did you mean 'data.image_size' or 'optim.batch_size'?)" in problem


def test_a_key_of_another_method_is_told_with_that_method() -> None:
    (problem,) = refused("method=dml", "target=linear").details
    assert "kdcl" in problem
    assert "augment" not in problem


@pytest.mark.parametrize("root", ["pics", "../pics"])
def test_a_root_that_is_seen_from_the_recipe_is_named_as_it_is_seen_from_here(root: str) -> None:
    Path("deep/recipes").mkdir(parents=True)
    tables = read(catalog.recipes()["folder_resnet20"])
    path = Path("deep/recipes/mine.toml")
    path.write_text(tomli_w.dumps(tables | {"data": tables["data"] | {"root": root}}), encoding="utf-8")
    assert resolve(load([str(path)])).recipe.data.root == root, "no such folder either way: the images are missed later"
    there = Path("deep/pics" if root.startswith("..") else "deep/recipes/pics")
    there.mkdir()
    with pytest.raises(DataError) as caught:
        resolve(load([str(path)]))
    assert caught.value.hint == f"--data-root {there}"
    assert resolve(load([str(path), "data.root=other"])).recipe.data.root == "other"
    assert resolve(load([str(path)]), needs_data=False).recipe.data.root == root
    Path(root).mkdir(exist_ok=True)
    assert resolve(load([str(path)])).recipe.data.root == root


def test_a_folder_of_images_is_answered_with_the_recipe_for_it() -> None:
    Path("pics/cat").mkdir(parents=True)
    assert refused("pics").corrections == {("pics",): ("folder_resnet20", "data.root=pics")}
    Path("empty").mkdir()
    assert refused("empty").corrections == {}
    Path("runs/a-1").mkdir(parents=True)
    Path("runs/a-1/recipe.toml").touch()
    assert refused("runs/a-1").corrections == {("runs/a-1",): ("runs/a-1/recipe.toml",)}


# --- who is blamed


def test_the_words_of_the_command_are_blamed_and_not_the_file() -> None:
    error = refused("digits_resnet8", "lr=fast", "optim.epochs=0")
    assert error.message == "the command line: 2 problems"
    assert error.details == (
        "optim.epochs: expected greater than or equal to 1, found 0",
        "optim.lr: expected a number, found 'fast' (lr=fast)",
    )


def test_an_option_is_named_as_it_was_typed() -> None:
    (problem,) = refused("digits_resnet8", Flag("--threads", "engine.threads", "many")).details
    assert problem.startswith("engine.threads: expected ")
    assert problem.endswith(" (--threads many)")


def test_what_two_keys_make_wrong_is_of_the_one_that_was_given() -> None:
    tables = read(catalog.recipes()["folder_resnet20"]) | {"augment": {"padding": 4}}
    Path("mine.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    error = refused("mine.toml", "root=x", "image_size=4")
    assert error.message == "the command line: 1 problem"
    assert error.details[0].startswith("augment.padding: expected less than data.image_size (4)")


def test_a_file_is_blamed_for_what_it_says_itself() -> None:
    Path("mine.toml").write_text('seed = -1\n[optim]\nlr = "fast"\n', encoding="utf-8")
    error = refused("mine.toml", "optim.lr=0.1")
    assert error.message.startswith("mine.toml: ")
    assert [line.partition(":")[0] for line in error.details] == ["seed", "data", "cohort", "method"]
    both = refused("mine.toml", "optim.epochs=0")
    assert both.message.startswith("mine.toml and the command line: ")
