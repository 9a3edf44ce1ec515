"""Recipes: strict TOML tables in, one resolved and hashed recipe out.

    draft = load(["recipes/digits_resnet8.toml", "optim.epochs=3"])     text -> tables, overrides applied
    recipe, problems = check(draft)                                     tables -> Recipe, or all that is wrong

`[method]` stays a plain table here: its keys belong to the Config of the method that it names, which
`okdc.assembly.resolve.resolve` checks, so that listing or reading recipes never imports torch.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from okdc.errors import RecipeError, UsageError, nearest
from okdc.recipe import catalog

DEFAULT = "digits_resnet8"

# Of a method's table, where a teacher lies; `teacher_sha256` says which one it is, and marks a method that has one.
TEACHER_PLACES = ("teacher", "weights")
TEACHER = "teacher_sha256"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Index = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Colour = Annotated[tuple[Finite, Finite, Finite], Field(strict=False)]  # TOML has arrays, not tuples


class Table(BaseModel):
    """A table of the recipe: frozen, and strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Paper(Table):
    """What a paper prints for this cell: top-1 errors in percent by method, its own switches in the key if it has any.

    A list is one number a student, where the paper tells different students apart.
    """

    source: str
    dataset: str  # the cell: what was overridden since is another one
    students: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    epochs: Count = 300
    student_error: dict[str, Positive | list[Positive]] = {}
    fused_error: dict[str, Positive] = {}


class About(Table):
    title: str = ""
    paper: Paper | None = None


class Data(Table):
    name: str  # of okdc.data.DATASETS, or the user's own package.module:callable; okdc.assembly.resolve checks it
    root: Annotated[str, Field(min_length=1)] | None = None  # an empty one would be the working directory
    image_size: Annotated[int, Field(ge=4, le=1024)] = 32
    shorter_side: Annotated[int, Field(ge=4, le=2048)] | None = None  # of what is cut to image_size; left out: that
    train_images: Count | None = None  # a stratified subset, by seed
    val_fraction: Share = 0.1  # of the training images, where the data has no validation split of its own
    crop_padding: Index = 4  # zeros around what a crop is cut from; imagenet's crops are of another kind
    flip: bool = True
    mean: Colour | None = None  # of pixels scaled to 0..1; left out: those of the training images
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] | None = None


class CohortTable(Table):
    students: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    share: Literal["low", "stem1", "none"] = "low"
    keep: Literal["best", "smallest"] | Index = "best"


class Optim(Table):
    epochs: Count = 300
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: Positive = 0.1
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9  # Nesterov's, which needs one above 0
    weight_decay: NotNegative = 1e-4  # the cohort
    aux_weight_decay: NotNegative = 1e-5  # everything that is discarded after training
    schedule: Literal["step", "cosine"] = "step"
    milestones: Annotated[tuple[Share, ...], Field(strict=False)] = (0.5, 0.75)  # fractions of the run
    clip: NotNegative = 0.0  # largest gradient norm; 0: off


class Engine(Table):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    threads: Literal["auto"] | Count = "auto"
    workers: Literal["auto"] | Index = "auto"  # processes that decode images which are not resident; 0: the loop itself
    compile: Literal["auto", "on", "off"] = "auto"  # the training step, by torch.compile
    sync_batchnorm: bool = False  # statistics over the batch of all processes; of one process they are anyway


