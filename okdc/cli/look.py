"""Commands that bring and list: download, recipes, compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc.cli import completion, console, tables
from okdc.cli.ends import leave
from okdc.cli.options import DataRoot, Json
from okdc.errors import CheckFailed, RecipeError, UsageError, nearest
from okdc.recipe import catalog

if TYPE_CHECKING:
    from okdc.recipe.reference import Key

WEIGHTS = "weights"  # the word before the names of trained weights


def download(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|weights",
            help="The data set: cifar10, cifar100 or cinic10. Or `weights` and names of trained weights.",
            autocompletion=completion.datasets,
        ),
    ],
    data_root: DataRoot = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Download from this mirror; size and MD5 are checked.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Of weights: also write files that cohort.weights takes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a data set and check it, or weights to start from."""
    from okdc import api
    from okdc.data import download as downloads

    if names[0] == WEIGHTS:
        _download_weights(names[1:], out, data_root or url, as_json)
        return
    if len(names) > 1 or out is not None:
        raise UsageError(
            "okdc download takes one data set, and no --out: --data-root says where its images go",
            hint="okdc download weights NAME ... -o FOLDER is for trained weights",
        )
    (name,) = names
    with console.progress(f"downloading {name}") as update:
        facts = api.download(name, data_root=data_root, url=url, progress=update)
    if as_json:
        console.out_json(facts)
        return
    where = "scikit-learn, nothing to download" if facts["root"] is None else str(Path(facts["root"]).absolute())
    console.out(f"{name} {'was already' if facts['already_there'] else 'is'} in {where}")
    console.next_step(downloads.next_command(name, facts["root"]))


def _download_weights(names: list[str], out: Path | None, of_images: str | None, as_json: bool) -> None:
    from okdc import api
    from okdc.recipe.shorthand import typed

    if not names:
        raise UsageError(
            "okdc download weights: no name",
            hint="timm:NAME, timm:NAME.TAG, torchvision:NAME or torchvision:ENUM.MEMBER",
        )
    if of_images:
        raise UsageError("--data-root and --url are for data sets", hint="-o FOLDER says where files of weights go")
    facts = api.download_weights(*names, out=out)
    if as_json:
        console.out_json(facts)
        return
    for weights in facts:
        where = weights["file"] or "the cache of its library"
        console.out(f"{weights['name']} is in {where}; licence: {weights['licence'] or 'its library states none'}")
    networks = [weights["network"] for weights in facts]
    if len(networks) == 1:
        networks *= 2  # methods of distillation teach two students at least; others take the first
    values = [weights["file"] or weights["name"] for weights in facts]
    console.next_step("okdc distill RECIPE", typed("cohort.students", networks), typed("cohort.weights", values))


