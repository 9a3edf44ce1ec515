"""Bundles for tests to spoil: one is exported, the others are copies of it, changed and sealed again."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from making import write_json
from PIL import Image
from reading import read_data

from okdc.__main__ import main
from okdc.bundle import layout
from okdc.bundle.answers import Outcomes, describe
from okdc.bundle.session import Images, Session
from okdc.bundle.test_images import Digest
from okdc.data import digits
from okdc.data.source import Labels
from okdc.deploy import onnx as exporter
from okdc.runs import artefacts
from okdc.runs.files import read_json
from okdc.runs.predictions import by_class
from okdc.runs.run import RunDir


def of_digits(finished: RunDir, blob: bytes, folder: Path) -> Path:
    """A copy, at `folder`, of the finished run's bundle, which the first test that asks for it exports."""
    once = finished.path.parent / "once"
    if not once.is_dir():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "to_onnx", lambda *_: blob)
            assert main(["export", str(finished.path), "--onnx", "-o", str(once)]) == 0
    return Path(shutil.copytree(once, folder))


def digest(images: Images, labels: Labels) -> str:
    """What `judged_on` of a bundle says of its images."""
    found = Digest()
    found.add(images[:])
    return found.of(labels)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file; a bundle's hashes stay as they are."""
    facts = read_json(path)
    change(facts)
    write_json(path, facts)


def seal(bundle: Path) -> Path:
    """The manifest's hashes made to fit what lies there."""

    def facts(path: Path) -> dict[str, object]:
        content = path.read_bytes()
        return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    def files(manifest: dict[str, Any]) -> None:
        there = [path for path in sorted(bundle.rglob("*")) if path.is_file() and path.name != layout.MANIFEST]
        manifest["files"] = {path.relative_to(bundle).as_posix(): facts(path) for path in there}

    edit(bundle / layout.MANIFEST, files)
    return bundle


def put_model(bundle: Path, blob: bytes, precision: str = layout.FLOAT32) -> Path:
    """Another file for one precision, with the hash that it has; nothing else is made to fit."""
    (bundle / layout.MODELS[precision]).write_bytes(blob)
    return seal(bundle)


def edit_model(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load_model_from_string((bundle / "model.onnx").read_bytes())
    change(model)
    return put_model(bundle, model.SerializeToString())


def add_model(bundle: Path, precision: str, blob: bytes, tolerance: float) -> Path:
    """A second model as an export writes it: its own accuracy on the digits, its own answers to the cases."""
    dataset = read_data("digits")
    session = Session(blob)
    logits, _ = session(dataset.images[dataset.test].numpy(), 64)
    right = logits.argmax(1) == dataset.labels[dataset.test].numpy()
    counts = by_class(dataset.labels[dataset.test].numpy(), right, 10)
    accuracies = {"top1_pct": counts.top1_pct, "balanced_accuracy_pct": counts.balanced_pct}
    facts = {"file": layout.MODELS[precision]} | accuracies
    edit(bundle / layout.MANIFEST, lambda manifest: manifest["models"].update({precision: facts}))

    def answers(expected: dict[str, Any]) -> None:
        rows = []
        for case in expected["cases"]:
            with Image.open(bundle / "sample" / case["image"]) as image:
                pixels = np.asarray(image.convert("RGB"))[None]
            rows.append(session(pixels)[0][0].tolist())
        expected["models"][precision] = {"tolerance": tolerance, "logits": rows}

    edit(bundle / layout.EXPECTED, answers)
    return put_model(bundle, blob, precision)


def of_folder(bundle: Path, root: Path, each: int = 6, split: str = "test") -> Path:
    """The bundle as if image files had judged it: some of the digits, below `root`/`split`/`digit`."""
    pixels, labels = digits.arrays()
    chosen = [row for digit in range(10) for row in (labels == digit).nonzero()[0][:each]]
    for name in dict.fromkeys(("train", split)):
        for digit in range(10):
            (root / name / str(digit)).mkdir(parents=True)
    for place, row in enumerate(chosen):
        Image.fromarray(pixels[row]).save(root / split / str(labels[row]) / f"{place:03}.png")
        if split != "train":
            Image.fromarray(pixels[row]).save(root / "train" / str(labels[row]) / f"{place:03}.png")
    logits, _ = Session(bundle / "model.onnx")(pixels[chosen])
    counts = by_class(labels[chosen], logits.argmax(1) == labels[chosen], 10)

    def move(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["data"]["name"] = "folder"
        sha256 = digest(pixels[chosen], labels[chosen])
        manifest["judged_on"] = {"sha256": sha256, "part": split, "rows": None}
        classes = {"largest_class_pct": counts.largest_pct, "smallest_class_pct": counts.smallest_pct}
        manifest["accuracy"] |= {"images": len(chosen)} | classes
        accuracies = {"top1_pct": counts.top1_pct, "balanced_accuracy_pct": counts.balanced_pct}
        manifest["models"]["float32"] |= accuracies

    edit(bundle / layout.MANIFEST, move)
    answered = Outcomes.of(labels[chosen], logits)
    artefacts.write(bundle / layout.ANSWERS, describe("test", answered, Outcomes.of(labels[:0], logits[:0])))
    return seal(bundle)


def bomb() -> bytes:
    """A PNG that says it is 100,000×100,000: a few bytes that ask for thirty gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
