"""A data set inside okdc is one file and one line: whatever else uses data sets finds it by its name alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from asking import ask
from lookalike import packed
from serving import Server, publish, served

from okdc.assembly.resolve import resolve
from okdc.data import DATASETS, find
from okdc.errors import RecipeError
from okdc.recipe.draft import load

FILE = """
import numpy as np

from okdc.data.source import Archive, Content, Request, Source, of_arrays
from okdc.errors import DataError


def is_whole(root):
    return (root / "dots" / "arrays.npz").is_file()


def read(request: Request) -> Content:
    if not is_whole(request.folder):
        raise DataError("dots: expected a folder dots, found none", hint="okdc download dots")
    arrays = np.load(request.folder / "dots" / "arrays.npz")
    images, labels = arrays["images"], arrays["labels"]
    return of_arrays(["left", "right"], {"train": (images[:80], labels[:80]), "test": (images[80:], labels[80:])})


SOURCE = Source(
    name="dots",
    read=read,
    root="data",
    classes=2,
    image_size=8,
    archive=Archive("http://127.0.0.1/", "", 0, 0, ("dots",), is_whole),
    caution="Dots: a dot is on one side.",
    hub="somebody/dots",
    fixed=True,
)
"""
ARRAYS = """
import numpy as np
from pathlib import Path

random = np.random.default_rng(0)
labels = np.arange(120) % 2
images = random.integers(0, 64, (120, 8, 8, 3), dtype=np.uint8)
for image, label in zip(images, labels):
    image[:, 4 * label : 4 * label + 4] += 160
Path("made/dots").mkdir(parents=True)
np.savez("made/dots/arrays.npz", images=images, labels=labels)
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with served() as serving:
        yield serving


@pytest.fixture
def dots(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and the line, and its archive on a server."""
    Path("dots_of_a_test.py").write_text(FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setitem(cast("dict[str, str]", DATASETS.own), "dots", "dots_of_a_test:SOURCE")
    exec(ARRAYS, {})
    publish(packed(Path("made")), "dots", server, monkeypatch)


@pytest.mark.usefixtures("dots")
def test_one_file_and_one_line_are_downloaded_trained_exported_and_verified(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["distill", "data.name=dots", "data.val_fraction=0.2", "optim.epochs=2", "optim.batch_size=16", "-o", "run"]
    missing = ask(capsys, *words)
    assert missing.code == 2
    assert "hint: okdc download dots" in missing.err
    for command in (["download", "dots"], words, ["export", "run", "--onnx"], ["verify", "run/bundle"]):
        answer = ask(capsys, *command)
        assert answer.code == 0, (command, answer.err)
    report = json.loads(ask(capsys, "verify", "run/bundle", "--json").out)
    assert report["models"]["float32"]["images"] == 40
    card = Path("run/bundle/README.md").read_text(encoding="utf-8")
    assert "- Dots: a dot is on one side.\n" in card
    assert 'datasets:\n  - "somebody/dots"\n' in card
    assert "saved again as JPEG" not in card
    Path("data").rename("moved")
    report = json.loads(ask(capsys, "verify", "run/bundle", "--json").out)
    assert report["accuracy_not_checked"] == "no images; --data-root DIR"
    monkeypatch.setenv("OKDC_DATA_ROOT", "moved")
    report = json.loads(ask(capsys, "verify", "run/bundle", "--json").out)
    assert report["accuracy_not_checked"] is None


@pytest.mark.usefixtures("dots")
def test_its_rules_are_those_of_every_data_set() -> None:
    assert resolve(load(["data.name=dots"])).recipe.data.root == "data"
    with pytest.raises(RecipeError) as caught:
        resolve(load(["data.name=dots", "data.image_size=16", "data.shorter_side=20"]))
    assert [line.split(":")[0] for line in caught.value.details] == ["data.image_size", "data.shorter_side"]
    with pytest.raises(RecipeError) as caught:
        resolve(load(["data.name=dot"]))
    assert "did you mean 'dots'?" in caught.value.details[0]
    assert find("dots").count_classes(None) == 2


@pytest.mark.parametrize("name", DATASETS.own)
def test_every_line_leads_to_a_source_of_that_name_which_fits_together(name: str) -> None:
    source = find(name)
    assert source.name == name
    assert not (source.needs_root and source.root)
    assert not (source.archive and (source.by_hand or source.root is None))
    assert source.caution == "" or source.caution.endswith(".")
