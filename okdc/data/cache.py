"""Decoded images on disk, so that a second start decodes nothing. numpy and Pillow only.

Of images that stay in their files it keeps what was measured, or the sha256 of each file, in place of the pixels.

An entry is one file, written aside and moved into place, so that a reader sees a whole entry or none:

    okdc decoded images, 3                      the format
    <length of the next line> <its sha256>
    {"key": ..., "shape": ..., ...}             `_Head`
    N×size×size×3 bytes, or N rows of others    checked by the CRC-32 of each 64 MiB

A checksum is not a signature: it finds what disks, memory and cut copies do, not somebody who wants to deceive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL

from okdc.data import files, workers
from okdc.data.decoding import Kind, Making, decode
from okdc.data.images import Pixels, Progress, damage, may_pass, rule, unreadable
from okdc.data.listing import Listing
from okdc.errors import DataError, one_line
from okdc.homes import user_folder
from okdc.runs.files import sync_folder

try:
    import fcntl
except ImportError:  # not on Windows: a write that is under way is then told from a dead one by its age
    fcntl = None  # type: ignore[assignment]

_VERSION = 3  # raise it with any change of what the same files decode to, or of the format
_MAGIC = f"okdc decoded images, {_VERSION}\n".encode()
_PART = 2**26  # bytes under one checksum; zlib lets go of Python's lock meanwhile
_NEW = ".new-"
DONE = {"pixels": "decoded", "measures": "measured", "contents": "hashed"}
_OLD = 24 * 3600  # seconds after which a write without a lock of its own is dead


@dataclass
class Decoded:
    pixels: Pixels  # N×size×size×3, or the rows of another kind, of the files that are not among `damaged`
    sha256: str  # of those files' contents, in order
    notes: list[str]
    damaged: dict[int, str] = field(default_factory=dict)  # row of the listing to the reason: it has no pixels


@dataclass
class _Head:
    """What an entry says of its pixels."""

    key: str  # of the files, as its name: an entry that was copied over another one is none
    shape: list[int]
    sha256: str  # of the contents of the decoded files
    damaged: list[tuple[int, str]]  # rows of the key's files that are no whole images, and have no pixels here
    crc32: list[int]  # of each part of the pixels


class _DamagedError(Exception):
    """An entry that is not as it was written; the text is the reason."""


def cache_folder() -> Path:
    """OKDC_CACHE, else okdc in the user's cache folder. Raises DiskError where the user has none."""
    return user_folder("OKDC_CACHE", "XDG_CACHE_HOME", ".cache")


def load(
    listing: Listing,
    size: int,
    progress: Progress | None = None,
    shorter_side: int | None = None,
    skip_damaged: bool = False,
    kind: Kind = "pixels",
) -> Decoded:
    """The pixels of a listing, from the cache if these very files (path, size, mtime) were decoded before.

    Of another `kind` the rows are what `okdc.data.decoding.Making` makes of the files.

    An entry is proven to be as it was written, each time; a damaged one is replaced, and a note says so. If the cache
    cannot be written, a note says so and the run continues. Raises DataError that lists every file which is no whole
    image; with `skip_damaged` these are `Decoded.damaged` instead, and have no pixels.
    """
    making = Making(kind, size, shorter_side)
    key, lost = _key(listing, making, skip_damaged)
    rows = [row for row in range(len(listing.files)) if row not in lost]
    entry, notes = cache_folder() / "images" / key, list[str]()
    try:
        cached = _read(entry, key, len(rows), making.shape)
    except _DamagedError as error:
        cached = None
        notes.append(f"the cached images in {entry} are not as they were written ({error}): they are decoded again")
    if cached and (skip_damaged or not cached[0].damaged):  # else the error names the damaged files
        head, pixels = cached
        notes.append(f"{len(pixels):,} {DONE[kind]} images from the cache")
        return Decoded(pixels, head.sha256, notes, lost | {rows[i]: reason for i, reason in head.damaged})
    del cached
    of_rows = listing.files.take(rows) if lost else listing.files
    pixels, sha256, damaged = decode(of_rows, size, progress, shorter_side, skip_damaged, kind)
    try:
        _write(entry, key, pixels, sha256, damaged)
        notes.append(f"{DONE[kind]} {len(pixels):,} images, cached in {entry}")
    except OSError as error:
        notes.append(f"the {DONE[kind]} images are not cached: {entry}: {error.strerror or error}")
    return Decoded(pixels, sha256, notes, lost | {rows[i]: reason for i, reason in damaged.items()})


def has(listing: Listing, size: int, shorter_side: int | None) -> bool:
    """Whether the cache seems to have the pixels of all of these files."""
    try:
        key, _ = _key(listing, Making("pixels", size, shorter_side), False)
    except DataError:
        return False
    return (cache_folder() / "images" / key).is_file()


