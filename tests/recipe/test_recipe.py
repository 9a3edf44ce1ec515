from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from asking import tried
from hypothesis import assume, example, given
from hypothesis import strategies as st

from okdc.assembly.resolve import resolve
from okdc.errors import OkdcError, RecipeError, UsageError
from okdc.recipe import catalog
from okdc.recipe.draft import check, load, read
from okdc.recipe.schema import Recipe

SHIPPED = sorted(catalog.recipes())


def resolved(*words: str) -> Recipe:
    return resolve(load(words)).recipe


def problems(*words: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        resolved(*words)
    return caught.value.details


def leaves(tables: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tables.items():
        if isinstance(value, dict) and key not in ("student_error", "fused_error"):  # their keys are the papers'
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def changed(tables: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    tables = copy.deepcopy(tables)
    *path, last = key.split(".")
    table = tables
    for name in path:
        table = table.setdefault(name, {})
    table[last] = value
    return tables


# --- shipped recipes, text and sha256


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid_and_its_text_is_itself(name: str, tmp_path: Path) -> None:
    recipe = resolved(name, "data.root=some/where")
    saved = tmp_path / "recipe.toml"
    saved.write_text(recipe.text(), encoding="utf-8")
    again = resolved(str(saved))
    assert again == recipe
    assert again.sha256() == recipe.sha256()
    assert again.text() == recipe.text()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_text_writes_every_default_out(name: str) -> None:
    recipe = resolved(name, "data.root=some/where")
    written = tomllib.loads(recipe.text())
    assert set(leaves(written)) == set(leaves(recipe.model_dump(exclude_none=True)))
    assert {"optim.clip", "engine.dtype", "seed", "cohort.keep"} <= set(leaves(written))
    without = {"dualnet": "method.weight", "switokd": "method.teacher_indices"}  # a temperature
    assert without.get(recipe.method["name"], "method.temperature") in set(leaves(written))


@given(title=st.text(), root=st.text(min_size=1), seed=st.integers(0, 2**63 - 1), lr=st.floats(1e-300, 1e300))
@tried
def test_any_recipe_is_its_text(title: str, root: str, seed: int, lr: float) -> None:
    tables = read(catalog.recipes()["folder_resnet20"])
    for key, value in {"about.title": title, "data.root": root, "seed": seed, "optim.lr": lr}.items():
        tables = changed(tables, key, value)
    recipe = Recipe.model_validate(tables)
    assert Recipe.model_validate(tomllib.loads(recipe.text())) == recipe


# One other value for each key of a resolved recipe: a new key has to be added here, or the next test fails.
OTHER: dict[str, object] = {
    "seed": 1,
    "deterministic": True,
    "about.title": "another",
    "about.paper.source": "another",
    "about.paper.dataset": "another",
    "about.paper.students": ["another"],
    "about.paper.epochs": 1,
    "about.paper.student_error": {"mfef": 1.5},
    "about.paper.fused_error": {"mfef": 1.5},
    "data.name": "digits",
    "data.image_size": 64,
    "data.skip_damaged": True,
    "data.stream": "on",
    "data.train_images": 77,
    "data.val_fraction": 0.25,
    "data.shorter_side": 40,
    "data.mean": [0.5, 0.5, 0.25],
    "data.std": [0.5, 0.5, 0.25],
    "augment.crop": "resized",
    "augment.padding": 2,
    "augment.padding_mode": "reflect",
    "augment.scale": [0.5, 0.75],
    "augment.ratio": [0.5, 2.0],
    "augment.flip": False,
    "augment.vertical_flip": True,
    "augment.rotation": 10.0,
    "augment.translate": 0.1,
    "augment.zoom": [0.75, 1.25],
    "augment.shear": 10.0,
    "augment.brightness": 0.5,
    "augment.contrast": 0.5,
    "augment.saturation": 0.5,
    "augment.hue": 0.25,
    "augment.grey": 0.5,
    "augment.blur": 0.5,
    "augment.erasing": 0.5,
    "augment.policy": "trivial",
    "augment.mixup": 0.5,
    "augment.cutmix": 0.5,
    "cohort.students": ["resnet20", "resnet8"],
    "cohort.share": "stem1",
    "cohort.keep": 1,
    "cohort.keep_epoch": "last",
    "cohort.keep_metric": "balanced",
    "cohort.output": "logits",
    "cohort.weights": "none",
    "cohort.weights_sha256": ["ab"],
    "method.name": "another",
    "method.temperature": 4.0,
    "method.rampup": 0.5,
    "method.detach_features": True,
    "method.reading": "released",
    "method.scale": "native",
    "method.combine": "mean",
    "method.width": "native",
    "method.match_norm": False,
    "method.share_match": True,
    "method.match_decay": "weight_decay",
    "method.attention_bias": False,
    "method.attention_norm": False,
    "method.share_attention": True,
    "method.premix": True,
    "method.init": "he",
    "method.taps": [0, 1, 2],
    "method.match": "conv3x3_s2",
    "method.early_fusion": False,
    "method.reconstruct": "none",
    "method.groups": 2,
    "method.attention": False,
    "method.reduction": 8,
    "method.spatial_kernel": 3,
    "optim.epochs": 301,
    "optim.batch_size": 64,
    "optim.optimizer": "adamw",
    "optim.lr": 0.2,
    "optim.momentum": 0.8,
    "optim.betas": [0.8, 0.99],
    "optim.weight_decay": 0.0,
    "optim.aux_weight_decay": 0.0,
    "optim.decay_norm_and_bias": False,
    "optim.schedule": "cosine",
    "optim.warmup": 0.1,
    "optim.milestones": [0.5],
    "optim.clip": 1.0,
    "optim.label_smoothing": 0.1,
    "optim.class_weights": "balanced",
    "optim.sampler": "balanced",
    "optim.ema": 0.999,
    "optim.patience": 5,
    "optim.freeze_epochs": 1,
    "optim.backbone_lr": 0.1,
    "engine.device": "cpu",
    "engine.dtype": "float32",
    "engine.memory_format": "contiguous",
    "engine.threads": 2,
    "engine.workers": 0,
    "engine.compile": "off",
    "engine.cuda_graph": "off",
    "engine.sync_batchnorm": True,
}


def whole() -> dict[str, Any]:
    """A resolved recipe in which no key is left out."""
    tables = resolved("cifar10_resnet20").model_dump(mode="json")
    return changed(changed(tables, "data.mean", [0.5, 0.5, 0.5]), "data.std", [0.5, 0.5, 0.5])


def test_the_other_values_name_every_key_of_a_recipe() -> None:
    assert set(OTHER) == set(leaves(whole())) - {"data.root", "engine.track"}


@pytest.mark.parametrize("key", list(OTHER))
def test_the_sha256_differs_for_any_key_that_differs(key: str) -> None:
    before, after = whole(), changed(whole(), key, OTHER[key])
    assert before != after
    assert Recipe.model_validate(before).sha256() != Recipe.model_validate(after).sha256()


def test_the_sha256_does_not_tell_where_the_images_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = resolved("cifar10_resnet20")
    monkeypatch.setenv("OKDC_DATA_ROOT", str(tmp_path / "images"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = resolved("cifar10_resnet20")
    assert here.data.root != there.data.root
    assert here.sha256() == there.sha256() == resolved("cifar10_resnet20", "data.root=/a b").sha256()
    assert "root" not in here.portable()["data"]
    assert here.data.root is not None  # portable() is a copy


def test_auto_stays_auto_in_the_sha256() -> None:
    keys = ("device", "dtype", "memory_format", "threads", "workers", "compile", "cuda_graph")
    assert resolved().portable()["engine"] == dict.fromkeys(keys, "auto") | {"sync_batchnorm": False}


# --- which recipe


def test_without_a_recipe_the_digits_are_meant_and_said() -> None:
    draft = load(["optim.epochs=3"])
    assert draft.stem == "digits_resnet8"
    (note,) = draft.notes
    assert "digits_resnet8" in note
    assert "no " not in note, "it is no error"
    assert draft.tables["optim"]["epochs"] == 3


@pytest.mark.parametrize(
    "word",
    [
        "folder_resnet20",
        "folder_resnet20.toml",
        "recipes/folder_resnet20.toml",
        "elsewhere/folder_resnet20",
        "Folder-ResNet20",
    ],
)
def test_a_path_that_names_a_shipped_recipe_is_that_one_and_says_so(word: str) -> None:
    draft = load([word])
    assert draft.path == catalog.recipes()["folder_resnet20"]
    expected = () if word == "folder_resnet20" else (f"no file {word}: the shipped recipe folder_resnet20 is used",)
    assert draft.notes == expected


def test_a_file_that_exists_comes_before_a_shipped_recipe_of_its_name() -> None:
    Path("digits_resnet8.toml").write_text("seed = 5", encoding="utf-8")
    draft = load(["digits_resnet8.toml"])
    assert draft.tables == {"seed": 5}
    assert draft.notes == ()


def test_the_recipe_may_stand_among_the_overrides() -> None:
    draft = load(["optim.epochs=3", "folder_resnet20", "seed=1"])
    assert draft.stem == "folder_resnet20"
    assert (draft.tables["optim"]["epochs"], draft.tables["seed"]) == (3, 1)


def test_two_recipes_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="two recipes were given, 'a' and 'b'") as caught:
        load(["a", "b"])
    assert "without spaces" in caught.value.hint


@pytest.mark.parametrize(("word", "near"), [("digit_resnet8", " (did you mean 'digits_resnet8'?)"), ("qqq", "")])
def test_an_unknown_recipe_names_the_nearest_and_where_all_are_listed(word: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load([word])
    assert caught.value.message == f"{word}: no such recipe file{near}"
    assert caught.value.hint == (
        "a path to a .toml file, or one that ships with okdc: okdc recipes lists them; a method is named as "
        "method=fefr, a network as students=resnet20"
    )


@pytest.mark.parametrize("word", ["image.toml", "images", "imgaes.toml"])
def test_a_file_that_is_nearer_than_any_shipped_recipe_is_named(word: str) -> None:
    for name in ("images.toml", "digits_mine.toml"):
        Path(name).touch()
    with pytest.raises(RecipeError) as caught:
        load([word])
    assert caught.value.message == f"{word}: no such recipe file (did you mean 'images.toml'?)"
    assert caught.value.corrections == {(word,): ("images.toml",)}
    with pytest.raises(RecipeError, match=r"did you mean 'digits_resnet8'\?"):
        load(["digits_resnet9"])


def test_a_run_given_as_a_recipe_is_told_where_its_recipe_is() -> None:
    Path("runs/a-1").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"runs/a-1: is a folder, expected a \.toml file"):
        load(["runs/a-1"])
    Path("runs/a-1/recipe.toml").touch()
    with pytest.raises(RecipeError, match=r"runs/a-1: is a folder.*\(there is runs/a-1/recipe\.toml\)"):
        load(["runs/a-1"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x = = 3", "not TOML: Invalid value (at line 1, column 5)"),
        (b"title = '\xe9'", "not UTF-8 text"),
        (b"\x80\x02}q\x00.", "not UTF-8 text"),
        (b"x = " + b"[" * 5000, "not TOML"),
        (b"x = " + b"9" * 5000, "not TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_the_place(content: bytes, said: str) -> None:
    Path("mine.toml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(["mine.toml"])
    assert caught.value.message.startswith(f"mine.toml: {said}")


# --- overrides


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("optim.epochs=3", "epochs", 3),
        ("optim.lr=1e-3", "lr", 1e-3),
        ("optim.lr= 0.5 ", "lr", 0.5),
        (" optim.lr =0.5", "lr", 0.5),
        ("optim.schedule=cosine", "schedule", "cosine"),
        ('optim.schedule="cosine"', "schedule", "cosine"),
        ("optim.milestones=[0.5, 0.6]", "milestones", [0.5, 0.6]),
        ("optim.x=true", "x", True),
        ("optim.x=yes", "x", "yes"),
        ("optim.x=a=b", "x", "a=b"),
        ("optim.x=3\ny = 4", "x", "3\ny = 4"),  # one override is one value
        ("optim.x=[1, 2", "x", "[1, 2"),
        ("optim.x=", "x", ""),
    ],
)
def test_a_value_is_toml_where_it_parses_and_else_the_bare_word(word: str, key: str, value: object) -> None:
    found = load([word]).tables["optim"][key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["3", "true", "1e5", "2026-01-01", "runs/a-1", "[x]", " a b ", "it's", ""])
def test_a_key_that_holds_text_takes_the_word_as_it_stands(value: str) -> None:
    tables = load([f"about.title={value}", f"data.root={value}", f"method.name={value}"]).tables
    assert (tables["about"]["title"], tables["data"]["root"], tables["method"]["name"]) == (value, value, value)


def test_a_key_that_holds_text_or_a_number_takes_either() -> None:
    assert [load([f"cohort.keep={v}"]).tables["cohort"]["keep"] for v in ("1", "best")] == [1, "best"]
    assert [load([f"engine.threads={v}"]).tables["engine"]["threads"] for v in ("4", "auto")] == [4, "auto"]


@given(st.text())
@example("'")
@example("a\nb")
@tried
def test_any_words_arrive_in_a_text_key(text: str) -> None:
    assume(not text.lstrip().startswith(("'", '"')))  # which may be TOML
    assert load([f"about.title={text}"]).tables["about"]["title"] == text


TOML = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@given(TOML)
@tried
def test_any_toml_value_arrives_in_other_keys(value: Any) -> None:
    written = tomli_w.dumps({"value": value}).partition("=")[2].strip()
    assert load([f"method.anything={written}"]).tables["method"]["anything"] == value


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*OTHER, "data", "optim", "method", "cohort.students", "optim.lr.x", "new", "new.key"]),
            st.text(max_size=8) | TOML.map(str) | st.sampled_from(["nan", "inf", "-1", "{}", "[]", "1e999", "0x7f"]),
        ),
        max_size=4,
    )
)
@example([("data.mean", "[nan, 0, 0]")])
@example([("about.title", "\udcff")])
@example([("cohort", "3")])
@example([("data", "3"), ("data.root", "x")])
@example([("seed", "9" * 5000)])
@example([("seed", "[" * 5000)])
@tried
def test_no_override_whatever_brings_down_more_than_a_recipe_error(overrides: list[tuple[str, str]]) -> None:
    try:
        recipe = resolved(*(f"{key}={value}" for key, value in overrides))
    except OkdcError as error:
        assert error.kind in ("recipe", "usage")
        assert error.details or error.kind == "usage"
    else:
        assert Recipe.model_validate(tomllib.loads(recipe.text())) == recipe


def test_later_overrides_win_and_make_tables_that_the_file_lacks() -> None:
    Path("mine.toml").write_text("", encoding="utf-8")
    assert load(["mine.toml", "a.b.c=1", "a.b.c=2", "a.b.d=3"]).tables == {"a": {"b": {"c": 2, "d": 3}}}


@pytest.mark.parametrize("word", ["=3", "optim.=3", ".lr=3", "optim..lr=3", "="])
def test_an_override_without_a_key_is_explained(word: str) -> None:
    (problem,) = problems(word)
    assert problem == f"{word}: an override is written key=value, as in optim.epochs=3"


def test_a_key_below_a_value_is_explained() -> None:
    assert problems("optim.lr.x=3") == ("optim.lr.x: optim.lr is not a table",)


def test_an_empty_root_is_not_the_working_directory() -> None:
    """As from `data.root=$IMAGES` with nothing in IMAGES."""
    (problem,) = problems("folder_resnet20", "data.root=")
    assert problem.startswith("data.root: expected at least 1 character")


# --- method.name


@pytest.mark.parametrize("word", ["method.name=baseline", "method.name =baseline", "method.name='baseline'"])
def test_another_method_starts_the_table_afresh_and_names_what_it_drops(word: str) -> None:
    found = resolve(load(["cifar10_resnet20", word]))
    recipe, notes = found.recipe, found.notes
    assert recipe.method == {"name": "baseline"}
    assert "method baseline has no temperature: dropped from the recipe's [method]" in notes


def test_keys_that_both_methods_have_stay() -> None:
    Path("mine.toml").write_text(
        read_text("digits_resnet8") + "temperature = 2.5\nrampup = 0.5\nfor_another = 3\n", encoding="utf-8"
    )
    found = resolve(load(["mine.toml", "method.name=fefr"]))
    recipe, notes = found.recipe, found.notes
    assert (recipe.method["temperature"], recipe.method["rampup"]) == (2.5, 0.5)
    assert [note for note in notes if "dropped" in note] == [
        "method fefr has no for_another: dropped from the recipe's [method]"
    ]


def read_text(name: str) -> str:
    """A shipped recipe with its [method] last, so that keys can be put behind it."""
    tables = read(catalog.recipes()[name])
    return tomli_w.dumps({**{k: v for k, v in tables.items() if k != "method"}, "method": tables["method"]})


def test_a_key_given_as_an_override_is_never_dropped() -> None:
    (problem,) = problems("cifar10_resnet20", "method.name=baseline", "method.temperature=2")
    assert problem == "method.temperature: unknown key; [method] has name"


def test_without_an_override_of_the_name_nothing_is_dropped() -> None:
    Path("mine.toml").write_text(read_text("digits_resnet8") + "tempratur = 2\n", encoding="utf-8")
    (problem,) = problems("mine.toml")
    assert problem.startswith("method.tempratur: unknown key (did you mean 'temperature'?)")


# --- where the images are


def test_okdc_data_root_replaces_the_recipes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKDC_DATA_ROOT", "/data/x")
    found = resolve(load(["cifar10_resnet20"]))
    recipe, notes = found.recipe, found.notes
    assert recipe.data.root == "/data/x"
    assert "data.root is /data/x (OKDC_DATA_ROOT)" in notes
    assert resolved("folder_resnet20").data.root == "/data/x"


def test_an_override_of_the_root_comes_before_okdc_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKDC_DATA_ROOT", "/data/x")
    found = resolve(load(["cifar10_resnet20", "data.root=/y"]))
    recipe, notes = found.recipe, found.notes
    assert recipe.data.root == "/y"
    assert not any("OKDC_DATA_ROOT" in note for note in notes)


def test_okdc_data_root_is_nothing_to_the_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKDC_DATA_ROOT", "/data/x")
    found = resolve(load([]))
    recipe, notes = found.recipe, found.notes
    assert recipe.data.root is None
    assert not any("OKDC_DATA_ROOT" in note for note in notes)


# --- problems


def test_every_problem_is_told_at_once_with_its_key_and_the_nearest_name() -> None:
    words = [
        "optim.epoch=3",
        "optim.lr=-1",
        "optim.momentum=1",
        "optim.batch_size=1.5",
        "augment.flip=3",
        "data.val_fraction=1.0",
        "cohort.share=lo",
        "cohort.keep=bset",
        "cohort.students=['resnt20', 'resnt20']",
        "engine.device=cuda0",
        "engine.threads=0",
        "method.tempratur=2",
        "sed=1",
        "optim.x.y=1",
        "optim.lr.z=2",
    ]
    with pytest.raises(RecipeError) as caught:
        resolved(*words)
    told = {line.partition(":")[0]: line for line in caught.value.details}
    assert set(told) == {
        "optim.epoch",
        "optim.lr",
        "optim.momentum",
        "optim.batch_size",
        "augment.flip",
        "data.val_fraction",
        "cohort.share",
        "cohort.keep",
        "cohort.students",
        "engine.device",
        "engine.threads",
        "method.tempratur",
        "sed",
        "optim.x",
        "optim.lr.z",
    }
    assert len(told) == len(caught.value.details)
    assert caught.value.message == f"the command line: {len(told)} problems"
    assert told["optim.epoch"].startswith("optim.epoch: unknown key (did you mean 'epochs'?); [optim] has epochs, ")
    assert told["optim.lr"] == "optim.lr: expected greater than 0, found -1"
    assert told["optim.batch_size"] == "optim.batch_size: expected an integer, found 1.5"
    assert told["augment.flip"] == "augment.flip: expected true or false, found 3"
    assert told["cohort.share"].endswith("found 'lo' (did you mean 'low'?)")
    assert "(did you mean 'best'?)" in told["cohort.keep"]
    assert "no network is called 'resnt20' (did you mean 'resnet20'?); there is: resnet8, " in told["cohort.students"]
    assert "(did you mean 'cuda'?)" in told["engine.device"]
    assert told["engine.threads"] == "engine.threads: expected 'auto' or greater than or equal to 1, found 0"
    assert told["method.tempratur"].startswith(
        "method.tempratur: unknown key (did you mean 'temperature'?); [method] has"
    )
    assert told["sed"].startswith("sed: unknown key (did you mean 'seed'?); the top level has seed, ")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optim=3", "optim: expected a table, found 3"),
        ("method=3", "method.name: no method is called '3'; there is: "),
        ("about.paper=x", "about.paper: expected a table, found 'x'"),
        ("cohort.students={}", "cohort.students: expected a list, found {}"),
        ("cohort.students=[]", "cohort.students: expected at least 1 item, found []"),
        ("cohort.students=['resnet8', 2]", "cohort.students[1]: expected text, found 2"),
        ("optim.milestones=[0.5, 2]", "optim.milestones[1]: expected less than 1, found 2"),
        ("optim.lr=inf", "optim.lr: expected a finite number, found inf"),
        ("optim.lr=true", "optim.lr: expected a number, found True"),
        ("optim.epochs=0", "optim.epochs: expected greater than or equal to 1, found 0"),
        ("optim.batch_size=1", "optim.batch_size: expected greater than or equal to 2, found 1"),
        ("seed=-1", "seed: expected greater than or equal to 0, found -1"),
        ("data.mean=[nan, 0, 0]", "data.mean[0]: expected a finite number, found nan"),
        ("data.mean=[1, 2, 3, 4]", "data.mean: expected at most 3 items, found [1, 2, 3, 4]"),
        ("data.std=[1, 0, 1]", "data.std[1]: expected greater than 0, found 0"),
        ("data.name=digit", "data.name: no data set is called 'digit' (did you mean 'digits'?); there is: digits, "),
        ("data.image_size=9", "data.image_size: the images of digits are 8×8, found 9"),
        ("augment.padding=8", "augment.padding: expected less than data.image_size (8), found 8"),
        ("augment.padding_mode=mirror", "augment.padding_mode: expected 'zeros' or 'reflect', found 'mirror'"),
        ("augment.scale=[0.9, 0.5]", "augment.scale: expected the smaller number first, found [0.9, 0.5]"),
        ("augment.scale=[0.5, 1.0]", "augment.scale: augment.crop=pad has none"),
        ("data.crop_padding=4", "data.crop_padding: its name is augment.padding now"),
        ("data.flip=true", "data.flip: its name is augment.flip now"),
        ("cohort.keep=2", "cohort.keep: expected an index below 2, found 2"),
        ("method.name=basline", "method.name: no method is called 'basline' (did you mean 'baseline'?); there is: "),
        ("method.name=", "method.name: no method is called ''; there is: "),
        ("method.groups=1", "method.groups: expected greater than or equal to 2, found 1"),
        ("method.spatial_kernel=4", "method: spatial_kernel is odd, so that the map keeps its size"),
        ("method.match=pach", "method.match: expected 'patch', 'conv3x3_s2' or 'pool1x1', found 'pach' (did you mean"),
        ("about.title=\udcff", "about.title: the value is not UTF-8 text"),
    ],
)
def test_one_problem_is_one_line_in_the_users_words(word: str, said: str) -> None:
    (problem,) = problems(word)
    assert problem.startswith(said)


