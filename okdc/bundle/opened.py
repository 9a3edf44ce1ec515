"""A bundle that somebody handed over: nothing in it is believed before it was looked at. No torch.

The manifest is read first and says what the other files are; a file is read once, and what is used is what was hashed.
Names that lead out of the folder, models that ask for further files and words that this version does not know are
refused, whatever their hashes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from okdc.bundle.layout import FLOAT32, MANIFEST, MODELS, SCHEMA
from okdc.data.images import RESIZE, RESIZE_LARGER
from okdc.errors import CheckFailed, RunError, UsageError, nearest
from okdc.files import read_json

KEYS = ("schema", "models", "labels", "input", "accuracy", "judged_on", "architecture", "recipe", "files")


@dataclass(frozen=True)
class Bundle:
    """One bundle's folder and its manifest, which this version understands."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Raises RunError for what is no bundle, or one of another version or with a damaged manifest."""
        path = folder / MANIFEST
        if not path.is_file():
            there = "a file" if folder.is_file() else "a folder without it" if folder.is_dir() else "nothing"
            raise RunError(f"{folder} is no bundle: expected {MANIFEST} in it, found {there}", hint=_beside(folder))
        facts = read_json(path)
        schema = facts.get("schema")
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            hint = "a newer okdc made it: upgrade this one" if newer else "it is another tool's file, or damaged"
            raise RunError(f"{path}: schema {schema!r}, this okdc reads schema {SCHEMA}", hint=hint)
        facts = read_json(path, *KEYS)
        bundle = cls(folder, facts)
        bundle._check_words(path)
        bundle._check_names(path)
        return bundle

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return list(self.manifest["labels"])

    @property
    def size(self) -> int:
        """Height and width of the model's input, in pixels."""
        return int(self.manifest["input"]["height"])

    @property
    def shorter_side(self) -> int | None:
        """To what an image's shorter side is resized before the centre is cut out; None: to `size`."""
        found = self.manifest["input"].get("shorter_side")
        return None if found is None else int(found)

    @cached_property
    def precisions(self) -> list[str]:
        """Which models are in it, float32 first."""
        return [name for name in MODELS if name in self.manifest["models"]]

    def content(self, name: str) -> bytes:
        """A file of the bundle. Raises CheckFailed ("files") where it is not the one that the manifest names."""
        path, expected = self.folder / name, self.manifest["files"].get(name, {}).get("sha256", "none")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckFailed(
                "files", f"{path}: cannot be read: {error.strerror}", hint="the bundle is not whole: copy it again"
            ) from None
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise CheckFailed(
                "files",
                f"{path} is not the file of the manifest: sha256 {found[:12]}, expected {expected[:12]}",
                hint="it was changed or cut short after the export: copy the bundle again, or export it again",
            )
        return content

    def model(self, precision: str = FLOAT32) -> bytes:
        """The ONNX file of one precision. Raises UsageError where the bundle has none, CheckFailed as `content`."""
        if precision not in self.manifest["models"]:
            raise UsageError(
                f"{self.folder} has no {precision} model{nearest(precision, self.precisions)}",
                hint="there is: " + ", ".join(self.precisions),
            )
        return self.content(self.manifest["models"][precision]["file"])

    def _check_words(self, path: Path) -> None:
        """The manifest means what this version takes it to mean."""
        try:
            spec, labels, models = (self.manifest[key] for key in ("input", "labels", "models"))
            known = (
                (spec["name"], spec["layout"], spec["dtype"], spec["colour"]) == ("image", "NHWC", "uint8", "RGB")
                and spec["height"] == spec["width"]
                and isinstance(spec["height"], int)
                and spec["height"] > 0
                and isinstance(spec.get("shorter_side", spec["height"]), int)
                and spec.get("shorter_side", spec["height"]) >= spec["height"]
                and spec["resize"] == (RESIZE_LARGER if "shorter_side" in spec else RESIZE)
            )
            if not known:
                raise RunError(f"{path}: this okdc does not know the input {spec}", hint="another version made it")
            whole = (
                isinstance(labels, list)
                and len(labels) >= 2
                and all(isinstance(label, str) for label in labels)
                and FLOAT32 in models
                and all(models[name]["file"] == MODELS[name] for name in models)
                and all(0 <= float(models[name]["top1_pct"]) <= 100 for name in models)
                and {"split", "images"} <= set(self.manifest["accuracy"])
                and {"sha256", "part", "rows"} <= set(self.manifest["judged_on"])
            )
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise RunError(f"{path} is damaged: its input, labels or models are not what okdc writes")

    def _check_names(self, path: Path) -> None:
        """Every file lies in the folder, links followed."""
        files = self.manifest["files"]
        if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
            raise RunError(f"{path} is damaged: files is not what okdc writes")
        inside = self.folder.resolve()
        for name in files:
            pure = PurePosixPath(name)
            outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts
            if outside or not (self.folder / name).resolve().is_relative_to(inside):
                raise RunError(f"{path}: the file name {name!r} leads out of the bundle", hint="do not use this bundle")


def _beside(folder: Path) -> str:
    """What the user may have meant."""
    if (folder / "bundle" / MANIFEST).is_file():
        return f"it is a run; its bundle is {folder / 'bundle'}"
    if (folder / "run.json").is_file():
        return f"it is a run; okdc export {folder} --onnx makes its bundle"
    return "okdc export --onnx makes one"
