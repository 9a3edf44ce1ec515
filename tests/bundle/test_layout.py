"""A folder comes into place whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from okdc.bundle import layout
from okdc.errors import DiskError


def build(out: Path, text: str) -> None:
    with layout.building(out) as folder:
        (folder / layout.MANIFEST).write_text(text)


def test_what_was_there_comes_back_where_the_new_cannot_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses the second of the two renames."""
    out = Path("bundle")
    build(out, "first")
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path.name == ".bundle.new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(DiskError, match="bundle: cannot be written: No space left"):
        build(out, "second")
    assert (out / layout.MANIFEST).read_text() == "first"
    assert [path.name for path in Path().iterdir()] == ["bundle"]
