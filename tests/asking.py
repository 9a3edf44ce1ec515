"""What several tests share: okdc asked as a user asks it, folders of small pictures, and how properties are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from PIL import Image

from okdc.__main__ import main

# The same examples in every run, nothing kept on disk, and no verdict on time.
tried = settings(deadline=None, derandomize=True, max_examples=60)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Answer:
    """What one command left behind."""

    code: int
    out: str
    err: str


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Answer:
    """Run one command in this process, where torch is imported already."""
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    return Answer(code, out, err)


def case(*values: object, long: bool, id: str | None = None) -> Any:
    """A case of a parametrised test; a long one is left to `pytest -m long`."""
    return pytest.param(*values, marks=[pytest.mark.long] if long else [], id=id)


def picture(seed: int, height: int = 8, width: int | None = None) -> Pixels:
    """Random pixels: H×W×3, uint8."""
    shape = (height, width or height, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_tree(root: Path, tree: Mapping[str, Mapping[str, int] | int], size: int = 8) -> Path:
    """PNG files below `root`: {split: {class: how many}}, or {class: how many} for one folder of classes."""
    seed = 0
    for name, inside in tree.items():
        folders = {root / name: inside} if isinstance(inside, int) else {root / name / c: n for c, n in inside.items()}
        for folder, count in folders.items():
            folder.mkdir(parents=True)
            for i in range(count):
                seed += 1
                Image.fromarray(picture(seed, size)).save(folder / f"{i:03}.png")
    return root
