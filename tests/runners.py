"""What the tests of the bundle's clients share: where Node, its packages and Chromium are, images, bundles by hand."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import write_json
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from okdc.bundle.layout import MODELS
from okdc.recipe import catalog
from okdc.runs.files import read_json

EXPORT = catalog.folder("export")
LETTERS = "".join(chr(code) for code in (*range(1, 0xD800), *range(0xE000, 0x11000), 0x1F600))
PYTHON, NODE, WEB = EXPORT / "python" / "run.py", EXPORT / "node" / "run.mjs", EXPORT / "web"


def _lacks(package: str) -> bool:
    """Node's own rule: node_modules of the script's folder and of every folder above."""
    return not any((folder / "node_modules" / package).is_dir() for folder in NODE.parents)


def _chromium() -> str | None:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


CHROMIUM = _chromium()


def _without_node() -> str:
    if shutil.which("node") is None:
        return "node is not installed"
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return "" if re.match(r"v(2\d|[3-9]\d|\d{3})\.", said) else f"expected Node 20 or newer, found {said or 'none'}"


_no_node = _without_node()
_no_packages = "npm install onnxruntime-node sharp is missing above export/node"
needs_node = pytest.mark.skipif(bool(_no_node), reason=_no_node)
needs_packages = pytest.mark.skipif(
    bool(_no_node) or _lacks("onnxruntime-node") or _lacks("sharp"), reason=_no_node or _no_packages
)
needs_runtime = pytest.mark.skipif(_lacks("onnxruntime-web"), reason="npm install onnxruntime-web is missing")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def javascript(code: str, *words: str | Path) -> str:
    """Run a module's text in Node, with export/web as `web`; its stdout."""
    text = f"const web = {WEB.as_uri()!r} + '/';\n{code}"
    command = ["node", "--input-type=module", "-e", text, "--", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def zoo(folder: Path) -> list[Path]:
    """Images as people have them: sizes, modes, rotation, transparency, sixteen bits."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (21, 34, 4), dtype=np.uint8)
    deep = rng.integers(0, 2**16, (21, 34), dtype=np.uint16)
    colour = Image.fromarray(pixels[..., :3])
    made = {
        "wide.png": colour,
        "tall.png": colour.transpose(Image.Transpose.ROTATE_90),
        "grey.png": colour.convert("L"),
        "grey_alpha.png": Image.fromarray(pixels[..., :2], "LA"),
        "alpha.png": Image.fromarray(pixels),
        "palette.png": colour.convert("P"),
        "one_bit.png": colour.convert("1"),
        "sixteen.png": Image.fromarray(deep),
        "exact.png": colour.resize((8, 8)),
        "tiny.png": colour.resize((3, 5)),
    }
    for name, image in made.items():
        image.save(folder / name)
    colour.convert("P").save(folder / "clear.png", transparency=0)
    colour.convert("L").save(folder / "clear_grey.png", transparency=int(pixels[0, 0, 0]))
    colour.save(folder / "clear_colour.png", transparency=tuple(map(int, pixels[0, 0, :3])))
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        colour.save(folder / f"turned_{tag}.png", exif=exif)
    smooth = colour.resize((5, 4)).resize((97, 61), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth.save(folder / "turned.jpg", exif=turned)
    smooth.save(folder / "smooth.jpg", quality=90)
    smooth.convert("L").save(folder / "grey.jpg")
    smooth.convert("CMYK").save(folder / "cmyk.jpg")
    smooth.save(folder / "smooth.webp", quality=90)
    smooth.save(folder / "lossless.webp", lossless=True)
    return sorted(folder.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Bundles by hand


def put(bundle: Path, keys: tuple[str, ...] = (), value: Any = None, **facts: Any) -> None:
    """Write one nested value, or whole keys, into a bundle's manifest."""
    path = bundle / "manifest.json"
    manifest = read_json(path) | facts
    inner = manifest
    for key in keys[:-1]:
        inner = inner[key]
    if keys:
        inner[keys[-1]] = value
    write_json(path, manifest)


def add_model(bundle: Path, precision: str, weights: Any = None) -> None:
    """A small model of its own answers (the mean colour times a matrix), as a bundle has it: named, hashed, with cases.

    `weights` is the 3×classes matrix, as an initializer or as the node that makes it, named "w".
    """
    labels, side = (read_json(bundle / "manifest.json")[key] for key in ("labels", "input"))
    if weights is None:
        matrix = np.random.default_rng(9).normal(0, 3e-2, (3, len(labels))).astype(np.float32)
        weights = numpy_helper.from_array(matrix, "w")
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    inputs = [numpy_helper.from_array(np.array([1, 2]), "axes")]
    if isinstance(weights, TensorProto):
        inputs.append(weights)
    else:
        nodes.insert(0, weights)
    shape = ["N", side["height"], side["width"], 3]
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(labels)])
            for name in ("logits", "probabilities")
        ],
        inputs,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    name = MODELS[precision]
    (bundle / name).write_bytes(model.SerializeToString())
    put(bundle, ("models", precision), {"file": name, "top1_pct": 10.0})
    expected = read_json(bundle / "sample" / "expected.json")
    if isinstance(weights, TensorProto) and weights.data_location != TensorProto.EXTERNAL:
        means = [np.asarray(Image.open(bundle / "sample" / case["image"])).mean((0, 1)) for case in expected["cases"]]
        logits = np.stack(means) @ numpy_helper.to_array(weights).astype(np.float64)
        expected["models"][precision] = {"tolerance": 1e-4, "logits": logits.tolist()}
        write_json(bundle / "sample" / "expected.json", expected)
    for file in (name, "sample/expected.json"):
        content = (bundle / file).read_bytes()
        put(bundle, ("files", file), {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)})


