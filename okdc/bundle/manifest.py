"""What a manifest has to say, key by key, before anything in it is used. No torch.

`okdc.bundle.layout.write_manifest` writes it; export/README.md explains it. Keys that are not named here are nobody's
danger and stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from okdc.bundle.layout import FLOAT32, MODELS, MOST_BYTES, SCHEMA
from okdc.data.images import RESIZE, RESIZE_LARGER
from okdc.errors import RunError, quoted
from okdc.runs.files import read_json

LARGEST = 4096  # sides of a model's input, and of an image before its centre is cut out
MOST_FILES = 1000  # each is hashed
MOST_PROBLEMS = 10  # that are named


def _printable(text: str) -> str:
    """What is printed as it stands moves no cursor and starts no line."""
    if not text.isprintable():
        raise ValueError(f"expected printable text, found {quoted(text)}")
    return text


Side = Annotated[int, Field(ge=1, le=LARGEST)]
Index = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Word = Annotated[str, AfterValidator(_printable)]
Colour = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True)


class _Model(_Table):
    file: str
    top1_pct: Percent


class _Input(_Table):
    name: str
    layout: str
    dtype: str
    colour: str
    height: Side
    width: Side
    shorter_side: Side | None = None
    resize: str


class _Normalisation(_Table):
    in_graph: Literal[True]
    mean: Colour
    std: Colour


class _Accuracy(_Table):
    split: Word
    images: Annotated[int, Field(ge=1)]


class _JudgedOn(_Table):
    sha256: Sha256
    part: Literal["all", "train", "val", "test"]
    rows: list[Index] | None


class _File(_Table):
    sha256: Sha256
    bytes: Index


class _Manifest(_Table):
    models: dict[str, _Model]
    opset: int
    architecture: Word
    labels: Annotated[list[str], Field(min_length=2)]
    input: _Input
    normalisation: _Normalisation
    accuracy: _Accuracy
    judged_on: _JudgedOn
    recipe: dict[str, Any]
    files: Annotated[dict[Word, _File], Field(max_length=MOST_FILES)]


def read(path: Path) -> dict[str, Any]:
    """The manifest at `path`.

    Raises RunError for one of another version, a damaged one, or one with a file name that leads elsewhere.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise RunError(f"{path}: {size:,} bytes, and no manifest has more than {MOST_BYTES:,}")
    facts = read_json(path)
    schema = facts.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        newer = type(schema) is int and schema > SCHEMA
        hint = "a newer okdc made it: upgrade this one" if newer else "it is another tool's file, or damaged"
        raise RunError(f"{path}: schema {_short(schema)}, this okdc reads schema {SCHEMA}", hint=hint)
    try:
        _Manifest.model_validate(facts)
        json.dumps(facts, ensure_ascii=False).encode()  # half a character pair can be read, and not be written again
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}"[:200] for e in error.errors()[:MOST_PROBLEMS]]
        raise RunError(f"{path} is damaged: {_short(lines[0])}", details=lines[1:]) from None
    except (UnicodeEncodeError, RecursionError):
        raise RunError(f"{path} is damaged: it holds what is no text") from None
    _check_input(path, facts["input"])
    models = facts["models"]
    if FLOAT32 not in models or any(models[name]["file"] != MODELS.get(name) for name in models):
        raise RunError(f"{path} is damaged: expected models of {', '.join(MODELS)}, float32 among them, in their files")
    rows, count = facts["judged_on"]["rows"], facts["accuracy"]["images"]
    if rows is not None and not len(rows) == len(set(rows)) == count:
        raise RunError(f"{path} is damaged: judged on {count} images, judged_on.rows names {len(set(rows))}")
    _check_names(path, facts["files"])
    return facts


def _check_input(path: Path, spec: dict[str, Any]) -> None:
    """Only a client that knows the words may read images."""
    words = (spec["name"], spec["layout"], spec["dtype"], spec["colour"], spec["resize"])
    larger = spec.get("shorter_side") is not None
    known = ("image", "NHWC", "uint8", "RGB", RESIZE_LARGER if larger else RESIZE)
    if words != known or spec["height"] != spec["width"] or (larger and spec["shorter_side"] < spec["height"]):
        raise RunError(f"{path}: this okdc does not know the input {_short(spec)}", hint="another version made it")


def _check_names(path: Path, names: dict[str, Any]) -> None:
    """Every file lies in the folder, links followed, and has one name."""
    inside = path.parent.resolve()
    for name in names:
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


def _short(thing: object) -> str:
    """What a file says, on one line of bearable length."""
    return thing if isinstance(thing, str) and thing.isprintable() and len(thing) <= 200 else quoted(thing)
