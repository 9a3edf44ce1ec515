"""The words of a command: the one that names the recipe, and those that override a key.

    read(["cifar10_resnet20", "lr=0.05", "epochs", "=", "3"])

What can mean one thing is understood, and a note says what it was read as. For the rest an error has the right words in
`corrections`, of which the command line makes the whole line to type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from okdc.errors import UsageError
from okdc.recipe.shorthand import full_keys, is_key

_KEY = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Flag:
    """An option that is short for a key: `--device cpu`."""

    option: str
    key: str
    value: str


@dataclass(frozen=True)
class Override:
    """A key and the text of its value, with the words of the command that gave them."""

    key: str  # with its table, where that is beyond doubt
    value: str
    typed: tuple[str, ...]

    @property
    def words(self) -> str:
        """As they were typed."""
        return " ".join(self.typed)


@dataclass(frozen=True)
class Words:
    recipe: str | None
    overrides: tuple[Override, ...]


def read(words: Sequence[str | Flag], is_recipe: Callable[[str], bool]) -> Words:
    """The recipe and the overrides among the words of a command. `is_recipe` knows the names of recipes.

    Raises UsageError for a second recipe, and for a key without `=`.
    """
    recipes, overrides = list[str](), list[Override]()
    for typed in _joined(words, is_recipe):
        if isinstance(typed, Flag):
            overrides.append(Override(typed.key, typed.value, (typed.option, typed.value)))
        elif "=" in (word := "".join(typed)):
            key, _, value = word.partition("=")
            recipe, _, rest = word.partition(",")
            if "=" not in recipe and is_recipe(recipe):
                raise UsageError(
                    f"{word!r}: a recipe and an override are two words", corrections={typed: (recipe, rest)}
                )
            overrides.append(Override(_full(key.strip(), value), value, typed))
        else:
            recipes.append(word)
    for i, word in enumerate(recipes):
        if not is_recipe(word):
            _refuse_key(word, recipes[i + 1 : i + 2])
    if len(recipes) > 1:
        raise UsageError(
            f"two recipes were given, {recipes[0]!r} and {recipes[1]!r}; one is expected",
            hint="an override is written key=value, without spaces",
        )
    return Words(recipes[0] if recipes else None, tuple(overrides))


def _joined(words: Sequence[str | Flag], is_recipe: Callable[[str], bool]) -> Iterator[tuple[str, ...] | Flag]:
    """The words, those of `key = value`, `key =value` and `key= value` together."""
    rest = list(words)
    while rest:
        first, *rest = rest
        if isinstance(first, Flag):
            yield first
            continue
        typed = [first]
        following = rest[0] if rest and isinstance(rest[0], str) else ""
        if "=" not in first and following.startswith("=") and _KEY.fullmatch(first.strip()):
            typed.append(following)
            rest.pop(0)
        if typed[-1].endswith("=") and "=" not in typed[-1][:-1]:
            following = rest[0] if rest and isinstance(rest[0], str) else ""
            # An empty value is one, and a recipe may stand after it.
            if following and "=" not in following and not is_recipe(following):
                typed.append(following)
                rest.pop(0)
        yield tuple(typed)


def _full(key: str, value: str) -> str:
    """The key with its table, where one table alone has it; else as it was typed."""
    keys = full_keys(key) if "." not in key and not value.lstrip().startswith("{") else []
    return keys[0] if len(keys) == 1 else key


def _refuse_key(word: str, following: Sequence[str]) -> None:
    """Raises UsageError where a word without `=` is a key, as in `epochs 3` or `epochs:3`."""
    key, _, value = word.partition(":")
    if not _KEY.fullmatch(key):
        return
    keys = [key] if is_key(key) else full_keys(key) if "." not in key else []
    if not keys:
        return
    value = value.removeprefix("=") or (following[0] if following and ":" not in word else "")
    typed = (word,) if ":" in word else (word, *following)
    if not value:
        raise UsageError(f"{word} is a key and no recipe: {keys[0]}=VALUE", hint=f"okdc recipes {keys[0]} explains it")
    right = f"{keys[0]}={value}"
    raise UsageError(
        f"{' '.join(typed)!r}: a key and its value are one word, {right}",
        hint="an override is written key=value, without spaces",
        corrections={typed: (right,)} if len(keys) == 1 else {},
    )
