#!/usr/bin/env python3
"""Classify images with an okdc bundle: numpy, onnxruntime and Pillow, nothing else.

    python run.py BUNDLE IMAGE [IMAGE ...]      the five likeliest classes of each image
    python run.py BUNDLE IMAGE --json           one JSON line an image
    python run.py BUNDLE --selftest             replay the bundle's own cases

The bundle's manifest.json says what an image has to become; the normalisation is inside model.onnx. Exit code 0: done;
1: the self-test failed; 2: something could not be read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

RULE = "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop"
LARGER = "exif-upright, rgb, shorter side to shorter_side (pillow bilinear, antialiased), centre crop"
BATCH = 64


class Bundle:
    """A bundle's model and what its manifest says about it."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where the folder is not a bundle this script understands, or its model is another file."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"{folder} is no bundle: expected manifest.json in it")
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if self.manifest.get("schema") != 1:
            raise ValueError(f"{path}: schema {self.manifest.get('schema')!r}, this script reads schema 1")
        spec = self.manifest["input"]
        if (spec["layout"], spec["dtype"], spec["colour"]) != ("NHWC", "uint8", "RGB") or (
            spec["resize"] != (LARGER if "shorter_side" in spec else RULE)
        ):
            raise ValueError(f"{path}: this script does not know the input {spec}")
        model = (folder / "model.onnx").read_bytes()
        expected = self.manifest["files"]["model.onnx"]["sha256"]
        if hashlib.sha256(model).hexdigest() != expected:
            raise ValueError(f"{folder / 'model.onnx'} is not the file of the manifest (sha256 {expected[:12]})")
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.size = (int(spec["height"]), int(spec["width"]))
        self.shorter_side = int(spec.get("shorter_side", spec["height"]))  # before the centre is cut out
        self.labels: list[str] = self.manifest["labels"]

    def read(self, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One file of any size and mode -> HWC uint8, by the manifest's rule."""
        with Image.open(path) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey
                grey = np.rint(np.asarray(image, dtype=np.float64) / 257)
                image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:  # over black
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
            image = image.convert("RGB")
        height, width = self.size
        if image.size != (width, height):
            shorter = self.shorter_side
            scale = shorter / min(image.size)
            resized = (max(shorter, round(image.width * scale)), max(shorter, round(image.height * scale)))
            image = image.resize(resized, Image.Resampling.BILINEAR)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image, dtype=np.uint8)

    def __call__(self, images: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[Any, Any]:
        """NHWC uint8 -> (logits, probabilities), each N×classes."""
        logits, probabilities = self.session.run(["logits", "probabilities"], {"image": images})
        return logits, probabilities


def classify(bundle: Bundle, paths: list[Path], top: int, as_json: bool) -> None:
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        _, probabilities = bundle(np.stack([bundle.read(path) for path in some]))
        for path, row in zip(some, probabilities, strict=True):
            best = [(bundle.labels[c], float(row[c])) for c in np.argsort(-row, kind="stable")[:top]]
            if as_json:
                print(json.dumps({"image": str(path), "top": [{"label": n, "probability": p} for n, p in best]}))
            else:
                print(f"{path}: " + "  ".join(f"{name} {100 * p:.1f}%" for name, p in best))


def selftest(bundle: Bundle, as_json: bool) -> bool:
    """The bundle's cases again, from the files to the logits."""
    expected = json.loads((bundle.folder / "sample" / "expected.json").read_text(encoding="utf-8"))
    tolerance, worst = float(expected["tolerance"]), 0.0
    for case in expected["cases"]:
        logits, probabilities = bundle(bundle.read(bundle.folder / "sample" / case["image"])[None])
        difference = np.abs(logits[0] - np.asarray(case["logits"]))
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max()), abs(float(probabilities.sum()) - 1))
    good = worst <= tolerance and len(expected["cases"]) > 0
    count = len(expected["cases"])
    said = f"self-test {'passed' if good else 'FAILED'}: {count} images, max |d| {worst:.1e} (allowed {tolerance:.1e})"
    print(said, file=sys.stderr if as_json else sys.stdout)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify images with an okdc bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=5, help="classes to name (5)")
    parser.add_argument("--json", action="store_true", help="one JSON line an image")
    parser.add_argument("--selftest", action="store_true", help="replay the bundle's own cases")
    options = parser.parse_intermixed_args()
    if not options.images and not options.selftest:
        parser.error("expected an image, or --selftest")
    try:
        bundle = Bundle(options.bundle)
        if options.selftest and not selftest(bundle, options.json):
            return 1
        classify(bundle, options.images, options.top, options.json)
    except Exception as error:  # a client of the bundle wants one line: what was wrong with which file
        print(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
