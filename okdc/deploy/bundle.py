"""The bundle on disk: what is in it, and how it comes into place whole or not at all. No torch.

bundle/  model.onnx  manifest.json  parity.json  sample/
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from okdc import __version__
from okdc.errors import CheckFailed, RunError
from okdc.files import write, write_json, writing

MODEL, MANIFEST, PARITY, SAMPLE = "model.onnx", "manifest.json", "parity.json", "sample"


def rejected(out: Path) -> Path:
    return out.with_name(f"{out.name}.rejected")


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder to build in, moved to `out` at the end; after a failed check, to `out`.rejected.

    Raises RunError where `out` holds something that is no bundle, DiskError where nothing can be written.
    """
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise RunError(f"{out} is there and is no bundle", hint="choose another -o")
    aside = out.with_name(f".{out.name}.new")
    with writing(out):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    try:
        yield aside
        _move(aside, out)
        shutil.rmtree(rejected(out), ignore_errors=True)
    except CheckFailed:
        _move(aside, rejected(out))
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move(aside: Path, out: Path) -> None:
    """Replace a folder by another: the old one steps aside first, so that one of the two is always whole."""
    old = out.with_name(f".{out.name}.old")
    with writing(out):
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def write_model(folder: Path, blob: bytes) -> Path:
    write(folder / MODEL, blob)
    return folder / MODEL


def write_samples(
    folder: Path,
    images: npt.NDArray[np.uint8],
    labels: Sequence[int],
    logits: npt.NDArray[np.float32],
    tolerance: float,
) -> None:
    """sample/: images as PNG and the student's own logits for them, so that any client can test itself."""
    with writing(folder / SAMPLE):
        (folder / SAMPLE).mkdir()
        cases = []
        for i, (pixels, label, row) in enumerate(zip(images, labels, logits, strict=True)):
            Image.fromarray(pixels).save(folder / SAMPLE / f"{i}.png")
            cases.append({"image": f"{i}.png", "label": int(label), "logits": [float(z) for z in row]})
    write_json(folder / SAMPLE / "expected.json", {"schema": 1, "tolerance": tolerance, "cases": cases})


def write_manifest(
    folder: Path, student: dict[str, Any], recipe: dict[str, Any], parity: dict[str, Any], opset: int, data_sha256: str
) -> None:
    """manifest.json: the contract of the bundle. `recipe` has no local path in it, `data_sha256` names its images."""
    rule = student["preprocessing"]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    facts = {
        "schema": 1,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "okdc": __version__,
        "model": MODEL,
        "opset": opset,
        "architecture": student["architecture"],
        "labels": student["classes"],
        "input": {"name": "image", **input_facts(rule)},
        "normalisation": {"in_graph": True, "mean": rule["mean"], "std": rule["std"]},
        "outputs": {"logits": "float32 NK", "probabilities": "float32 NK, softmax of the logits"},
        "accuracy": {
            "split": parity["split"],
            "images": parity["images"],
            "top1_pct": parity["top1_pct"]["onnx"],
            "seed": recipe["seed"],
            "runs": 1,
        },
        "method": student["method"],
        "dataset": student["dataset"],
        "data_sha256": data_sha256,
        "weights_sha256": student["weights_sha256"],
        "recipe_sha256": student["recipe_sha256"],
        "recipe": recipe,
        "files": {path.relative_to(folder).as_posix(): _facts(path) for path in files},
    }
    write_json(folder / MANIFEST, facts)


def input_facts(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What an image has to become: the same words in the manifest and in the model's own metadata."""
    size = preprocessing["size"]
    facts = {"layout": "NHWC", "dtype": "uint8", "colour": "RGB", "height": size, "width": size}
    return facts | {key: preprocessing[key] for key in ("shorter_side", "resize") if key in preprocessing}


def _facts(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
