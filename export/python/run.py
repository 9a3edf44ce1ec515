#!/usr/bin/env python3
"""Classify images with an okdc bundle: numpy, onnxruntime and Pillow, nothing else.

    python run.py BUNDLE IMAGE [IMAGE ...]      the five likeliest classes of each image
    python run.py BUNDLE IMAGE --json           one JSON line an image
    python run.py BUNDLE --selftest             classify the bundle's samples and compare the logits
    python run.py BUNDLE IMAGE --model int8     another of the bundle's models

manifest.json describes the model's input; the model normalises inside. Exit code 0: done; 1: the self-test failed;
2: a file could not be read, or an option is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import re
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

RULE = "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop"
LARGER = "exif-upright, rgb, shorter side to shorter_side (pillow bilinear, antialiased), centre crop"
# Pillow has more formats, but for PostScript it starts Ghostscript, and a stranger's image must not start a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "QOI")
MODELS = ("float32", "int8", "float16")
BATCH = 64
PIXELS = 2**30 // 12  # more pixels in one image are an attack or a mistake (Pillow's own limit)
LARGEST = 4096  # pixels of a side of a model's input
# The key "location" as protobuf writes it: such a model has weights in other files, which it names.
EXTERNAL = re.compile(rb"(\x0a|\x8a[\x80-\xff]{0,8}[\x00-\x7f])(\x08|\x88[\x80-\xff]{0,8}[\x00-\x7f])location")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Bundle:
    """A bundle's model, its labels and its input."""

    def __init__(self, folder: Path, model: str = "float32") -> None:
        """Raises ValueError if the manifest is unknown to this script, or the model's hash is not the manifest's."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"{folder} is no bundle: expected manifest.json in it")
        manifest = read_object(inside(folder, "manifest.json"))
        schema = manifest.get("schema")
        if schema != 1 or schema is True:
            raise ValueError(f"{path}: schema {schema!r}, this script reads schema 1")
        try:
            spec, models, files = manifest["input"], manifest["models"], manifest["files"]
            if model not in models:
                raise ValueError(f"{path}: no {model} model, there is {', '.join(models)}")
            rule = [spec[key] for key in ("name", "layout", "dtype", "colour", "resize")]
            side, shorter = spec["height"], spec.get("shorter_side", spec["height"])
            name, expected = models[model]["file"], files[models[model]["file"]]["sha256"]
            in_graph, self.labels = manifest["normalisation"]["in_graph"], manifest["labels"]
            if not (type(self.labels) is list and self.labels and all(type(label) is str for label in self.labels)):
                raise TypeError("labels: expected a list of words")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
        if rule != ["image", "NHWC", "uint8", "RGB", LARGER if "shorter_side" in spec else RULE]:
            raise ValueError(f"{path}: this script does not know the input {spec}")
        if in_graph is not True:
            raise ValueError(f"{path}: this script knows models that normalise inside (normalisation.in_graph true)")
        if not (type(side) is type(shorter) is int and 1 <= side <= shorter <= LARGEST and spec.get("width") == side):
            raise ValueError(f"{path}: expected a square input of 1 to {LARGEST} pixels, found {spec}")
        content = read_file(inside(folder, name))
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"{folder / name} is not the file of the manifest (sha256 {str(expected)[:12]})")
        if EXTERNAL.search(content):
            raise ValueError(f"{folder / name} has weights in other files (external data), which no bundle has")
        onnxruntime.set_default_logger_severity(4)  # it would print each error that it raises
        self.folder, self.model = folder, model
        self.side, self.shorter_side = side, shorter  # pixels: of the input; of the resized image before the crop
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def read(self, path: str | Path) -> Pixels:
        """An image file of any size and mode -> HWC uint8 by the manifest's rule. Raises ValueError naming the file."""
        content = read_file(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                Image.init()
                known = [name for name in FORMATS if name in Image.OPEN]  # by this Pillow
                with Image.open(io.BytesIO(content), formats=known) as image:
                    return fit(to_rgb(image), self.side, self.shorter_side)
        except UnidentifiedImageError:
            raise ValueError(f"{path}: not an image of a known format") from None
        except Exception as error:  # Pillow raises a dozen kinds, down to SyntaxError and struct.error
            raise ValueError(f"{path}: {str(error) or type(error).__name__}") from error

    def __call__(self, images: Pixels) -> tuple[Any, Any]:
        """NHWC uint8 -> (logits, probabilities), each float32 N×classes."""
        logits, probabilities = self.session.run(["logits", "probabilities"], {"image": images})
        if probabilities.shape != (len(images), len(self.labels)):
            raise ValueError(f"the model gives {probabilities.shape}, the manifest has {len(self.labels)} labels")
        return logits, probabilities


def read_file(path: str | Path) -> bytes:
    """A regular file: reading a pipe would block, a device has no end. Raises ValueError naming the file."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError(f"{path}: not a file")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises ValueError naming the file."""

    def refuse(constant: str) -> None:  # Python's json would read NaN and Infinity
        raise ValueError(f"{constant} is no number")

    content = read_file(path)
    try:
        value = json.loads(content.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


def inside(folder: Path, name: str) -> Path:
    """The path of a file that the bundle names. Raises ValueError if it leads out of the folder, links followed."""
    leads_out = re.search(r"^$|^/|//|[\\:\0-\x1f]|(^|/)\.\.(/|$)", name)
    if leads_out or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} names a file outside itself: {name!r}")
    return folder / name


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow opens -> upright 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey
        grey = np.rint(np.asarray(image, dtype=np.float64) / 257)
        image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:  # over black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")


def fit(image: Image.Image, side: int, shorter: int) -> Pixels:
    """RGB -> HWC uint8: the shorter side resized to `shorter` pixels, the centre square of `side` pixels cut out."""
    if image.size != (side, side):
        scale = shorter / min(image.size)
        width, height = max(shorter, round(image.width * scale)), max(shorter, round(image.height * scale))
        if width * height > PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels would become {width}×{height}")
        # One call resizes rows and columns in an order, and so with a rounding, that depends on Pillow's version (13
        # changed it for tall images, pull request 9549). Two calls fix the order: rows before columns.
        image = image.resize((width, image.height), Image.Resampling.BILINEAR)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image, dtype=np.uint8)