def external(location: str, *, constant: bool = False) -> Any:
    """Weights for `add_model` that lie in another file, as an initializer or as a node."""
    weights = numpy_helper.from_array(np.zeros((3, 10), np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "120")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    return helper.make_node("Constant", [], ["w"], value=weights) if constant else weights


def not_a_number(bundle: Path) -> None:
    """A float32 model whose every answer is none."""
    values = numpy_helper.from_array(np.full((3, 10), np.nan, np.float32))
    add_model(bundle, "float32", weights=helper.make_node("Constant", [], ["w"], value=values))


def nobody_reads(*command: str | Path, **environment: str) -> tuple[int, str]:
    """Run a client whose reader has gone, as `head` goes; exit code and standard error.

    PYTHONUNBUFFERED is only set where `environment` does: a process with it notices earlier than a user's.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | environment
    words = list(map(str, command))
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=env)
    finally:
        os.close(write)
    return done.returncode, done.stderr


def expect(bundle: Path, **facts: Any) -> None:
    """Write whole keys of what a bundle's own cases expect of the float32 model."""
    path = bundle / "sample" / "expected.json"
    expected = read_json(path)
    expected["models"]["float32"] |= facts
    write_json(path, expected)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


_LINKED = ("manifest.json", "model.onnx", "sample/expected.json", "sample/0.png")


def _link_out(bundle: Path, name: str) -> None:
    """The very file, but it lies elsewhere."""
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)


def _pipe(bundle: Path, name: str) -> None:
    """A client that opened it would wait for ever."""
    (bundle / name).unlink()
    os.mkfifo(bundle / name)


# What a client has to refuse, in one line with these words in it: (what is done to the bundle, the words).
SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda b: (b / "model.onnx").write_bytes(b"something else"), "is not the file of the manifest"),
    (lambda b: (b / "model.onnx").unlink(), "model.onnx"),
    (lambda b: (b / "manifest.json").unlink(), "is no bundle"),
    (lambda b: put(b, schema=2), "schema 2"),
    (lambda b: (b / "manifest.json").write_bytes(b""), "is not JSON"),
    (lambda b: (b / "manifest.json").write_bytes(b"PK\x03\x04\xff\xfe"), "is not JSON"),
    (lambda b: (b / "manifest.json").write_text("[" * 100_000), "manifest.json"),
    (lambda b: (b / "manifest.json").write_text("[1]"), "expected a JSON object"),
    (lambda b: put(b, input=None), "manifest.json is damaged"),
    (lambda b: put(b, models=["model.onnx"]), "manifest.json"),
    (lambda b: put(b, files={}), "manifest"),
    (lambda b: put(b, labels=7), "manifest.json is damaged"),
    (lambda b: put(b, labels=[]), "manifest.json is damaged"),
    (lambda b: put(b, labels=[None] * 10), "manifest.json is damaged"),
    (lambda b: put(b, ("normalisation", "in_graph"), False), "models that normalise inside"),
    (lambda b: put(b, normalisation={}), "in_graph"),
    (lambda b: put(b, ("input", "name"), "pixels"), "does not know the input"),
    (lambda b: put(b, ("input", "resize"), "squeezed"), "does not know the input"),
    (lambda b: put(b, ("input", "colour"), "BGR"), "does not know the input"),
    (lambda b: put(b, ("input", "height"), 10**9), "expected a square input"),
    (lambda b: put(b, ("input", "height"), "8"), "expected a square input"),
    (lambda b: put(b, ("models", "float32", "file"), 7), "error: "),
    (lambda b: (b / "sample" / "expected.json").write_text("{}"), "expected.json is damaged"),
    (lambda b: expect(b, tolerance="1"), "expected.json is damaged"),
    (lambda b: expect(b, tolerance=True), "expected.json is damaged"),
    (lambda b: _replace(b / "sample" / "expected.json", '"tolerance": ', '"tolerance": 1e999, "": '), "is damaged"),
    (lambda b: _replace(b / "sample" / "expected.json", '"tolerance": ', '"tolerance": Infinity, "": '), "is not JSON"),
    (lambda b: expect(b, logits=[[None] * 10] * 5), "expected.json is damaged"),
    (lambda b: expect(b, logits=[0.0] * 50), "expected.json is damaged"),
    (lambda b: (b / "sample" / "0.png").write_bytes(b"no image"), "0.png: not a"),
    *((partial(_link_out, name=name), "names a file outside itself") for name in _LINKED),
    *((partial(_pipe, name=name), f"{name}: not a file") for name in _LINKED[1:]),
]
