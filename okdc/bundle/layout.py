"""The bundle on disk: its files, which come into place whole or not at all. No torch.

    bundle/  model.onnx  [model.int8.onnx]  [model.fp16.onnx]  manifest.json  answers.json  parity.json  profile.json
             README.md  infer.py  sample/

export/README.md is the contract between these files and their readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from okdc.bundle.artefacts import REDUCED, Content, Manifest, Parity
from okdc.errors import CheckFailed
from okdc.runs import artefacts, folders
from okdc.runs.artefacts import Preprocessing
from okdc.runs.files import write, write_json, writing

MANIFEST, ANSWERS, PARITY, PROFILE = "manifest.json", "answers.json", "parity.json", "profile.json"
CARD, CLIENT = "README.md", "infer.py"
SAMPLE, EXPECTED = "sample", "sample/expected.json"

FLOAT32, INT8 = "float32", "int8"
MODELS = {FLOAT32: "model.onnx"} | {name: precision.file for name, precision in REDUCED.items()}  # by precision
SCHEMA = 1  # of every JSON file in a bundle
MOST_BYTES = 2**25  # of each: a million places of images, or five cases of 50,000 classes for three models


def rejected(out: Path) -> Path:
    return out.with_name(f"{out.name}.rejected")


@contextmanager
def alone(out: Path, tell: folders.Tell | None = None) -> Iterator[None]:
    """No other process writes the bundle `out`, or `out`.rejected, while the block runs. Raises as `folders.alone`."""
    with folders.alone(out, is_bundle, "bundle", tell):
        yield


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder to build a bundle in, moved to `out` at the end; after a failed check, to `out`.rejected.

    The caller is `alone`. Raises DiskError where nothing can be written.
    """
    with folders.built(out) as aside:
        try:
            yield aside
        except CheckFailed:
            folders.put(aside, rejected(out))
            raise
    folders.remove(rejected(out))


def set_aside(out: Path, models: Mapping[str, bytes], parity: Parity) -> Path:
    """Models, by precision, that failed their gate while the float32 bundle stands: kept beside it, named so."""
    with folders.built(rejected(out)) as folder:
        for precision, blob in models.items():
            write_model(folder, precision, blob)
        artefacts.write(folder / PARITY, parity)
    return rejected(out)


def is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def write_model(folder: Path, precision: str, blob: bytes) -> Path:
    path = folder / MODELS[precision]
    write(path, blob)
    return path


def write_samples(
    folder: Path,
    images: npt.NDArray[np.uint8],
    labels: Sequence[int],
    expected: Mapping[str, tuple[npt.NDArray[np.float32], float]],
) -> None:
    """sample/: images as PNG and, for each model, the logits that it has to give within a tolerance.

    `expected` is (N×K logits, tolerance) by precision; those of float32 are the PyTorch student's own.
    """
    with writing(folder / SAMPLE):
        (folder / SAMPLE).mkdir()
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / SAMPLE / f"{i}.png")
    cases = [{"image": f"{i}.png", "label": int(label)} for i, label in enumerate(labels)]
    models = {
        precision: {"tolerance": tolerance, "logits": [[float(z) for z in row] for row in logits]}
        for precision, (logits, tolerance) in expected.items()
    }
    write_json(folder / EXPECTED, {"schema": SCHEMA, "cases": cases, "models": models})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """manifest.json, the last file of a bundle, with the hashes of all others."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): _content(path) for path in paths}
    artefacts.write(folder / MANIFEST, manifest.model_copy(update={"files": files}))


def input_of(rule: Preprocessing) -> dict[str, Any]:
    """The model's input: the same words in the manifest and in the model's own metadata."""
    shorter = {} if rule.shorter_side is None else {"shorter_side": rule.shorter_side}
    size = {"height": rule.size, "width": rule.size}
    return {"layout": "NHWC", "dtype": "uint8", "colour": "RGB", **size, **shorter, "resize": rule.resize}


def _content(path: Path) -> Content:
    content = path.read_bytes()
    return Content(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
