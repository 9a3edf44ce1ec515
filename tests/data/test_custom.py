from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, picture
from reading import read_data

from okdc.assembly.resolve import resolve
from okdc.errors import DataError, RecipeError
from okdc.recipe.draft import load

MODULE = """
from pathlib import Path
import numpy as np

def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)

def load(*, root, image_size):
    assert image_size == 8, image_size
    count = 40 if root is None else int(Path(root, "count").read_text())
    return {
        "classes": ["cat", "dog"],
        "train": (images(count, 0), [i % 2 for i in range(count)]),
        "test": (images(10, 1), np.arange(10) % 2),
    }
"""
COUNT = iter(range(1000))


def module(text: str) -> str:
    """A module of its own in the working directory: an imported name is remembered for the whole process."""
    name = f"mine{next(COUNT)}"
    Path(f"{name}.py").write_text(text, encoding="utf-8")
    return name


def callable_for(monkeypatch: pytest.MonkeyPatch, result: Any) -> str:
    """The data.name of a callable that returns `result`."""
    name = module("result = []\ndef load(*, root, image_size):\n    return result[0]\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    __import__(name)
    monkeypatch.setattr(sys.modules[name], "result", [result])
    return f"{name}:load"


def content(**changes: Any) -> dict[str, Any]:
    """Two classes of 8×8 images, with the changes of a test."""
    whole = {
        "classes": ["cat", "dog"],
        "train": (np.stack([picture(i) for i in range(6)]), np.arange(6) % 2),
        "val": (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 1])),
        "test": (np.zeros((2, 8, 8, 3), np.uint8), [1, 1]),
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def refused(name: str, *said: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_data(name, None, 8)
    for words in said:
        assert words in caught.value.message, caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


# --- names


@pytest.mark.parametrize("name", ["cifr10", "mine", "mine:", ":load", "my data:load", "mine:load()", "", "cifar10 "])
def test_a_name_without_a_data_set_that_is_no_callable_either_lists_all_names(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(load([f"data.name={name}"]))
    (line,) = [line for line in caught.value.details if line.startswith("data.name")]
    assert line.startswith(f"data.name: no data set is called {name!r}")
    assert line.endswith("; there is: digits, folder, cifar10, cifar100, cinic10, imagenet; or package.module:callable")
    assert ("(did you mean 'cifar10'?)" in line) == name.startswith("cif")


@pytest.mark.parametrize(
    "name", ["mine:load", "package.module:callable", "a.b.c:Class.method", "_m1:_f", "données:lire"]
)
def test_a_callable_of_a_module_is_a_name(name: str) -> None:
    assert resolve(load([f"data.name={name}"])).recipe.data.name == name


# --- its result


def test_a_module_in_the_working_directory_trains(capsys: pytest.CaptureFixture[str]) -> None:
    name = module(MODULE)
    before = list(sys.path)
    words = ["optim.epochs=1", "optim.batch_size=8", "data.val_fraction=0.2", "data.train_images=20"]
    answer = ask(capsys, "distill", f"data.name={name}:load", *words)
    assert answer.code == 0, answer.err
    assert "on 10 test images" in answer.out
    assert sys.path == before


def test_root_and_size_are_those_of_the_recipe() -> None:
    name = module(MODULE)
    Path("there").mkdir()
    Path("there/count").write_text("12", encoding="utf-8")
    assert len(read_data(f"{name}:load", "there", 8).train) == 12
    assert len(read_data(f"{name}:load", None, 8).train) == 40
    with pytest.raises(DataError, match="raised AssertionError: 9"):
        read_data(f"{name}:load", None, 9)


def test_arrays_and_tensors_become_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = content()
    dataset = read_data(callable_for(monkeypatch, arrays), None, 8)
    assert dataset.classes == ("cat", "dog")
    assert [rows.tolist() for rows in (dataset.train, dataset.val, dataset.test)] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7],
        [8, 9],
    ]
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 1, 1]
    assert np.array_equal(dataset.images[:6].numpy(), arrays["train"][0])
    arrays["train"][0][:] = 0
    assert dataset.images[:6].any()  # a copy: what the callable does afterwards changes nothing


def test_a_split_that_is_left_out_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_data(callable_for(monkeypatch, content(val=None, test=None)), None, 8)
    assert (len(dataset.val), len(dataset.test)) == (0, 0)


def test_the_fingerprint_tells_pixels_labels_classes_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = content()["train"]
    other = images.copy()
    other[3, 2, 1, 0] ^= 1
    variants = [
        content(),
        content(train=(other, labels)),
        content(train=(images, 1 - labels)),
        content(classes=["cat", "cow"]),
        content(test=None),
        content(val=content()["test"], test=content()["val"]),
    ]
    seen = {read_data(callable_for(monkeypatch, variant), None, 8).fingerprint for variant in variants}
    assert len(seen) == len(variants)
    assert read_data(callable_for(monkeypatch, content()), None, 8).fingerprint in seen