def test_of_a_default_that_nobody_named_the_keys_that_were_given_are_told_alone() -> None:
    with pytest.raises(RecipeError) as caught:
        resolved("optim.epochs=0")
    assert caught.value.message == "the command line: 1 problem"
    assert caught.value.details == ("optim.epochs: expected greater than or equal to 1, found 0",)


def test_an_empty_recipe_lacks_three_tables() -> None:
    Path("empty.toml").touch()
    keys = [problem.partition(": missing. ")[0] for problem in problems("empty.toml")]
    assert keys == ["data", "cohort", "method"]


def test_a_method_without_a_name_is_told_so() -> None:
    (problem,) = problems("method={}")
    assert problem == 'method.name: missing; expected the name of a method, such as "fefr"'


def test_a_folder_recipe_without_a_root_says_what_to_write() -> None:
    (problem,) = problems("folder_resnet20")
    assert problem == "data.root: missing; expected a folder of images: data.root=path/to/images"


def test_checking_reads_no_key_of_a_method_but_its_name() -> None:
    """Listing recipes imports no method, so check() alone lets a method's keys pass."""
    recipe, found = check(load(["method.tempratur=2"]))
    assert recipe is not None
    assert found == []


def test_a_recipe_cannot_be_changed() -> None:
    recipe = resolved()
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        recipe.optim.lr = 3
