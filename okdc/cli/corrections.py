"""The line to type in place of one with a mistake: words of the command, and what they are replaced by."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Corrections = Mapping[tuple[str, ...], tuple[str, ...]]

# What other tools call a command of okdc.
COMMANDS = {
    "train": ("distill",),
    "fit": ("distill",),
    "run": ("distill",),
    "start": ("distill",),
    "continue": ("resume",),
    "eval": ("evaluate",),
    "test": ("evaluate",),
    "val": ("evaluate",),
    "infer": ("predict",),
    "convert": ("export", "--onnx"),
    "onnx": ("export", "--onnx"),
    "benchmark": ("bench",),
    "list": ("recipes",),
    "ls": ("runs",),
    "help": ("--help",),
    "version": ("--version",),
}
OPTIONS = {"gpu": ("--device", "cuda"), "cuda": ("--device", "cuda"), "cpu": ("--device", "cpu")}
OF_KEYS = ("distill", "check", "bench")  # commands whose words override keys of a recipe


def line(arguments: Sequence[str], corrections: Corrections) -> str:
    """The command with these words replaced, quoted for the shell. A word that is not there is left alone."""
    words = list(arguments)
    for typed, right in corrections.items():
        for start in range(len(words)):
            if tuple(words[start : start + len(typed)]) == typed:
                words[start : start + len(typed)] = right
                break
            if len(typed) == 2 and words[start] == "=".join(typed):  # an option and its value in one word
                words[start : start + 1] = right
                break
    return shlex.join(["okdc", *words])


def guess(arguments: Sequence[str], group: Any) -> Corrections:
    """What is meant where typer refuses a line, `group` being its commands: a command by another name, a key or a flag
    that is no option. Nothing where any part of it is in doubt.
    """
    place = next((i for i, word in enumerate(arguments) if not word.startswith("-")), None)
    if place is None:
        return {}
    name = arguments[place]
    following = arguments[place + 1 : place + 2]
    if name == "help" and following and following[0] in group.commands:
        return {(name, *following): (*following, "--help")}
    if name not in group.commands:
        return _command(name, list(group.commands))
    if name not in OF_KEYS:
        return {}
    corrections: dict[tuple[str, ...], tuple[str, ...]] = {}
    for typed, right in _options(arguments[place + 1 :], group.commands[name]):
        if not right:
            return {}
        corrections[typed] = right
    return corrections


def _command(name: str, commands: Sequence[str]) -> Corrections:
    """A command by another name; a recipe or an override without the command that takes it."""
    from okdc.recipe import catalog

    if right := COMMANDS.get(name.lower()):
        return {(name,): right}
    if "=" in name or name.endswith(".toml") or catalog.find_recipe(name):
        return {(name,): ("distill", name)}
    close = difflib.get_close_matches(name, commands, n=1)
    return {(name,): (close[0],)} if close else {}


def _options(words: Sequence[str], command: Any) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Each word that looks like an option and is none of the command's, with its value, and what is meant by it."""
    from okdc.recipe.shorthand import full_keys, suggestions

    options = {option: parameter for parameter in command.params for option in getattr(parameter, "opts", ())}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            continue
        option, is_one_word, value = word.partition("=")
        if option in options:
            if not is_one_word and not getattr(options[option], "is_flag", False) and rest:
                rest.pop(0)  # its value
            continue
        name = option.lstrip("-")
        typed: tuple[str, ...] = (word,)
        if name in OPTIONS:
            yield typed, OPTIONS[name]
            continue
        if not is_one_word and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
            typed = (word, value)
        near = difflib.get_close_matches(option, list(options), n=1, cutoff=0.75)
        keys = full_keys(name) or ([] if near else suggestions(name))
        if keys == ["data.name"] and os.path.isdir(value):  # noqa: PTH112  (Path.is_dir() raises for some words)
            yield typed, ("--data-root", value)
        elif len(keys) == 1 and value:
            yield typed, (f"{keys[0]}={value}",)
        elif near:
            yield typed, (near[0], value) if value else (near[0],)
        else:
            yield typed, ()
