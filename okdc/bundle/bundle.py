"""A bundle that a stranger may have made: nothing in it is used before it was checked. No torch.

The manifest is read first and names the other files; of each file exactly the bytes that were hashed are used. Names
that lead out of the folder, models that ask for further files and words that this version does not know are refused,
whatever their hashes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from okdc.bundle import foreign, structure
from okdc.bundle.artefacts import Manifest
from okdc.bundle.layout import FLOAT32, MANIFEST, MODELS, MOST_BYTES
from okdc.bundle.manifest import lies_in, read
from okdc.bundle.session import Pixels
from okdc.data import images
from okdc.errors import CheckFailed, RunError, UsageError, nearest
from okdc.runs.artefacts import Model, problems
from okdc.runs.folders import earlier
from okdc.runs.run import RunDir


@dataclass(frozen=True)
class BundleDir:
    """One bundle's folder and its manifest, which this version understands."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> BundleDir:
        """Raises RunError for what is no bundle, or one of another version or with a damaged manifest."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            kind = "a file" if folder.is_file() else "a folder without it" if folder.is_dir() else "nothing"
            raise RunError(f"{folder} is no bundle: expected {MANIFEST} in it, found {kind}", hint=_hint(folder))
        if not lies_in(path, folder.resolve()):
            raise RunError(f"{path} is a link out of the bundle", hint="copy the files themselves")
        return cls(folder, read(path))

    @cached_property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return list(self.manifest.labels)

    @property
    def size(self) -> int:
        """Height and width of the model's input, in pixels."""
        return self.manifest.input.height

    @property
    def shorter_side(self) -> int | None:
        """An image's shorter side after the resize, before its centre is cut out; None: `size`."""
        return self.manifest.input.shorter_side

    @cached_property
    def precisions(self) -> list[str]:
        """Its models, float32 first."""
        return [name for name in MODELS if name in self.manifest.models]

    def content(self, name: str) -> bytes:
        """A file of the bundle. Raises CheckFailed ("files") where it is not the one that the manifest names."""
        path, named = self.folder / name, self.manifest.files.get(name)
        again = "it was changed or cut short after the export: copy the bundle again, or export it again"
        if named is None:
            raise CheckFailed("files", f"{path} is not among the files that the manifest names", hint=again)
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise CheckFailed("files", f"{path}: expected a file, found something else", hint=again)
            if (size := path.stat().st_size) > foreign.LARGEST:
                raise CheckFailed(
                    "files", f"{path}: {size:,} bytes, no file of a bundle has more than 2 GiB", hint=again
                )
            with path.open("rb") as stream:
                content = stream.read(min(named.bytes, size) + 1)  # memory is taken for the number that is asked for
        except OSError as error:
            raise CheckFailed(
                "files", f"{path}: cannot be read: {error.strerror}", hint="the bundle is not whole: copy it again"
            ) from None
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != named.sha256 or len(content) != named.bytes:
            raise CheckFailed(
                "files",
                f"{path} is not the file of the manifest: sha256 {sha256[:12]}, expected {named.sha256[:12]}",
                hint=again,
            )
        return content

    def parsed(self, name: str) -> Any:
        """A JSON file of the bundle. Raises CheckFailed ("files") as `content`, for no JSON or too large a file."""
        named = self.manifest.files.get(name)
        if named is not None and named.bytes > MOST_BYTES:
            raise CheckFailed("files", f"{self.folder / name}: {named.bytes:,} bytes, expected {MOST_BYTES:,} at most")
        try:
            return json.loads(self.content(name))
        except (ValueError, RecursionError):
            raise CheckFailed("files", f"{self.folder / name} is not JSON") from None

    def read(self, name: str, model: type[Model], kind: str = "files") -> Model:
        """A JSON file of the bundle as `model`. Raises CheckFailed as `parsed`, of `kind` for another type of a key."""
        try:
            return model.model_validate(self.parsed(name))
        except ValidationError as error:
            first, *others = problems(error)
            raise CheckFailed(kind, f"{self.folder / name} is damaged: {first}", details=others) from None

    def pixels(self, content: bytes) -> Pixels:
        """An image file's content as the model takes it, size×size×3, by the manifest's rule.

        Raises whatever Pillow does, under `okdc.data.images.wary` also for an image that is an attack.
        """
        return images.read(content, lambda image: images.fit(image, self.size, self.shorter_side))

    def model(self, precision: str = FLOAT32) -> bytes:
        """The ONNX file of one precision, which is what the manifest says.

        Raises UsageError where the bundle has none, CheckFailed for another file or one that onnxruntime must not see.
        """
        if precision not in self.manifest.models:
            raise UsageError(
                f"{self.folder} has no {precision} model{nearest(precision, self.precisions)}",
                hint="there is: " + ", ".join(self.precisions),
            )
        name = self.manifest.models[precision].file
        content = self.content(name)
        structure.check_against(foreign.model(content, self.folder / name), self.manifest)
        return content


def _hint(folder: Path) -> str:
    """The way to a bundle, from a folder that is none."""
    if not folder.exists() and (earlier(folder) / MANIFEST).is_file():
        return f"a process was killed as it replaced it; what was there: {earlier(folder)}"
    if (folder / "bundle" / MANIFEST).is_file():
        return f"it is a run; its bundle is {folder / 'bundle'}"
    if RunDir.is_at(folder):
        return f"it is a run; okdc export {folder} --onnx makes its bundle"
    return "okdc export --onnx makes one"