def recipes(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|keys|KEY", help="A recipe to print; `keys`, a table or a key to explain."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--md", help="Print keys as GitHub tables; `keys` alone: every method's too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the recipes that ship with okdc, print one, explain keys."""
    words = words or []
    recipe = _recipe_file(words[0]) if len(words) == 1 else None
    if markdown and (as_json or not words or recipe):
        raise UsageError("--md prints the keys of a recipe and nothing else", hint="okdc recipes keys --md")
    if recipe:
        _show_recipe(recipe, as_json)
    elif words:
        _explain_keys(words[words[0] == "keys" :], markdown, as_json)
    else:
        _list_recipes(as_json)


def _list_recipes(as_json: bool) -> None:
    rows = [_facts(path) | {"name": name} for name, path in catalog.recipes().items()]
    if as_json:
        console.out_json(rows)
        return
    tables.recipes(rows)
    console.next_step("okdc distill RECIPE")


def _recipe_file(word: str) -> Path | None:
    """The recipe that a word names: a file, or one that ships with okdc."""
    return Path(word) if Path(word).exists() and not Path(word).is_dir() else catalog.find_recipe(word)


def _facts(path: Path) -> dict[str, Any]:
    """A recipe's tables. Raises RecipeError with all that is wrong in it."""
    from okdc.recipe import draft
    from okdc.recipe.explain import refusal

    recipe, problems = draft.check(draft.Draft(path, draft.read(path)))
    if recipe is None:
        raise refusal(str(path), problems)
    return {"name": path.stem, "path": str(path), **recipe.portable()}


def _show_recipe(path: Path, as_json: bool) -> None:
    """The file's text on stdout, so that it can be piped into a file of one's own; the rest on stderr."""
    facts, text = _facts(path), path.read_text(encoding="utf-8")
    command = ("okdc distill", path.stem if path in catalog.recipes().values() else path)
    if as_json:
        console.out_json(facts | {"command": " ".join(map(str, command)), "text": text})
        return
    console.say(f"{facts['about']['title'] or path.stem} ({path})")
    console.out_text(text.rstrip("\n"))
    console.next_step(*command)


def _explain_keys(words: list[str], markdown: bool, as_json: bool) -> None:
    from okdc.recipe import reference
    from okdc.recipe.schema import Recipe

    of_tables = reference.keys(Recipe)
    rows = [row for word in words for row in _named(word, of_tables)] if words else of_tables
    if markdown and not words:  # the reference as a whole: recipes/README.md has it
        rows = of_tables + _of_methods("method")
    if as_json:
        console.out_json([asdict(row) for row in rows])
    elif markdown:
        console.out_text(reference.markdown(rows))
    else:
        tables.keys(rows)
        if any(row.key == "method.name" for row in rows):
            console.next_step("okdc recipes method.fefr")


def _named(word: str, of_tables: list[Key]) -> list[Key]:
    """The rows of a key, of a table, or of a method: method.NAME, method.NAME.KEY, method.KEY of any method.

    Raises UsageError for anything else.
    """
    rows = [row for row in of_tables if f"{row.key}.".startswith(f"{word}.")]
    if word.split(".")[0] == "method" and word != "method.name":
        rows += _of_methods(word)
    if not rows:
        from okdc.recipe.shorthand import full_keys

        short = full_keys(word)
        rows = [row for row in of_tables if [row.key] == short]
    if not rows:
        parents = list(dict.fromkeys(row.table for row in of_tables if row.table))
        names = [*(row.key for row in of_tables), *parents, *catalog.recipes()]
        begun = [name for name in catalog.recipes() if name.startswith(f"{word}_")]
        meant = f" (did you mean {' or '.join(map(repr, begun))}?)" if 0 < len(begun) < 4 else nearest(word, names)
        raise UsageError(
            f"{word} is no recipe, table or key{meant}",
            hint=f"tables: {', '.join(parents)}; okdc recipes keys explains every key, okdc recipes lists the recipes",
        )
    return rows


def _of_methods(word: str) -> list[Key]:
    """Keys of the methods' Configs: every one for `method`, else those that the word names.

    Raises UsageError where there are none.
    """
    from okdc import methods
    from okdc.recipe import reference

    name, _, key = word.removeprefix("method").removeprefix(".").partition(".")
    if name in methods.METHODS or ":" in name:
        names = [name]
        rows = reference.keys(methods.find(name).Config, "method.", name)
    else:
        names, key, rows = methods.METHODS.names(), name, []
        for each in names:
            try:
                rows += reference.keys(methods.find(each).Config, "method.", each)
            except RecipeError as error:  # one broken package hides none of the others
                console.warn(f"left out: method {each}: {error.message}")
    if not key:
        return rows
    if chosen := [row for row in rows if row.key == f"method.{key}"]:
        return chosen
    choices = list(dict.fromkeys([row.key.removeprefix("method.") for row in rows]))
    choices += names if len(names) > 1 else []  # the word is neither a method nor a key of one
    kind = f"key of {name}" if len(names) == 1 else "method or key of one"
    raise UsageError(
        f"{word}: no {kind} is called {key!r}{nearest(key, choices)}", hint=f"there is: {', '.join(choices)}"
    )


def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|DIR",
            help="Finished runs, or folders of them (default: ./runs).",
            autocompletion=completion.comparable,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="VARIANT", help="The row that the others are compared with (default: baseline)."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'A>B'",
            help="Exit 1 unless the 95 % interval of A - B lies above 0 (A>=B: unless it lies below 0).",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--md", help="Print tables in GitHub's Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Compare finished runs: means over seeds, paired differences."""
    if markdown and as_json:
        raise UsageError("--md and --json are two ways to print the same", hint="one of them")
    from okdc import api
    from okdc.cli.comparison import show
    from okdc.comparison import compare as comparison
    from okdc.comparison.require import check

    facts = api.compare(paths or [], baseline=baseline, require=require or [])
    if as_json:
        console.out_json(facts)
        try:
            check(facts)
        except CheckFailed as error:
            leave(error)
        return
    show(facts, markdown)
    check(facts)
    console.next_step(comparison.next_step(facts))
