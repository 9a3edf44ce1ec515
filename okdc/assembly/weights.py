"""The tensors that students start from, and their hashes."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from okdc.assembly import origins
from okdc.assembly import student as students
from okdc.assembly.origins import METADATA, NO_WEIGHTS, RANDOM, VALUES, Origin
from okdc.backbones import pretrained
from okdc.backbones.pretrained import Facts, Pretrained
from okdc.errors import CheckFailed, DataError, RecipeError, RunError, UsageError, first_line
from okdc.recipe.schema import Recipe
from okdc.recipe.shorthand import typed
from okdc.runs.files import write, writing

NESTED = ("state_dict", "model")  # where training scripts keep the weights in a .pt file


@dataclass(frozen=True)
class Loaded:
    """Weights, in memory."""

    origin: Origin
    sha256: str  # of the file; of a library's weights, of their tensors as safetensors writes them
    tensors: Mapping[str, Tensor]


def load(recipe: Recipe, count: int) -> list[Loaded | None]:
    """The weights of the first `count` students, those of one origin once. None: random ones.

    Raises DataError for weights that cannot be downloaded, RecipeError for a file that holds none, RunError or
    CheckFailed for a run that is damaged, and RunError for other weights than the recipe began with.
    """
    loaded: dict[str, Loaded] = {}
    all_of_them: list[Loaded | None] = []
    for origin in origins.of_recipe(recipe, count):
        if origin is not None and origin.where not in loaded:
            try:
                loaded[origin.where] = _load(origin)
            except DataError as error:  # of a library's weights
                error.hint = _how_to_bring(recipe, loaded)
                raise
        all_of_them.append(loaded[origin.where] if origin else None)
    expected = recipe.cohort.weights_sha256
    if expected is not None:
        for start, sha256 in zip(all_of_them, expected, strict=False):
            _prove(start, sha256)
    return all_of_them


def _how_to_bring(recipe: Recipe, loaded: Collection[str]) -> str:
    """What brings a library's weights that are not loaded, all of the recipe at once, and the words that take them."""
    weights = recipe.cohort.weights or ""
    values = weights if isinstance(weights, tuple) else (weights,)
    missing = {v: pretrained.find(v) for v in values if pretrained.is_name(v) and v not in loaded}
    if recipe.cohort.weights_sha256 is not None:  # a file has another sha256 than the tensors in it
        return f"where there is a network: {_download(missing.values())}"
    return _as_files(missing.values(), [_file_of(missing[v]) if v in missing else v or "none" for v in values])


def _download(weights: Iterable[Pretrained]) -> str:
    return f"okdc download weights {' '.join(each.name for each in weights)}"


def _file_of(weights: Pretrained) -> str:
    return f"FOLDER/{weights.file}"


def _as_files(weights: Iterable[Pretrained], values: Sequence[str]) -> str:
    """The hint for a machine without a network, with the `values` of `cohort.weights` there."""
    return f"where there is a network: {_download(weights)} -o FOLDER; here {typed('cohort.weights', values)}"


def places(recipe: Recipe) -> list[Path]:
    """The files and runs that a completed recipe's students start from."""
    weights = recipe.cohort.weights or ""
    values = dict.fromkeys(weights if isinstance(weights, tuple) else (weights,))
    return [Path(v).expanduser().absolute() for v in values if v not in RANDOM and not pretrained.is_name(v)]


def _prove(start: Loaded | None, expected: str) -> None:
    actual = start.sha256 if start else ""
    if actual != expected:
        what = f"{start.origin.where} has" if start else "random weights have"
        raise RunError(
            f"cohort.weights: {what} not the weights that the recipe began with: sha256 {actual[:12] or 'none'}, "
            f"expected {expected[:12] or 'none'} (cohort.weights_sha256)",
            hint="restore them, or start another run without cohort.weights_sha256",
        )


def _load(origin: Origin) -> Loaded:
    if origin.run is not None:
        try:
            student = students.load(origin.run, origin.index)
        except (CheckFailed, RunError) as error:
            error.message = f"cohort.weights: {error.message}"
            raise
        return Loaded(origin, student.result.weights_sha256, student.network.weights())
    if pretrained.is_name(origin.where):
        tensors = pretrained.find(origin.where).load()
        return Loaded(origin, _sha256(to_safetensors(tensors)), tensors)
    path = Path(origin.where).expanduser()
    try:
        content = path.read_bytes()
        return Loaded(origin, _sha256(content), read_tensors(path, content))
    except OSError as error:
        raise RecipeError(f"cohort.weights: {origin.where}: cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds more than weights: {named[1]}, whose code okdc does not run" if named else NO_WEIGHTS
        hint = 'torch.save(model.state_dict(), "weights.pt") writes weights alone'
        raise RecipeError(f"cohort.weights: {origin.where} {what}", hint=hint) from None
    except RuntimeError as error:  # torch's, with advice for its own callers after the first sentence
        reason = first_line(error).partition(". ")[0][:200]
        raise RecipeError(f"cohort.weights: {origin.where} {NO_WEIGHTS} ({reason})", hint=VALUES) from None
    except Exception as error:  # safetensors and torch raise kinds of their own
        raise RecipeError(f"cohort.weights: {origin.where}: holds no weights: {first_line(error)}") from None


def stored(path: Path, content: bytes) -> Any:
    """What a .safetensors file holds, or a file that torch.save wrote: no pickle is run. Raises what both raise."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load as from_safetensors

        return from_safetensors(content)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """A .safetensors file, or what torch.save wrote of tensors alone: no pickle is run.

    Raises ValueError for a file of anything else, and what safetensors and torch raise.
    """
    loaded = stored(path, content)
    if path.suffix == ".safetensors":
        return dict(loaded)
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"expected tensors by name, found {type(loaded).__name__}")
    if strange := [key for key, value in loaded.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"expected tensors by name, found {type(loaded[strange[0]]).__name__} at {strange[0]!r}")
    return {str(key).removeprefix("module."): tensor for key, tensor in loaded.items()}  # DistributedDataParallel's


def to_safetensors(tensors: Mapping[str, Tensor], facts: Facts | None = None) -> bytes:
    """The content of a .safetensors file."""
    from safetensors.torch import save

    copies = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}  # it refuses shared memory
    return save(copies, {METADATA: json.dumps(asdict(facts))} if facts else None)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def download(names: Sequence[str], folder: Path | None) -> list[dict[str, Any]]:
    """Bring the weights of libraries to this machine: to their own caches, and with a `folder` to files there, which
    `cohort.weights` takes on a machine without a network.

    Raises UsageError for a name that leads to no weights, DataError where they cannot be had, DiskError where a file
    cannot be written.
    """
    try:
        wanted = [pretrained.find(name) if pretrained.is_name(name) else pretrained.default(name) for name in names]
    except RecipeError as error:
        raise UsageError(error.message, hint=error.hint) from None
    return [_bring(weights, wanted, folder) for weights in wanted]


def _bring(weights: Pretrained, wanted: Sequence[Pretrained], folder: Path | None) -> dict[str, Any]:
    try:
        tensors, file = weights.load(), None
    except DataError as error:
        error.hint = _as_files(wanted, [*map(_file_of, wanted)])
        raise
    if folder is not None:
        file = folder / weights.file
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write(file, to_safetensors(tensors, weights.facts))
    return {
        "name": weights.name,
        "network": weights.network,
        "file": str(file) if file else None,
        "sha256": _sha256(to_safetensors(tensors)),
        "licence": weights.facts.licence,
    }
