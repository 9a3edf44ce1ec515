"""What somebody types for a key or a value, and what a recipe calls it: all of it is read from the tables themselves.

full_keys("lr")          ["optim.lr"]: no other table has an `lr`
full_keys("name")        ["data.name", "method.name"]: which one is meant is for the user to say
suggestions("batch")     ["optim.batch_size"]
value_of("cohort.students", "resnet8,resnet14")      ["resnet8", "resnet14"]
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from okdc.recipe.reference import alternatives, keys
from okdc.recipe.schema import Recipe

# What other tools call a key or a value.
OTHER_KEYS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "model": "students",
    "models": "students",
    "network": "students",
    "networks": "students",
    "random_state": "seed",
    "img_size": "image_size",
    "imgsz": "image_size",
    "precision": "dtype",
    "data_dir": "root",
    "data_path": "root",
}
OTHER_VALUES = {"gpu": "cuda", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@functools.cache
def _by_name() -> Mapping[str, tuple[str, ...]]:
    """The keys that change a training, by their last name: `lr` to optim.lr."""
    rows: dict[str, tuple[str, ...]] = {}
    for row in keys(Recipe):
        if not row.key.startswith("about."):
            name = row.key.rpartition(".")[2]
            rows[name] = (*rows.get(name, ()), row.key)
    return rows


def full_keys(name: str) -> list[str]:
    """The keys that a name without a table means: one of the top level itself, else that of each table that has it.

    A table that is told by its name, as in `method=fefr`, means that name. Spelt with hyphens or capitals, as options
    are, a name is the same.
    """
    if name not in Recipe.model_fields:
        name = name.replace("-", "_").lower()
    if name in Recipe.model_fields:
        return [name if name in _by_name() else f"{name}.name"] if {name, f"{name}.name"} & _all() else []
    return list(_by_name().get(name, ()))


def suggestions(key: str) -> list[str]:
    """The keys that one which does not exist may be meant for, the likeliest alone if there is one; at most three."""
    name = key.rpartition(".")[2].replace("-", "_").lower()
    if exact := _by_name().get(OTHER_KEYS.get(name, name)):
        return list(exact)[:3]
    if close := difflib.get_close_matches(name, list(_by_name()), n=1, cutoff=0.85):
        return list(_by_name()[close[0]])[:3]
    if parts := [key for each, full in _by_name().items() if name in each.split("_") for key in full]:
        return parts[:3] if len(parts) <= 3 else []
    close = difflib.get_close_matches(name, list(_by_name()), n=1, cutoff=0.75)
    return [key for each in close for key in _by_name()[each]][:3]


@functools.cache
def _all() -> frozenset[str]:
    return frozenset(row.key for row in keys(Recipe))


def is_key(key: str) -> bool:
    """Whether the tables have this key. The keys of a method are not looked at."""
    return key in _all()


def takes(key: str, value: Any) -> bool:
    """Whether a key takes a value that was written for another one. Of a table only its kind is looked at."""
    if isinstance(value, str):
        value = value_of(key, value, _bare)[0]
    names = tuple(key.split("."))
    tables: Any = value
    for name in reversed(names):
        tables = {name: tables}
    try:
        Recipe.model_validate(tables)
    except ValidationError as error:
        places = [problem["loc"] for problem in error.errors()]
        return not any(
            place == names or (place[: len(names)] == names and not isinstance(value, dict)) for place in places
        )
    return True


def _bare(_: str) -> Any:
    raise ValueError("a word and no TOML")


def leaves_of(key: str) -> list[Any]:
    """The alternatives of what a key takes: types, and words themselves; none for a key that no table has."""
    if key == "method.name":
        return [str]
    model: Any = Recipe
    for name in key.split("."):
        fields = getattr(model, "model_fields", {})
        if name not in fields:
            return []
        model = fields[name].annotation
    return list(alternatives(model))


def value_of(key: str, text: str, toml: Callable[[str], Any]) -> tuple[Any, bool]:
    """The value that `text` gives to a key, and whether it is spelt in a way that only the command line takes.

    It is TOML where `toml` can read it (raising ValueError or RecursionError where not), else the bare word; a key that
    holds text takes the word as it stands, a key that holds a list takes items between commas. A key that holds either
    takes items too, unless the whole word is a path that exists.
    """
    leaves = leaves_of(key)
    choices = [leaf for leaf in leaves if isinstance(leaf, str)]
    if leaves and all(leaf is str or isinstance(leaf, str) for leaf in leaves):
        try:
            value = toml(text)
        except (ValueError, RecursionError):
            value = text
        return _chosen(value if isinstance(value, str) else text, choices)
    try:
        value, is_bare = toml(text), False
    except (ValueError, RecursionError):
        value, is_bare = text, True
    if leaves and all(map(_is_list, leaves)):
        return _items(value, text, toml), False
    if is_bare and any(map(_is_list, leaves)) and _is_listed(text.strip()):
        return _items(value, text, toml), False
    if bool in leaves and isinstance(value, str) and (switch := SWITCHES.get(value.casefold())) is not None:
        return switch, True
    return _chosen(value, choices) if isinstance(value, str) else (value, False)


def holds_list(annotation: Any) -> bool:
    """Whether a key of this type takes a list and nothing else, but for being left out."""
    leaves = [leaf for leaf in alternatives(annotation) if leaf is not type(None)]
    return bool(leaves) and all(map(_is_list, leaves))


def items_of(text: str, toml: Callable[[str], Any]) -> Any:
    """The list that the text of a list's key is, with or without brackets; what is TOML otherwise stays what it is."""
    try:
        value = toml(text)
    except (ValueError, RecursionError):
        value = text
    return _items(value, text, toml)


def typed(key: str, values: Sequence[str]) -> str:
    """A key of words as a shell takes it, `cohort.weights=a,b`; of a value with commas, brackets or quotes as TOML."""
    plain = not any(letter in value for value in values for letter in ",[]\"'")
    return shlex.quote(f"{key}={','.join(values) if plain else json.dumps(list(values), ensure_ascii=False)}")


def _chosen(word: str, choices: list[str]) -> tuple[str, bool]:
    """The one of a key's words that is meant: in any case, by the name that others have for it, or true for on."""
    if word in choices or not choices:
        return word, False
    first, colon, number = word.casefold().partition(":")
    first = OTHER_VALUES.get(first, first)
    if first not in choices and first in SWITCHES:
        first = "on" if SWITCHES[first] else "off"
    meant = first + colon + number
    return (meant, meant != word) if first in choices else (word, False)


def _is_list(leaf: Any) -> bool:
    return typing.get_origin(leaf) in (tuple, list)


def _is_listed(word: str) -> bool:
    """Whether a word is a list, by a comma or brackets. A path may have both, too."""
    if "," not in word and (word[:1], word[-1:]) != ("[", "]"):
        return False
    try:
        return not os.path.lexists(Path(word).expanduser())  # False for a name too long, where Path.exists raises
    except RuntimeError:  # ~ of nobody
        return True


def _items(value: Any, text: str, toml: Callable[[str], Any]) -> Any:
    """A list of the words between commas, with or without brackets; what is TOML otherwise stays what it is."""
    if isinstance(value, (list, dict)):
        return value
    inside = text.strip()
    if inside.startswith("[") != inside.endswith("]"):
        return value
    inside = inside.removeprefix("[").removesuffix("]")
    parts, items = [part.strip() for part in inside.split(",")], []
    for item in parts if parts[-1] else parts[:-1]:  # as TOML's, a list may end with a comma
        try:
            items.append(toml(item))
        except (ValueError, RecursionError):
            items.append(item)
    return items
