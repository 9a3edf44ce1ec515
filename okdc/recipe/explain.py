"""What is wrong with a table, in the words of whoever wrote it: one line a key, whatever the model.

pydantic says what it expected as an error's `type` and `ctx`; its English is not read.
"""

from __future__ import annotations

import copy
import itertools
import typing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from okdc.errors import RecipeError, nearest, quoted
from okdc.recipe.reference import alternatives
from okdc.recipe.schema import NUMBERED, Recipe
from okdc.recipe.shorthand import suggestions, takes

# type of an error -> what was expected, with parts of its ctx
EXPECTED = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "greater than or equal to {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "less than or equal to {le}",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "at least {min_length} character{s}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "too_short": "at least {min_length} item{s}",
    "too_long": "at most {max_length} item{s}",
    "literal_error": "{expected}",
}


# Keys that have another place now.
MOVED = {"data.crop_padding": "augment.padding", "data.flip": "augment.flip"}

SHOWN = 20  # problems of a recipe; of more, their number
LONGEST = 100  # letters of a key


def refusal(
    place: str,
    problems: Sequence[str],
    hint: str = "",
    corrections: Mapping[tuple[str, ...], tuple[str, ...]] | None = None,
) -> RecipeError:
    """All that is wrong with the recipe at `place`, as far as anybody reads it."""
    count = len(problems)
    rest = [f"and {count - SHOWN:,} more"] if count > SHOWN else []
    message = f"{place}: {count:,} problem{'s' if count > 1 else ''}"
    return RecipeError(message, hint=hint, details=[*problems[:SHOWN], *rest], corrections=corrections)


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line a key: what was expected, what was found, the nearest name."""
    lines: dict[str, str] = {}
    expected: defaultdict[str, list[str]] = defaultdict(list)  # key -> what each alternative of it takes
    for problem in error.errors():
        path, owner = _locate(problem["loc"], model)
        name, kind, found = path.rsplit(".", 1)[-1], problem["type"], problem["input"]
        key, few = _short(prefix + path), len(lines) < SHOWN  # the nearest name takes a while, and of few it is read
        if kind == "too_short" and len(found) >= problem["ctx"]["min_length"]:
            continue  # only because an item of it is wrong, which has a line of its own
        if kind == "value_error":  # a rule over several keys, in the model's own words
            key, rule = key.rstrip("."), str(problem["ctx"]["error"])
            lines[key + rule] = f"{key}: {rule}"
        elif kind == "extra_forbidden" and key in MOVED:
            lines[key] = f"{key}: its name is {MOVED[key]} now"
        elif kind == "extra_forbidden":
            table = f"[{key.rpartition('.')[0]}]" if "." in key else "the top level"
            fields = list(owner.model_fields)
            if few and "." not in key and model is Recipe:
                near = nearest(name[:LONGEST], [field for field in fields if takes(field, found)])
            else:
                near = nearest(name[:LONGEST], fields) if few else ""
            near = near or (_elsewhere(key, found) if few else "")
            lines[key] = f"{key}: unknown key{near}; {table} has {', '.join(fields)}"
        elif kind == "missing":
            description = owner.model_fields[name].description if name in owner.model_fields else None
            lines[key] = f"{key}: missing" + (f". {description}" if description else "")
        else:
            expected[key].append(_expected(problem))
            close = nearest(str(found)[:LONGEST], _choices(problem, name, owner)) if few else ""
            lines[key] = f"{key}: expected {' or '.join(expected[key])}, found {quoted(found)}{close}"
    return list(lines.values())


def _elsewhere(key: str, value: Any) -> str:
    """The keys of other tables that may be meant, and take this value."""
    keys = [each for each in suggestions(key) if takes(each, value)]
    return f" (did you mean {' or '.join(map(repr, keys))}?)" if keys else ""


def _short(key: str) -> str:
    return key if len(key) <= LONGEST else f"{key[:LONGEST]}... ({len(key):,} letters)"


def _expected(problem: ErrorDetails) -> str:
    """What an alternative of a key takes; of a type that is not in the table, what pydantic says."""
    if problem.get("ctx", {}).get("pattern") == NUMBERED:
        return "a GPU by its number, as in cuda:1"
    if problem["type"] not in EXPECTED:
        return problem["msg"]
    facts = {key: f"{x:g}" if isinstance(x, float) else x for key, x in problem.get("ctx", {}).items()}
    plural = "" if 1 in (facts.get("min_length"), facts.get("max_length")) else "s"
    return EXPECTED[problem["type"]].format(**facts, s=plural)


def _choices(problem: ErrorDetails, name: str, owner: type[BaseModel]) -> list[str]:
    """The words that a key takes."""
    choices = list(problem.get("ctx", {}).get("choices", ()))
    key, item, _ = name.partition("[")  # `track[0]` is an item of the list `track`
    if key in owner.model_fields:
        leaves = list(alternatives(owner.model_fields[key].annotation))
        if item:
            leaves = [leaf for each in leaves for part in typing.get_args(each) for leaf in alternatives(part)]
        choices += [leaf for leaf in leaves if isinstance(leaf, str)]
    return choices


def _locate(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The dotted key of an error, without pydantic's names for the parts of a union, and the table it is in."""
    path, owner, inside, of_label = "", model, True, False
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif of_label:  # a table whose keys are anybody's words
            path, of_label = f"{path}.{part}", False
        elif inside:
            path += f".{part}" if path else part
            annotation = owner.model_fields[part].annotation if part in owner.model_fields else None
            tables = [
                leaf for leaf in alternatives(annotation) if isinstance(leaf, type) and issubclass(leaf, BaseModel)
            ]
            inside = bool(tables)
            of_label = any(typing.get_origin(leaf) is dict for leaf in alternatives(annotation))
            if tables:
                owner = tables[0]
    if loc and inside and path:  # the error is about a whole table: its owner is the table above
        return path, model
    return path, owner


def salvage(tables: dict[str, Any]) -> Recipe | None:
    """The recipe without the keys that are wrong, for the rules between keys to be looked at in the same go."""
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        tables = copy.deepcopy(tables)
        for problem in error.errors():
            _drop(tables, problem["loc"])
    try:
        return Recipe.model_validate(tables)
    except ValidationError:
        return None


def _drop(table: Any, loc: tuple[int | str, ...]) -> None:
    """Take out the innermost key that an error is about."""
    for part, inner in itertools.pairwise((*loc, None)):
        if not isinstance(table, dict) or part not in table:
            return
        if isinstance(table[part], dict) and inner in table[part]:
            table = table[part]
        else:
            del table[part]
            return
