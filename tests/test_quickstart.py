"""recipes/quickstart.ipynb: its cells run in order, and its committed outputs are whole, small and of no machine."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from okdc.recipe import catalog

FILE = catalog.folder("recipes") / "quickstart.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def backend() -> Iterator[None]:
    before = plt.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.mark.usefixtures("backend")
def test_the_cells_run_in_their_order_and_print_what_is_committed_line_for_line(tmp_path: Path) -> None:
    """Numbers may differ on another processor. What is a line of text or a figure here is one in the file."""
    space: dict[str, Any] = {}
    for cell in CODE:
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
        committed = [line for output in cell["outputs"] for line in output.get("text", ())]
        assert len(committed) == len(stream.getvalue().splitlines()), cell["id"]
    assert space["run"].state == "complete"
    assert space["report"]["passed"]
    assert space["report"]["models"]["float32"]["images"] == 797, "the accuracy was proven, too"
    assert space["kept"].top1_pct > 80
    assert space["matrix"].sum() == 797
    assert len(space["figure"].axes) == 1
    assert (tmp_path / "runs" / "quickstart" / "bundle" / "answers.json").is_file()


def test_the_file_is_a_notebook_of_format_4_5() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert set(NOTEBOOK) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    names = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
    for cell in NOTEBOOK["cells"]:
        more = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | more
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))


def test_outputs_are_there_where_a_cell_prints_and_none_is_an_error() -> None:
    for cell in CODE:
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert ("stream" in kinds) == ("print(" in "".join(cell["source"])), cell["id"]
        assert set(kinds) <= {"stream", "execute_result"}
        assert all(output.get("name", "stdout") == "stdout" for output in cell["outputs"]), cell["id"]
    (figure,) = (output["data"] for cell in CODE for output in cell["outputs"] if "data" in output)
    with Image.open(io.BytesIO(base64.b64decode(figure["image/png"]))) as image:
        image.verify()


def test_the_file_is_small_and_names_no_place_and_no_time() -> None:
    assert FILE.stat().st_size < 60_000
    texts = [line for cell in CODE for output in cell["outputs"] for line in output.get("text", ())]
    assert not [line for line in texts if re.search(r"(^|\s)(/|[A-Z]:\\|~)|\d\s*(ms|s|sec|seconds|min)\b", line)]