class Recipe(Table):
    """All of one run. `text()` repeats it; `sha256()` names it wherever its files lie."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    deterministic: bool = False  # CUDA only: a CPU run is exact in any case
    about: About = About()
    data: Data
    cohort: CohortTable
    method: dict[str, Any]
    optim: Optim = Optim()
    engine: Engine = Engine()

    def text(self) -> str:
        """The recipe as TOML, every default written out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def portable(self) -> dict[str, Any]:
        """The tables without what only says where things lie: the same on every machine."""
        tables = self.model_dump(mode="json", exclude_none=True)
        tables["data"].pop("root", None)
        if TEACHER in tables["method"]:
            tables["method"] = {k: v for k, v in tables["method"].items() if k not in TEACHER_PLACES}
        return tables

    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.portable(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Draft:
    """A recipe as read: tables that nothing has checked yet."""

    path: Path
    tables: dict[str, Any]
    overridden: frozenset[str] = frozenset()  # dotted keys given on the command line
    problems: tuple[str, ...] = ()  # what was already wrong with the overrides
    notes: tuple[str, ...] = field(default=())  # what was chosen on the user's behalf
    replaced: str | None = None  # the file's own method, where an override names another
    named: bool = True  # by the user; else it is the default, and what is wrong are the overrides

    @property
    def stem(self) -> str:
        """What a run of it is named after: the file, or for a run's own recipe.toml that run or the series it is in."""
        folder = self.path.absolute().parent
        if (folder.parent / "series.json").is_file():
            folder = folder.parent
        known = (folder / "run.json").is_file() or (folder / "series.json").is_file()
        return folder.name.rsplit("-", 1)[0] if known and self.path.name == "recipe.toml" else self.path.stem


def load(words: Sequence[str]) -> Draft:
    """Read the recipe that the first word without `=` names (none: the default) and apply the other words.

    Raises UsageError for a second recipe, RecipeError for a file that is missing or not TOML.
    """
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        raise UsageError(
            f"two recipes were given, {named[0]!r} and {named[1]!r}; one is expected",
            hint="an override is written key=value, without spaces",
        )
    path, notes = _find(named[0]) if named else (catalog.recipes()[DEFAULT], [f"no recipe named: {DEFAULT}"])
    tables = read(path)
    own = tables.get("method", {}).get("name") if isinstance(tables.get("method"), dict) else None
    problems: list[str] = []
    overridden: set[str] = set()
    for word in words:
        if "=" in word:
            key, _, value = word.partition("=")
            overridden.add(key.strip())
            problems += _override(tables, key.strip(), value)
    replaced = own if isinstance(own, str) and "method.name" in overridden else None
    return Draft(path, tables, frozenset(overridden), tuple(problems), tuple(notes), replaced, bool(named))


def read(path: Path) -> dict[str, Any]:
    """The tables of one TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text; a recipe is a TOML file") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and what tomllib lets through
        raise RecipeError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


def _find(word: str) -> tuple[Path, list[str]]:
    path = Path(word)
    if path.is_file():
        return path, []
    shipped = catalog.find_recipe(word)
    if shipped is None:
        known = catalog.recipes()
        inside = f" (there is {path / 'recipe.toml'})" if (path / "recipe.toml").is_file() else ""
        what = f"is a folder, expected a .toml file{inside}" if path.is_dir() else "no such recipe file"
        raise RecipeError(
            f"{word}: {what}{nearest(path.stem, known)}",
            hint="a path to a .toml file, or one that ships with okdc: okdc recipes lists them",
        )
    return shipped, [f"no file {word}: the shipped recipe {shipped.stem} is used"]


# ---------------------------------------------------------------------------------------------------------------------
# Overrides: the value is TOML where it parses, else the bare word; a key that holds text takes the word as it stands.


def _override(tables: dict[str, Any], key: str, value: str) -> list[str]:
    *path, last = key.split(".")
    if not last or not all(path):
        return [f"{key}={value}: an override is written key=value, as in optim.epochs=3"]
    if not (key + value).isascii():
        try:
            (key + value).encode()
        except UnicodeEncodeError:  # what Python makes of bytes that are no UTF-8; no TOML file could hold it
            return [f"{key}: the value is not UTF-8 text"]
    table = tables
    for i, name in enumerate(path):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            return [f"{key}: {'.'.join(path[: i + 1])} is not a table"]
        table = inner
    table[last] = _value(key, value)
    return []


def _value(key: str, text: str) -> Any:
    try:
        tables = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if list(tables) != ["value"] or (_is_text(key) and not isinstance(tables["value"], str)):
        return text
    return tables["value"]


def _is_text(key: str) -> bool:
    """Whether the schema holds nothing but text at this key: `runs/3` and `12` are then words."""
    if key == "method.name":
        return True
    model: Any = Recipe
    for name in key.split("."):
        fields = getattr(model, "model_fields", {})
        if name not in fields:
            return False
        model = fields[name].annotation
    return all(leaf is str or isinstance(leaf, str) for leaf in _leaves(model))


def _leaves(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type: literals as their values, None left out."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from _leaves(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _leaves(part)
    elif origin is Literal:
        yield from typing.get_args(annotation)
    elif annotation is not type(None):
        yield annotation


# ---------------------------------------------------------------------------------------------------------------------
# Checking: every problem at once, in words.


def check(draft: Draft) -> tuple[Recipe | None, list[str]]:
    """The Recipe, or None and one line for each problem (keys of `[method]` but `name` are not looked at)."""
    problems = list(draft.problems)
    recipe = None
    try:
        recipe = Recipe.model_validate(draft.tables)
    except ValidationError as error:
        problems += explain(error, Recipe)
    method = draft.tables.get("method")
    if isinstance(method, dict) and not isinstance(method.get("name"), str):
        problems.append('method.name: missing; expected the name of a method, such as "fefr"')
    return (None if problems else recipe), problems


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


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line a key: what was expected, what was found, the nearest name."""
    lines: dict[str, str] = {}
    for problem in error.errors():
        path, owner = _locate(problem["loc"], model)
        key = prefix + path
        if problem["type"] == "too_short" and len(problem["input"]) >= problem["ctx"]["min_length"]:
            continue  # only because an item of it is wrong, which has a line of its own
        if problem["type"] == "value_error":  # a rule over several keys, in the model's own words
            key = key.rstrip(".")
            lines[key + problem["msg"]] = f"{key}: {problem['msg'].removeprefix('Value error, ')}"
        elif problem["type"] == "extra_forbidden":
            name, known = path.rsplit(".", 1)[-1], list(owner.model_fields)
            table = f"[{key.rpartition('.')[0]}]" if "." in key else "the top level"
            lines[key] = f"{key}: unknown key{nearest(name, known)}; {table} has {', '.join(known)}"
        elif problem["type"] == "missing":
            field = owner.model_fields.get(path.rsplit(".", 1)[-1])
            lines[key] = f"{key}: missing" + (f"; expected {field.description}" if field and field.description else "")
        else:
            expected = _in_toml(problem["msg"])
            if key in lines:  # another alternative of the same key
                head, _, found = lines[key].rpartition(", found ")
                lines[key] = f"{head} or {expected}, found {found}"
            else:
                close = nearest(str(problem["input"]), re.findall(r"'([^']+)'", expected))
                lines[key] = f"{key}: expected {expected}, found {problem['input']!r}{close}"
    return list(lines.values())


def _in_toml(message: str) -> str:
    """pydantic's words for what it expected, in those of a TOML file."""
    for pattern, words in (
        (r"^(Input should be|Tuple should have|String should have) ", ""),
        (r"a valid dictionary( or instance of \w+)?", "a table"),
        (r"a valid tuple", "a list"),
        (r"a valid boolean", "true or false"),
        (r"a valid string", "text"),
        (r"a valid (integer|number)", r"a \1"),
        (r"a integer", "an integer"),
        (r" after validation, not \d+$", ""),
    ):
        message = re.sub(pattern, words, message)
    return message


def _locate(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The dotted key of an error, without pydantic's names for the parts of a union, and the table it is in."""
    path, owner, inside = "", model, True
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif inside:
            path += f".{part}" if path else part
            annotation = owner.model_fields[part].annotation if part in owner.model_fields else None
            tables = [leaf for leaf in _leaves(annotation) if isinstance(leaf, type) and issubclass(leaf, BaseModel)]
            inside = bool(tables)
            if tables:
                owner = tables[0]
    if loc and inside and path:  # the error is about a whole table: its owner is the table above
        return path, model
    return path, owner
