"""Reads a manifest that a stranger may have made: checked key by key before anything in it is used. No torch.

`okdc.bundle.layout.write_manifest` writes it; export/README.md explains it.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from okdc.bundle.artefacts import Content, Input, Manifest
from okdc.bundle.layout import FLOAT32, MODELS, MOST_BYTES, SCHEMA
from okdc.data.images import RESIZE, RESIZE_LARGER
from okdc.errors import RunError, quoted
from okdc.runs.artefacts import check_seal, problems
from okdc.runs.files import read_json


def read(path: Path) -> Manifest:
    """Raises RunError for a manifest of another version, a damaged one, or a file name that leads out of the bundle."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise RunError(f"{path}: {size:,} bytes, and no manifest has more than {MOST_BYTES:,}")
    tables = read_json(path)
    _check_schema(path, tables.get("schema"))
    try:
        manifest = Manifest.model_validate(tables)
        json.dumps(tables, ensure_ascii=False).encode()  # half a character pair can be read, and not be written again
    except ValidationError as error:
        first, *others = problems(error)
        raise RunError(f"{path} is damaged: {first}", details=others) from None
    except (UnicodeEncodeError, RecursionError):
        raise RunError(f"{path} is damaged: a part of it is no text") from None
    check_seal(path, tables, manifest)
    _check_input(path, manifest.input)
    if FLOAT32 not in manifest.models or any(model.file != MODELS.get(k) for k, model in manifest.models.items()):
        raise RunError(
            f"{path} is damaged: models: expected some of {', '.join(MODELS)}, float32 among them, in their files"
        )
    rows, count = manifest.judged_on.rows, manifest.accuracy.images
    if rows is not None and not len(rows) == len(set(rows)) == count:
        raise RunError(f"{path} is damaged: judged on {count} images, judged_on.rows names {len(set(rows))}")
    _check_names(path, manifest.files)
    return manifest


def _check_schema(path: Path, schema: Any) -> None:
    if type(schema) is not int or schema != SCHEMA:
        newer = type(schema) is int and schema > SCHEMA
        hint = "a newer okdc made it: upgrade this one" if newer else "it is another tool's file, or damaged"
        raise RunError(f"{path}: schema {_short(schema)}, this okdc reads schema {SCHEMA}", hint=hint)


def _check_input(path: Path, spec: Input) -> None:
    """A client that does not know a word of the rule cannot follow it."""
    words = (spec.name, spec.layout, spec.dtype, spec.colour, spec.resize)
    larger = spec.shorter_side is not None
    expected = ("image", "NHWC", "uint8", "RGB", RESIZE_LARGER if larger else RESIZE)
    if words != expected or spec.height != spec.width or (spec.shorter_side or spec.height) < spec.height:
        raise RunError(
            f"{path}: this okdc does not know the input {_short(spec.to_json())}", hint="another version made it"
        )


def _check_names(path: Path, files: dict[str, Content]) -> None:
    """Every file lies in the folder, links followed, and has one name."""
    inside = path.parent.resolve()
    for name in files:
        pure = PurePosixPath(name)
        outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts
        if outside or not lies_in(path.parent / name, inside):
            raise RunError(
                f"{path}: the file name {_short(name)} leads out of the bundle", hint="do not use this bundle"
            )
        if pure.as_posix() != name:
            raise RunError(f"{path} is damaged: a file {_short(name)}, which is {_short(pure.as_posix())}")


def lies_in(path: Path, resolved: Path) -> bool:
    """Whether a path ends below a folder that is resolved already, links followed."""
    try:
        return path.resolve().is_relative_to(resolved)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _short(value: object) -> str:
    """A value of the file, on one line of bearable length."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 200 else quoted(value)
