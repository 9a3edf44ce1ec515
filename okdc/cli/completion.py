"""The names that a shell completes: recipes, runs, series, bundles.

A name is completed from folders alone: no file of a run is read, so a damaged run is completed and reported by nobody.
Where no name matches the word, the shell completes file names, which also serves names that a shell has to quote.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from okdc.recipe import catalog

# As okdc.runs and okdc.bundle call them. Importing those would bring numpy and 150 ms into every Tab.
RUNS, RUN, SERIES, RESULT, MANIFEST = Path("runs"), "run.json", "series.json", "result.json", "manifest.json"


def recipes(incomplete: str) -> list[str]:
    """The recipes that ship with okdc."""
    return _matching(incomplete, catalog.recipes())


def resumable(incomplete: str) -> list[str]:
    """Runs without a result, and series."""
    runs = _folders(RUN, "*", "*/seed*")
    return _matching(incomplete, [run for run in runs if not (run / RESULT).exists()], _folders(SERIES, "*"))


def finished(incomplete: str) -> list[str]:
    """Runs with a result."""
    return _matching(incomplete, _folders(RESULT, "*", "*/seed*"))


def begun(incomplete: str) -> list[str]:
    """Runs in any state."""
    return _matching(incomplete, _folders(RUN, "*", "*/seed*"))


def comparable(incomplete: str) -> list[str]:
    """Runs with a result, and series."""
    return [*finished(incomplete), *_matching(incomplete, _folders(SERIES, "*"))]


def countable(incomplete: str) -> list[str]:
    """Runs with a result, networks, recipes."""
    from okdc.backbones import NETWORKS

    return [*finished(incomplete), *_matching(incomplete, NETWORKS.names(), catalog.recipes())]


def datasets(incomplete: str) -> list[str]:
    """The data sets with a name."""
    from okdc.data import DATASETS

    return _matching(incomplete, DATASETS.names())


def studies(incomplete: str) -> list[str]:
    """Shipped studies, and folders of studies."""
    from okdc.studies.schema import FILE
    from okdc.studies.schema import studies as shipped

    return _matching(incomplete, shipped(), [path.parent for path in Path("studies").glob(f"*/{FILE}")])


def bundles(incomplete: str) -> list[str]:
    """Bundles of runs, and bundles in the working directory."""
    here = [path.parent for path in Path().glob(f"*/{MANIFEST}")]
    return _matching(incomplete, _folders(MANIFEST, "*/bundle", "*/seed*/bundle"), here)


def finished_or_bundles(incomplete: str) -> list[str]:
    """Runs with a result, and bundles."""
    return [*finished(incomplete), *bundles(incomplete)]


def _folders(file: str, *patterns: str) -> list[Path]:
    """The folders below ./runs that match one of the patterns and hold the file."""
    return [path.parent for pattern in patterns for path in RUNS.glob(f"{pattern}/{file}")]


def _matching(incomplete: str, *names: Iterable[object]) -> list[str]:
    """The names that begin with `incomplete` and that a shell takes without quotes."""
    words = (str(name) for group in names for name in group)
    return [word for word in words if word.startswith(incomplete) and shlex.quote(word) == word]
