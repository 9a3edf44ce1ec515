"""A study as a TOML file: methods × columns × seeds, each a run; read and checked as strictly as a recipe. No torch.

    title = "ResNet-20 and -32 on CIFAR-10"
    seeds = [0, 1, 2]
    keys = ["data.val_fraction=0", "cohort.keep=0"]     # of every run

    [columns]                                           # a recipe, and what is changed in it
    resnet20 = ["cifar10_resnet20"]
    resnet32 = ["cifar10_resnet32"]

    [methods]                                           # what is changed in each column's recipe
    baseline = ["method=baseline"]
    fefr = ["method=fefr"]

A run of it is `okdc distill RECIPE KEYS COLUMN METHOD OVERRIDES seed=N`, and lies in FOLDER/COLUMN/METHOD/seedN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from okdc.errors import RecipeError, nearest, quoted
from okdc.recipe import catalog, draft
from okdc.recipe.explain import explain, refusal
from okdc.recipe.schema import TEACHER_PLACES, Index, Table
from okdc.recipe.words import read as read_words

RECIPES, FOLDER = "recipes", "studies"  # of shipped studies: recipes/studies
FILE = "study.toml"  # in the folder of a study: what it was last asked for
TEACHERS = "teachers"  # the folder of runs that teach
LOGS = "logs"  # the folder of what processes print

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # also the name of a folder
Words = Annotated[tuple[str, ...], Field(strict=False)]
Recipe = Annotated[Words, Field(min_length=1)]


class Teacher(Table):
    """The run that teaches in columns of one data set, trained once."""

    methods: Annotated[
        tuple[str, ...], Field(strict=False, min_length=1, description="The methods that have this teacher.")
    ]
    recipes: Annotated[
        dict[str, Recipe],
        Field(min_length=1, description="The teacher's recipe and what is changed in it, by the name of the data set."),
    ]
    seed: Annotated[Index, Field(description="The teacher's seed.")] = 0


class Study(Table):
    """The whole file."""

    title: Annotated[str, Field(description="A few words above the table.")]
    remarks: Annotated[Words, Field(description="Sentences below the table.")] = ()
    seeds: Annotated[
        tuple[Index, ...], Field(strict=False, min_length=1, description="The seeds that each cell is trained with.")
    ]
    keys: Annotated[Words, Field(description="KEY=VALUE words of every run, teachers included.")] = ()
    overrides: Annotated[
        Words, Field(description="KEY=VALUE words of the command that began the study, behind all others.")
    ] = ()
    columns: Annotated[
        dict[str, Recipe],
        Field(min_length=1, description="By label: a recipe's name or path, then KEY=VALUE words."),
    ]
    methods: Annotated[
        dict[str, Words], Field(min_length=1, description="By label: KEY=VALUE words, beginning with the method's.")
    ]
    where: Annotated[
        dict[str, Annotated[tuple[str, ...], Field(strict=False, min_length=1)]],
        Field(default_factory=dict, description="The columns of a method that is not in all of them."),
    ]
    baseline: Annotated[str | None, Field(description="The method that differences are taken to; left out: none.")] = (
        None
    )
    teacher: Annotated[Teacher | None, Field(description="Who teaches in methods that need a teacher.")] = None
    plot: Annotated[
        Literal["students"] | None,
        Field(description="Also a picture: students draws the errors over the number of students."),
    ] = None

    @property
    def teachers(self) -> int:
        """How many runs teach others."""
        return len(self.teacher.recipes) if self.teacher else 0

    @property
    def stated(self) -> frozenset[str]:
        """The dotted keys in which methods differ because the study says so, such as `optim.epochs`."""
        words = [word for of_method in self.methods.values() for word in of_method]
        return frozenset(override.key for override in read_words(words, lambda _: False).overrides)

    def cells(self) -> list[tuple[str, str]]:
        """Each column and method that are trained together."""
        return [(column, method) for column in self.columns for method in self.methods_of(column)]

    def methods_of(self, column: str) -> list[str]:
        """The methods that are trained in a column."""
        return [method for method in self.methods if column in self.where.get(method, self.columns)]


def problems(study: Study) -> list[str]:
    """What is wrong between the keys of a study, and in its words: one line each."""
    return [*_wrong_names(study), *_wrong_labels(study), *_wrong_words(study)]


def _wrong_names(study: Study) -> Iterator[str]:
    methods, columns = [*study.methods], [*study.columns]
    if study.baseline is not None and study.baseline not in methods:
        yield f"baseline: no method is called {study.baseline!r}{nearest(study.baseline, methods)}"
    for name in study.teacher.methods if study.teacher else ():
        if name not in methods:
            yield f"teacher.methods: no method is called {name!r}{nearest(name, methods)}"
    for method, names in study.where.items():
        if method not in methods:
            yield f"where: no method is called {method!r}{nearest(method, methods)}"
        for name in names:
            if name not in columns:
                yield f"where.{method}: no column is called {name!r}{nearest(name, columns)}"


def _wrong_labels(study: Study) -> Iterator[str]:
    for key, labels in (("columns", study.columns), ("methods", study.methods)):
        for label in labels:
            if not LABEL.fullmatch(label):
                yield (
                    f"{key}: expected a label of letters, digits and _ . + -, which begins with a letter or a digit, "
                    f"found {quoted(label)}"
                )
    for label in (TEACHERS, LOGS):
        if label in study.columns:
            yield f"columns: {label} is the name of another folder in a study's; expected another label"
    if len(set(study.seeds)) < len(study.seeds):
        yield "seeds: one is named twice"


def _wrong_words(study: Study) -> Iterator[str]:
    places: dict[str, Iterable[str]] = {"keys": study.keys, "overrides": study.overrides}
    places |= {f"columns.{label}": words for label, (_, *words) in study.columns.items()}
    places |= {f"methods.{label}": words for label, words in study.methods.items()}
    if study.teacher:
        places |= {f"teacher.recipes.{label}": words for label, (_, *words) in study.teacher.recipes.items()}
    for place, words in places.items():
        for word in words:
            key, sign, _ = word.partition("=")
            if not sign:
                yield f"{place}: expected KEY=VALUE, found {word!r}"
            elif key == "seed":
                yield f"{place}: the seeds of a study are its key seeds, found {word!r}"
            elif study.teacher and key.removeprefix("method.") in TEACHER_PLACES:
                yield f"{place}: the teacher of a study is its table teacher, found {word!r}"


def studies() -> dict[str, Path]:
    """Every shipped study by its bare name, sorted."""
    return {path.stem: path for path in sorted((catalog.folder(RECIPES) / FOLDER).glob("*.toml"))}


def find(word: str) -> Path:
    """The file of a study: a path, a folder that a study was trained in, or the name of a shipped one.

    Raises RecipeError for a word that names none.
    """
    path = Path(word)
    if path.is_dir() and (path / FILE).is_file():
        return path / FILE
    if path.is_file():
        return path
    name = path.name.lower().removesuffix(".toml").replace("-", "_")
    if name in studies() and {*path.parts[:-1]} <= {RECIPES, FOLDER}:  # another folder's may be another study
        return studies()[name]
    hint = f"a path to a study's .toml file, its folder, or one that ships with okdc: {', '.join(studies())}"
    if path.is_dir():
        raise RecipeError(
            f"{word}: a folder without {FILE}", hint=f"for runs that lie there: okdc study STUDY -o {word}"
        )
    raise RecipeError(f"{word}: no such study{nearest(path.stem, list(studies()))}", hint=hint)


def read(path: Path) -> Study:
    """Raises RecipeError with all that is wrong in the file."""
    tables = draft.read(path)
    try:
        study = Study.model_validate(tables)
    except ValidationError as error:
        raise refusal(str(path), explain(error, Study)) from None
    if wrong := problems(study):
        raise refusal(str(path), wrong)
    return study
