"""The guide in okdc/data/README.md: its files are written and its commands run, in order, as a reader would."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from asking import ask
from reading import read_data

import okdc
from okdc import plugins
from okdc.data import DATASETS, find
from okdc.errors import DataError

GUIDE = (Path(okdc.__file__).parent / "data" / "README.md").read_text(encoding="utf-8")


def install(project: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """What `pip install .` leaves of a project: its modules on the path, and its entry points."""
    table = tomllib.loads(project)["project"]
    lines = []
    for group, targets in table["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in targets.items())]
    installed = folder / f"{table['name']}-{table['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {table['name']}\nVersion: {table['version']}\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    patch.syspath_prepend(str(folder))
    plugins._entry_points.cache_clear()


@pytest.fixture(autouse=True)
def entry_points_are_read_again() -> object:
    yield
    plugins._entry_points.cache_clear()


def test_the_examples_of_the_guide_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names, out = [], {}
    for kind, text in re.findall(r"```(python|toml|sh)\n(.*?)```", GUIDE, re.S):
        if kind != "sh":
            name = text.splitlines()[0].removeprefix("# ")
            Path(name).write_text(text, encoding="utf-8")
            names.append(name)
            continue
        for line in text.splitlines():
            program, *words = shlex.split(line)
            if program == "pip":
                install(Path("pyproject.toml").read_text(encoding="utf-8"), Path.cwd(), monkeypatch)
            elif program == "python":
                subprocess.run([sys.executable, *words], check=True)
            else:
                answer = ask(capsys, *words)
                assert answer.code == 0, (line, answer.err)
                out[line] = answer.out
    assert names == ["mydata.py", "stripes.py", "pyproject.toml"]
    assert [line.split()[1] for line in out] == ["distill", "export", "distill", "export", "verify"]
    card = Path("runs/stripes/bundle/README.md").read_text(encoding="utf-8")
    assert "Stripes: the images are generated" in card
    report = json.loads(ask(capsys, "verify", "runs/stripes/bundle", "--json").out)
    assert report["accuracy_not_checked"] is None
    assert report["models"]["float32"]["images"] == 100
    report = json.loads(ask(capsys, "verify", "runs/mine/bundle", "--json").out)
    assert "not run on a bundle's word" in report["accuracy_not_checked"]


def test_an_entry_point_may_lead_to_a_function_and_to_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("functions.py").write_text(
        "import numpy as np\nNUMBER = 3\ndef load(*, root, image_size):\n"
        "    images = np.zeros((4, image_size, image_size, 3), np.uint8)\n"
        "    return {'classes': ['a', 'b'], 'train': (images, [0, 1, 0, 1])}\n",
        encoding="utf-8",
    )
    project = """
[project]
name = "functions"
version = "1"
[project.entry-points."okdc.datasets"]
packaged_function = "functions:load"
packaged_number = "functions:NUMBER"
digits = "functions:NUMBER"
"""
    install(project, Path.cwd(), monkeypatch)
    dataset = read_data("packaged_function", size=6)
    assert (dataset.name, dataset.images.shape) == ("packaged_function", (4, 6, 6, 3))
    assert "packaged_number" in DATASETS.names()
    with pytest.raises(DataError, match="packaged_number: expected a Source or a callable, found int"):
        find("packaged_number")
    assert find("digits").fixed  # okdc's own, whatever a package calls so
