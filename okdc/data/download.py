"""`okdc download`: the published archive of a named data set, whole and checked, or not at all.

The archive grows in `root/.okdc-download-NAME/`, and a cut transfer continues where it stopped. okdc unpacks it there
only if size and MD5 are the published ones, and then moves its folders to the root: whatever ends the process, the data
set is whole or missing, and the same command finishes the work.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import re
import shlex
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from okdc.data import find
from okdc.data.source import Archive, Source
from okdc.errors import DataError, DiskError, RunError, UsageError
from okdc.recipe import catalog
from okdc.recipe.draft import read
from okdc.runs import locks
from okdc.runs.files import writing
from okdc.version import __version__

Progress = Callable[[int, int, str], None]  # megabytes done, megabytes in all, in words

CHUNK = 1 << 20
TIMEOUT_S = 60  # that pass without a byte


def source_of(name: str) -> Source:
    """Raises UsageError for a data set that cannot be downloaded, with the way to get it."""
    try:
        source = find(name)
    except DataError as error:
        raise UsageError(error.message, hint=error.hint) from None
    if source.archive is not None or not source.files:
        return source
    if source.by_hand:
        raise UsageError(f"{name} is given to people who register, not to programs", hint=source.by_hand)
    raise UsageError(f"{name}: these are your own images", hint="data.root=path/to/images says where they are")


def download(name: str, data_root: str | None, url: str | None, progress: Progress) -> dict[str, Any]:
    """Bring a data set to its root, unless it is there. Returns the facts that `okdc download --json` prints.

    The root is `data_root`, else OKDC_DATA_ROOT, else where recipes look for this data set.

    Raises UsageError for a name without an archive, DataError for a transfer that failed or another file than the
    published one, DiskError where it cannot be written.
    """
    source = source_of(name)
    archive = source.archive
    if archive is None:
        return {"name": name, "root": None, "url": None, "bytes": 0, "md5": None, "already_there": True}
    root = Path(data_root or os.environ.get("OKDC_DATA_ROOT") or source.root or ".").expanduser()
    url = url or archive.url
    facts = {"name": name, "root": str(root), "url": url, "bytes": archive.size, "md5": archive.md5}
    if archive.is_whole(root):
        return facts | {"already_there": True}
    work, is_new = root / f".okdc-download-{name}", not root.exists()
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(work, root):
            _bring(name, archive, url, root, work, progress)
    except OSError as error:
        raise DiskError(f"{root}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            if [file.name for file in work.iterdir()] == [locks.LOCK]:  # nothing was begun
                shutil.rmtree(work)
                if is_new:
                    root.rmdir()
    return facts | {"already_there": False}


def _bring(name: str, archive: Archive, url: str, root: Path, work: Path, progress: Progress) -> None:
    """Fetch, unpack and move, each only where an earlier start has not done it."""
    tree = work / "tree"  # exists only when all of the archive is in it
    if not archive.is_whole(root):
        _refuse_taken(name, archive, root, tree)
        if not tree.is_dir():
            packed = work / "archive.part"
            _check_room(name, archive, work, packed)
            _fetch(archive, url, packed, progress)
            _unpack(packed, tree, name, archive, progress)
        _move(tree, root, archive, work)
    shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _lock(work: Path, root: Path) -> Iterator[None]:
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(locks.held(work))
        except RunError:
            raise DataError(f"another process is downloading to {root}", hint="wait for it, or stop it") from None
        yield


def _refuse_taken(name: str, archive: Archive, root: Path, tree: Path) -> None:
    """Raises DataError where folders of the archive are in the root already and may be the user's own."""
    if archive.may_replace:
        return
    missing = [folder for folder in archive.folders if not tree.is_dir() or (tree / folder).is_dir()]
    taken = [root / folder for folder in missing if (root / folder).exists()]
    if taken:
        raise DataError(
            f"{taken[0].absolute()} is in the way: expected nothing or the whole of {name}",
            hint="move it away, or choose another --data-root",
        )


def _check_room(name: str, archive: Archive, work: Path, packed: Path) -> None:
    """Raises DiskError where the rest of the archive and the unpacked files do not fit."""
    needed, free = archive.size - _bytes(packed) + archive.unpacked, shutil.disk_usage(work).free
    if free < needed:
        raise DiskError(
            f"{work}: about {_mb(needed):,} MB are needed for {name}, found {_mb(free):,} MB free",
            hint="free some space, or choose another --data-root",
        )


def _bytes(packed: Path) -> int:
    """How much of the archive has arrived."""
    return packed.stat().st_size if packed.exists() else 0


# ---------------------------------------------------------------------------------------------------------------------
# The transfer


def _fetch(archive: Archive, url: str, packed: Path, progress: Progress) -> None:
    """The published file at `packed`, to the byte. An earlier start's beginning is used, and dropped if it is bad."""
    while True:
        resumed = packed.exists()
        _transfer(archive, url, packed, progress)
        with packed.open("rb") as stream:
            md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 == archive.md5:
            return
        packed.unlink()
        if not resumed:
            raise DataError(
                f"{url}: expected MD5 {archive.md5}, found {md5}: another file, or damaged on its way",
                hint="try again, or name a mirror: --url URL",
            )