def _key(listing: Listing, making: Making, skip_damaged: bool) -> tuple[str, dict[int, str]]:
    """The name of an entry, and the rows of the files that are not there to be decoded, with the reason.

    Raises DataError that lists these files, unless they may be skipped.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, PIL.__version__, *_made_by(making)]).encode())
    lost: dict[int, str] = {}
    passing = False
    for row, (name, status) in enumerate(listing.files.stats()):
        try:
            if isinstance(status, OSError):  # a link to nothing, or taken away meanwhile
                raise status
            files.check(status)
        except (OSError, files.NoFileError) as error:
            lost[row] = damage(error)
            passing = passing or may_pass(error)
        else:
            digest.update(b"%s\0%d %d\n" % (name, status.st_size, status.st_mtime_ns))
    if lost and (passing or not skip_damaged):
        lines = [f"{listing.files[row]}: {reason}" for row, reason in lost.items()]
        raise unreadable(lines, len(listing.files), skip_damaged)
    return digest.hexdigest()[:32], lost


def _made_by(making: Making) -> list[Any]:
    """What else than its files an entry follows from."""
    if making.kind == "contents":
        return [making.kind]
    of_size = rule(making.size, making.shorter_side)
    return [of_size] if making.kind == "pixels" else [of_size, making.kind]


# ---------------------------------------------------------------------------------------------------------------------
# One entry


def _parts(pixels: Pixels) -> list[memoryview]:
    """The bytes of the pixels, piece by piece: none is a copy."""
    whole = np.ascontiguousarray(pixels).reshape(-1).data
    return [whole[start : start + _PART] for start in range(0, len(whole), _PART)]


def _read(entry: Path, key: str, count: int, shape: tuple[int, ...]) -> tuple[_Head, Pixels] | None:
    """An entry of `count` files, or None where there is none. Raises _DamagedError for one that cannot be believed."""
    try:
        with entry.open("rb") as stream:
            head = _read_head(stream, key, count, shape)
            pixels = np.empty(head.shape, np.uint8)
            if (expected := stream.tell() + pixels.nbytes) != (length := os.fstat(stream.fileno()).st_size):
                raise _DamagedError(f"expected {expected:,} bytes, found {length:,}")
            with ThreadPoolExecutor(workers.cores()) as pool:  # the next part is read while one is checked
                sums = []
                for part in _parts(pixels):
                    if stream.readinto(part) != len(part):
                        raise _DamagedError("cut short")
                    sums.append(pool.submit(zlib.crc32, part))
            if [crc.result() for crc in sums] != head.crc32:
                raise _DamagedError("checksum of the pixels")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _DamagedError(error.strerror or str(error)) from None
    return head, pixels


def _read_head(stream: BinaryIO, key: str, count: int, shape: tuple[int, ...]) -> _Head:
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise _DamagedError("another format")
    try:
        length, sha256 = stream.readline(100).split()
        content = stream.read(min(int(length), os.fstat(stream.fileno()).st_size))
        if hashlib.sha256(content).hexdigest().encode() != sha256:
            raise _DamagedError("checksum of the head")
        head = _Head(**json.loads(content))
        expected = [count - len(head.damaged), *shape]
    except (ValueError, TypeError) as error:
        raise _DamagedError(one_line(error)) from None
    if (head.key, head.shape) != (key, expected):
        raise _DamagedError("the entry of other files")
    return head


def _write(entry: Path, key: str, pixels: Pixels, sha256: str, damaged: dict[int, str]) -> None:
    """Write the entry aside and move it into place. Of two that do so at once, the last one's stays: they are alike."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(entry.parent)
    parts = _parts(pixels)
    with ThreadPoolExecutor(workers.cores()) as pool:
        head = _Head(key, list(pixels.shape), sha256, list(damaged.items()), list(pool.map(zlib.crc32, parts)))
    content = json.dumps(asdict(head)).encode() + b"\n"
    with _aside(entry.parent) as (stream, path):
        stream.write(_MAGIC)
        stream.write(f"{len(content)} {hashlib.sha256(content).hexdigest()}\n".encode())
        stream.write(content)
        for part in parts:
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
        path.replace(entry)
    sync_folder(entry.parent)


# ---------------------------------------------------------------------------------------------------------------------
# Files that are being written


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file, removed unless the block moves it. Its lock says that a living process writes it."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_NEW, dir=folder)
        stream, path = os.fdopen(descriptor, "wb"), Path(name)
        try:
            if fcntl:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else another process took it for a leftover, before it was locked
                with stream:
                    yield stream, path
                return
        finally:
            with contextlib.suppress(OSError):
                stream.close()  # of a full disk a second time
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing. A file that a living one writes stays."""
    for path in folder.glob(f"{_NEW}*"):
        with contextlib.suppress(OSError):
            if not path.is_file():
                continue
            descriptor = os.open(path, os.O_RDWR)
            try:
                if _is_abandoned(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def _is_abandoned(descriptor: int) -> bool:
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return time.time() - os.fstat(descriptor).st_mtime > _OLD
