"""The page as one HTML file that asks nobody for anything: style, script and pictures are inside.

A content security policy names the hashes of the style and the script: whatever a name of a class, a run or a file
contains, nothing else is obeyed. jinja2 escapes every text, and no text keeps a control character.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from okdc.escaping import paragraphs, shown
from okdc.reporting import charts, words
from okdc.reporting.run_page import of_picture, of_run
from okdc.reporting.several_page import of_several
from okdc.units import duration, size
from okdc.version import __version__

FOLDER = Path(__file__).parent / "page"
RELOAD_S = 5  # of a page that is written anew while a training runs


def html(facts: Mapping[str, Any], command: str, watched: bool = False) -> str:
    """The page of a report: `facts` as `okdc report --json` prints them. `watched`: it reloads itself."""
    name, context = ("run.html.j2", of_run(facts["run"])) if facts["run"] else ("several.html.j2", of_several(facts))
    style, script = _text("style.css"), _text("script.js")
    return (
        _environment()
        .get_template(name)
        .render(
            context,
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            version=__version__,
            written_at=facts["written_at"],
            command=command,
            reload_s=RELOAD_S if watched else None,
        )
    )


def picture(run: Mapping[str, Any]) -> str:
    """The run in one SVG, light or dark as its reader is: curves, and every classifier with its interval.

    Raises UsageError for a run that is not complete or was not validated.
    """
    return _environment().get_template("picture.svg.j2").render(of_picture(run), style=Markup(_text("picture.css")))


def now() -> str:
    """The time in words, with its zone."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'"
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_harmless,
    )
    environment.filters |= {
        "as_typed": shlex.join,
        "clipped": clipped,
        "duration": duration,
        "head": words.head,
        "hue": charts.hue,
        "lines": lambda text: Markup.escape(paragraphs(text)),
        "size": size,
    }
    environment.globals |= {
        "width": charts.WIDTH,
        "height": charts.HEIGHT,
        "left": charts.LEFT,
        "right": charts.RIGHT,
        "top": charts.TOP,
        "bottom": charts.BOTTOM,
        "names": charts.NAMES,
    }
    return environment


def _harmless(value: object) -> object:
    """Text without marks that turn a line around or break it; None is nothing."""
    if value is None:
        return ""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def clipped(text: str, most: int) -> str:
    """At most so many letters, the last one an ellipsis where some are gone."""
    return text if len(text) <= most else text[: most - 1] + "…"