def _transfer(archive: Archive, url: str, packed: Path, progress: Progress) -> None:
    """Append what is missing. A DataError leaves the bytes that have arrived in `packed`."""
    if _bytes(packed) > archive.size:
        packed.unlink()
    count = _bytes(packed)
    if count == archive.size:
        return
    with _open(url, count) as response:
        count, size = _range(response, count)
        if size is not None and size != archive.size:
            raise DataError(
                f"{url}: expected {archive.size:,} bytes, the server offers {size:,}: not the published archive",
                hint="name a mirror: --url URL",
            )
        with writing(packed, hint="free some space; the same command continues from there"):
            with packed.open("ab" if count else "wb") as stream:
                for chunk in _chunks(url, response):
                    stream.write(chunk)
                    count += len(chunk)
                    progress(_mb(count), _mb(archive.size), f"{_mb(count):,} of {_mb(archive.size):,} MB")
                    if count > archive.size:
                        break
    if count < archive.size:
        raise DataError(
            f"{url}: the transfer ended after {count:,} of {archive.size:,} bytes",
            hint="the same command continues from there",
        )
    if count > archive.size:
        packed.unlink()
        raise DataError(f"{url}: expected {archive.size:,} bytes, the server sends more: not the published archive")


def _open(url: str, start: int) -> Any:
    """The response to a request for all bytes from `start` on."""
    headers = {"User-Agent": f"okdc/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    hint = "check the network, or name a mirror: --url URL"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url}: HTTP {error.code} {error.reason}", hint=hint) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # URLError wraps the socket's error
        words = getattr(reason, "strerror", None) or reason or type(error).__name__
        raise DataError(f"{url}: no answer: {words}", hint=hint) from None
    except ValueError as error:  # not a URL at all
        raise DataError(f"--url: {error}", hint="https://host/path/file.tar.gz") from None


def _range(response: Any, start: int) -> tuple[int, int | None]:
    """The byte at which a response begins, and the size of the whole file where the server states it."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == start:
            return start, int(match[2]) if match[2].isdigit() else None
        raise DataError(f"{response.url}: expected the bytes from {start:,} on, the server sends others")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _chunks(url: str, response: Any) -> Iterator[bytes]:
    """The body. Raises DataError for a network that fails, so that it is not taken for a disk that does."""
    while True:
        try:
            chunk = response.read1(CHUNK)  # whatever has arrived, so that a cut transfer keeps all of it
        except http.client.IncompleteRead as error:
            yield error.partial
            return
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{url}: the transfer broke off: {error}", hint="the same command continues") from None
        if not chunk:
            return
        yield chunk


# ---------------------------------------------------------------------------------------------------------------------
# Unpacking


def _unpack(packed: Path, tree: Path, name: str, archive: Archive, progress: Progress) -> None:
    """All of the archive in `tree`, or no `tree`. Raises DataError for a member that is neither file nor folder."""
    aside = tree.with_name("tree.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writing(aside, hint="free some space, then the same command again"):
            try:
                with packed.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:gz") as tar:
                    # Python 3.11.4 and later also take care of modes and owners.
                    tar.extraction_filter = getattr(tarfile, "data_filter", None)
                    for member in tar:
                        if not (member.isreg() or member.isdir()):
                            raise DataError(f"{name}: the archive holds {member.name!r}, neither file nor folder")
                        # No link was unpacked, so that the name alone says where a member goes.
                        inside = Path(os.path.normpath(member.name))
                        if inside.is_absolute() or inside.parts[:1] == ("..",):
                            raise DataError(f"{name}: the archive holds {member.name!r}, outside of itself")
                        tar.extract(member, aside)
                        done = _mb(stream.tell())
                        progress(done, _mb(archive.size), f"unpacked {done:,} of {_mb(archive.size):,} MB")
            except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{name}: the archive cannot be unpacked: {error}") from None
            _top(aside, name, archive).rename(tree)
    except DataError:
        packed.unlink(missing_ok=True)  # its MD5 is the published one, so another transfer would bring the same
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _top(aside: Path, name: str, archive: Archive) -> Path:
    """The folder that holds the archive's folders: its top, or a folder in it. Raises DataError where none does."""
    for folder in [aside, *sorted(aside.glob("*/"))]:
        if all((folder / expected).is_dir() for expected in archive.folders):
            return folder
    names = ", ".join(sorted(file.name for file in aside.glob("*"))) or "nothing"
    raise DataError(f"{name}: expected {', '.join(archive.folders)} in the archive, found {names}")


def _move(tree: Path, root: Path, archive: Archive, work: Path) -> None:
    """Move each entry of `tree` to the root. A damaged folder of the data set gives way, any other entry stays."""
    for entry in sorted(tree.iterdir()):
        target = root / entry.name
        if target.exists():
            if entry.name not in archive.folders:
                continue
            old = work / f"old-{entry.name}"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        entry.rename(target)


def _mb(count: int) -> int:
    return max(1, round(count / 1e6))


def next_command(name: str, root: str | None) -> str:
    """The training on a downloaded data set: the first shipped recipe for it."""
    recipes = [recipe for recipe, path in catalog.recipes().items() if read(path).get("data", {}).get("name") == name]
    words = recipes[0] if recipes else f"RECIPE data.name={name}"
    place = "" if root in (None, find(name).root) else f" --data-root {shlex.quote(str(root))}"
    return f"okdc distill {words}{place}"
