"""Decoded images on disk, so that a second start decodes nothing. numpy and Pillow only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from okdc.data.decoding import decode
from okdc.data.images import Pixels, Progress, damage, rule, unreadable
from okdc.data.listing import Listing

_VERSION = 2  # raise it with any change of what the same files decode to


@dataclass
class Decoded:
    pixels: Pixels  # N×size×size×3
    sha256: str  # of the files' contents, in order
    notes: list[str]


def cache_folder() -> Path:
    """OKDC_CACHE, else okdc in the user's cache folder."""
    if chosen := os.environ.get("OKDC_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "okdc"


def load(listing: Listing, size: int, progress: Progress | None = None, shorter_side: int | None = None) -> Decoded:
    """The pixels of a listing, from the cache if these very files (path, size, mtime) were decoded before.

    A damaged entry is replaced. If the cache cannot be written, a note says so and the run continues.
    """
    entry = cache_folder() / "images" / _key(listing, size, shorter_side)
    cached = _read(entry, (len(listing.files), size, size, 3))
    if cached:
        return Decoded(*cached, [f"{len(listing.files):,} decoded images from the cache"])
    pixels, sha256 = decode(listing.files, size, progress, shorter_side)
    try:
        _write(entry, pixels, sha256)
    except OSError as error:
        return Decoded(pixels, sha256, [f"the decoded images are not cached: {entry}: {error.strerror or error}"])
    return Decoded(pixels, sha256, [f"decoded {len(listing.files):,} images, cached in {entry}"])


def _key(listing: Listing, size: int, shorter_side: int | None) -> str:
    digest = hashlib.sha256(json.dumps([_VERSION, PIL.__version__, rule(size, shorter_side)]).encode())
    gone = []
    for name, stat in listing.files.stats():
        if isinstance(stat, OSError):
            gone.append(f"{listing.root / os.fsdecode(name)}: {damage(stat)}")
        else:
            digest.update(b"%s\0%d %d\n" % (name, stat.st_size, stat.st_mtime_ns))
    if gone:  # a link to nothing, or taken away meanwhile
        raise unreadable(gone, len(listing.files))
    return digest.hexdigest()[:32]


def _read(entry: Path, shape: tuple[int, ...]) -> tuple[Pixels, str] | None:
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        with (entry / "images.npy").open("rb") as stream:
            pixels = np.lib.format.read_array(stream, allow_pickle=False)
        sha256 = meta["sha256"]
    except Exception:  # of a damaged header numpy raises ValueError, TokenError, MemoryError, ...
        return None
    if pixels.shape != shape or pixels.dtype != np.uint8 or not isinstance(sha256, str):
        return None
    return pixels, sha256


def _write(entry: Path, pixels: Pixels, sha256: str) -> None:
    """Write the entry aside and rename it, so that no reader sees half of it."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        np.save(aside / "images.npy", pixels, allow_pickle=False)
        (aside / "meta.json").write_text(json.dumps({"sha256": sha256}), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        aside.rename(entry)
    except OSError:
        if not entry.is_dir():  # another process may have been first: its entry is as good
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
