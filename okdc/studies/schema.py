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

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from okdc.errors import RecipeError, nearest
from okdc.recipe import catalog, draft
from okdc.recipe.explain import explain, refusal
from okdc.recipe.schema import Index, Table

FOLDER = "studies"  # of shipped studies, below recipes/
FILE = "study.toml"  # in the folder of a study: what it was last asked for
TEACHERS = "teachers"  # the folder of runs that teach

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # also the name of a folder
Words = Annotated[tuple[str, ...], Field(strict=False)]
Recipe = Annotated[Words, Field(min_length=1)]


class Teacher(Table):
    """The run that teaches in columns of one data set, trained once."""

    methods: Annotated[
        tuple[Label, ...], Field(strict=False, min_length=1, description="The methods that have this teacher.")
    ]
    recipes: Annotated[
        dict[Label, Recipe],
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
        dict[Label, Recipe],
        Field(min_length=1, description="By label: a recipe's name or path, then KEY=VALUE words."),
    ]
    methods: Annotated[
        dict[Label, Words], Field(min_length=1, description="By label: KEY=VALUE words, beginning with the method's.")
    ]
    where: Annotated[
        dict[Label, Annotated[tuple[Label, ...], Field(strict=False, min_length=1)]],
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

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        problems, named = [], [*self.methods]
        if self.baseline is not None and self.baseline not in named:
            problems.append(f"baseline: no method is called {self.baseline!r}{nearest(self.baseline, named)}")
        if self.teacher and (unknown := [name for name in self.teacher.methods if name not in named]):
            problems.append(f"teacher.methods: no method is called {unknown[0]!r}{nearest(unknown[0], named)}")
        for method, columns in self.where.items():
            if method not in named:
                problems.append(f"where: no method is called {method!r}{nearest(method, named)}")
            if unknown := [name for name in columns if name not in self.columns]:
                problems.append(
                    f"where.{method}: no column is called {unknown[0]!r}{nearest(unknown[0], [*self.columns])}"
                )
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: one is named twice")
        if TEACHERS in self.columns:
            problems.append(f"columns: {TEACHERS!r} is the folder of teachers; another label")
        words = [*self.keys, *self.overrides, *(word for words in self.methods.values() for word in words)]
        words += [word for _, *rest in self.columns.values() for word in rest]
        if wrong := [word for word in words if "=" not in word]:
            problems.append(f"expected KEY=VALUE, found {wrong[0]!r}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def teachers(self) -> int:
        """How many runs teach others."""
        return len(self.teacher.recipes) if self.teacher else 0

    def cells(self) -> list[tuple[str, str]]:
        """Each column and method that are trained together."""
        return [
            (column, method)
            for column in self.columns
            for method in self.methods
            if column in self.where.get(method, self.columns)
        ]


def studies() -> dict[str, Path]:
    """Every shipped study by its bare name, sorted."""
    return {path.stem: path for path in sorted((catalog.folder("recipes") / FOLDER).glob("*.toml"))}


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
    if name in studies():
        return studies()[name]
    what = f"a folder without {FILE}" if path.is_dir() else "no such study"
    raise RecipeError(
        f"{word}: {what}{nearest(path.stem, list(studies()))}",
        hint=f"a path to a study's .toml file, its folder, or one that ships with okdc: {', '.join(studies())}",
    )


def read(path: Path) -> Study:
    """Raises RecipeError with all that is wrong in the file."""
    tables = draft.read(path)
    try:
        return Study.model_validate(tables)
    except ValidationError as error:
        raise refusal(str(path), explain(error, Study)) from None