IMAGES, LABELS = content()["train"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([1, 2], "expected a mapping with classes, train and, if you like, val and test, found list"),
        (content(valid=(IMAGES, LABELS)), "unknown key 'valid' (did you mean 'val'?)"),
        (content(classes=None), "'classes' is missing"),
        (content(train=None), "'train' is missing"),
        (content(classes="catdog"), "classes: expected a list of names, found str 'catdog'"),
        (content(classes=[0, 1]), "classes: expected a list of names, found list [0, 1]"),
        (content(classes=["cat"]), "classes: expected at least two, found 1"),
        (content(classes=["cat", "dog", "cat"]), "classes: expected each once, found 'cat' twice"),
        (content(train=IMAGES), "train: expected (images, labels), found ndarray"),
        (content(val=(IMAGES,)), "val: expected (images, labels), found tuple"),
        (content(train=(IMAGES / 255, LABELS)), "train images: expected uint8, 0 to 255, found float64"),
        (
            content(test=(IMAGES.transpose(0, 3, 1, 2), LABELS)),
            "test images: expected the shape (N, 8, 8, 3), found (6, 3, 8, 8); channels come last",
        ),
        (content(train=(IMAGES[..., 0], LABELS)), "train images: expected the shape (N, 8, 8, 3), found (6, 8, 8)"),
        (content(train=(IMAGES[:, :4, :4], LABELS)), "train images: data.image_size is 8, found 4×4"),
        (content(train=(IMAGES[:, :, :4], LABELS)), "train images: data.image_size is 8, found 8×4"),
        (content(train=([IMAGES, IMAGES[:, :4]], LABELS)), "train images: expected an array, found list"),
        (content(train=(IMAGES, LABELS / 2)), "train labels: expected integers, found float64"),
        (content(train=(IMAGES, ["cat"] * 6)), "train labels: expected integers, found <U3"),
        (content(train=(IMAGES, LABELS > 0)), "train labels: expected integers, found bool"),
        (content(train=(IMAGES, LABELS[:5])), "train labels: expected one for each of 6 images, found the shape (5,)"),
        (content(val=(IMAGES, LABELS + 1)), "val labels: expected 0 to 1, found 2 at 1"),
        (content(val=(IMAGES, -LABELS)), "val labels: expected 0 to 1, found -1 at 1"),
        (content(train=(IMAGES[:0], LABELS[:0])), "train: expected images, found none"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, made: Any, said: str) -> None:
    name = callable_for(monkeypatch, made)
    assert refused(name, said).message.startswith(f"{name}: ")


def test_another_size_names_the_key_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"classes": ["a", "b"], "train": (np.zeros((2, 6, 6, 3), np.uint8), [0, 1])}
    assert refused(callable_for(monkeypatch, made), "found 6×6").hint == "data.image_size=6"


# --- a callable that cannot be had, or fails


def test_a_module_that_is_not_there_is_told_where_it_was_looked_for() -> None:
    assert str(Path.cwd()) in refused("nowhere_to_be_found:load", "there is no module nowhere_to_be_found").hint


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        (MODULE, "laod", "has no laod (did you mean 'load'?)"),
        (MODULE, "load.inner", "has no load.inner"),
        ("load = 3", "load", "expected something to call, found int"),
        ("import no_such_package", "load", "raised ModuleNotFoundError: No module named 'no_such_package'"),
        ("def load(:", "load", "raised SyntaxError: "),
        ("raise SystemExit(5)", "load", "raised SystemExit: 5"),
        ("def load(path): pass", "load", "cannot be called with root= and image_size=: "),
        ("def load(root, image_size, more): pass", "load", "cannot be called with root= and image_size=: "),
        ("def load(root, image_size): 1 / 0", "load", ":load raised ZeroDivisionError: division by zero"),
        ("def load(**_): raise ValueError", "load", ":load raised ValueError"),
        ("def load(**_): raise TypeError('a\\nb')", "load", ":load raised TypeError: a"),
        ("import sys\ndef load(**_): sys.exit('bye')", "load", ":load raised SystemExit: bye"),
        (
            "from okdc.errors import DataError\ndef load(**_): raise DataError('its own words')",
            "load",
            "its own words",
        ),
    ],
)
def test_what_fails_in_it_is_reported_in_its_words(text: str, target: str, said: str) -> None:
    refused(f"{module(text)}:{target}", said)


def test_a_callable_may_import_what_lies_beside_it_when_it_is_called() -> None:
    beside = module("SIZE = 8")
    name = module(MODULE.replace("    assert image", f"    from {beside} import SIZE\n    assert SIZE == image"))
    assert len(read_data(f"{name}:load", None, 8).train) == 40


def test_its_own_traceback_is_there_for_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    name = module("def load(**_):\n    return broken_here\n")
    answer = ask(capsys, "--debug", "distill", f"data.name={name}:load")
    assert answer.code == 2
    assert "return broken_here" in answer.err
    assert f"error[data]: {name}:load raised NameError: name 'broken_here' is not defined" in answer.err