def classify(bundle: Bundle, paths: list[str], top: int, as_json: bool) -> None:
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        _, probabilities = bundle(np.stack([bundle.read(path) for path in batch]))
        for path, row in zip(batch, probabilities, strict=True):
            if not np.isfinite(row).all():
                raise ValueError("the model gives probabilities that are not finite")
            best = [(bundle.labels[c], float(row[c])) for c in np.argsort(-row, kind="stable")[:top]]
            if as_json:
                print(json.dumps({"image": path, "top": [{"label": n, "probability": p} for n, p in best]}))
            else:
                print(shown(f"{path}: " + "  ".join(f"{name} {100 * p:.1f}%" for name, p in best)))


def shown(text: str) -> str:
    """One line that no terminal obeys: a class or a file may be called anything."""
    unsafe = "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]"

    def escaped(match: re.Match[str]) -> str:
        return f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else f"\\u{ord(match[0]):04x}"

    return re.sub(unsafe, escaped, text)


def selftest(bundle: Bundle, as_json: bool) -> bool:
    """Classify the bundle's samples; True if every logit is within the model's tolerance of sample/expected.json."""
    path = inside(bundle.folder, "sample/expected.json")
    expected = read_object(path)
    try:
        names, model = [str(case["image"]) for case in expected["cases"]], expected["models"][bundle.model]
        tolerance, rows = model["tolerance"], model["logits"]
        if [len(row) for row in rows] != [len(bundle.labels)] * len(names):
            raise ValueError("another number of logits than cases and labels")
        if not all(type(z) in (int, float) and math.isfinite(z) for row in ([tolerance], *rows) for z in row):
            raise ValueError("a tolerance or logit that is no number")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
    worst = 0.0
    for name, row in zip(names, rows, strict=True):
        logits, probabilities = bundle(bundle.read(inside(bundle.folder, f"sample/{name}"))[None])
        differences = np.abs([*(logits[0] - row), probabilities.sum() - 1])
        worst = max(worst, float(np.nan_to_num(differences, nan=np.inf).max()))
    passed = worst <= tolerance and len(names) > 0
    verdict = f"{len(names)} images, max |d| {worst:.1e} (allowed {tolerance:.1e})"
    print(f"self-test {'passed' if passed else 'FAILED'}: {verdict}", file=sys.stderr if as_json else sys.stdout)
    return passed


def positive(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {word!r}")
    return int(word)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Classify images with an okdc bundle.", allow_abbrev=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("--top", type=positive, default=5, help="classes to name (5)")
    parser.add_argument("--json", action="store_true", help="one JSON line an image")
    parser.add_argument("--selftest", action="store_true", help="classify the bundle's samples and compare the logits")
    parser.add_argument("--model", choices=MODELS, default="float32", help="which of the bundle's models (float32)")
    options = parser.parse_intermixed_args(words)
    if not options.images and not options.selftest:
        parser.error("expected an image, or --selftest")
    try:
        bundle = Bundle(options.bundle, options.model)
        if options.selftest and not selftest(bundle, options.json):
            return 1
        classify(bundle, options.images, options.top, options.json)
    except Exception as error:  # any library's error becomes one line
        print(shown(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}"), file=sys.stderr)
        return 2
    return 0


def program() -> int:
    """`main`, and what it printed is written before its exit code is known: a reader may have gone, a disk be full."""
    code = main()
    try:
        print(end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again when it ends
        if code == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(program())
