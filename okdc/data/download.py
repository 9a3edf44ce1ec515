"""`okdc download`: the published archive of a named data set, whole and checked, or not at all.

The archive grows in `root/.okdc-download-NAME/`; a transfer that was cut goes on where it stopped. It is unpacked only
when its size and MD5 are the published ones, beside its place, and moved there when it is all there: whatever ends the
process, the data set is whole or missing, and the same command finishes the work.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from okdc import __version__
from okdc.data import cinic10 as cinic
from okdc.data import published
from okdc.errors import DataError, DiskError, RunError, UsageError, nearest
from okdc.recipe import catalog
from okdc.recipe.draft import read
from okdc.recipe.schema import DATASETS, ROOTS
from okdc.runs import locks
from okdc.runs.files import writing

Progress = Callable[[int, int, str], None]  # megabytes done, megabytes in all, in words

CHUNK = 1 << 20
TIMEOUT_S = 60  # without a byte
CINIC_URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"
CINIC_MD5 = "6ee4d0c996905fe93221de577967a372"
BYTES = {"cifar10": 170_498_071, "cifar100": 169_001_437, "cinic10": 687_544_992}
UNPACKED = {"cifar10": 187_000_000, "cifar100": 187_000_000, "cinic10": 1_110_000_000}  # on disk, about


@dataclass(frozen=True)
class Archive:
    """What is published, and what it leaves in the root."""

    name: str
    url: str
    md5: str
    size: int  # bytes
    brings: tuple[str, ...]  # folders


def archive(name: str) -> Archive:
    """Raises UsageError for a name that has none, with what to do instead."""
    if name == "cinic10":
        return Archive(name, CINIC_URL, CINIC_MD5, BYTES[name], cinic.SPLITS)
    if of := published.CIFAR.get(name):
        return Archive(name, of.url, of.md5, BYTES[name], (of.folder,))
    if name == "imagenet":
        raise UsageError(
            "imagenet is given to who registers, not to programs: it has to be fetched by hand",
            hint="register at https://image-net.org, fetch ILSVRC2012 and lay it out as "
            f"{ROOTS[name]}/{{train,val}}/<wnid>/*.JPEG, or anywhere with --data-root",
        )
    if name == "folder" or ":" in name:
        raise UsageError(f"{name}: these are your own images", hint="data.root=path/to/images says where they are")
    raise UsageError(f"no data set is called {name!r}{nearest(name, DATASETS)}", hint="there is: " + ", ".join(BYTES))


def download(name: str, data_root: str | None, url: str | None, progress: Progress) -> dict[str, Any]:
    """Bring a data set to its root, unless it is there. Returns the facts that `okdc download --json` prints.

    The root is `data_root`, else OKDC_DATA_ROOT, else where recipes look for this data set.

    Raises UsageError for a name without an archive, DataError for a transfer that failed or another file than the
    published one, DiskError where it cannot be written.
    """
    if name == "digits":  # they come with scikit-learn
        return {"name": name, "root": None, "url": None, "bytes": 0, "md5": None, "already_there": True}
    from_where = archive(name)
    root = Path(data_root or os.environ.get("OKDC_DATA_ROOT") or ROOTS[name]).expanduser()
    url = url or from_where.url
    facts = {"name": name, "root": str(root), "url": url, "bytes": from_where.size, "md5": from_where.md5}
    if is_whole(name, root):
        return facts | {"already_there": True}
    work, new = root / f".okdc-download-{name}", not root.exists()
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(work, root):
            tree = work / "tree"  # exists only when all of the archive is in it
            if not is_whole(name, root):
                _refuse_taken(from_where, root, tree)
                if not tree.is_dir():
                    packed = work / "archive.part"
                    _room(from_where, work, packed)
                    _fetch(from_where, url, packed, progress)
                    _unpack(packed, tree, from_where, progress)
                _move(tree, root, from_where, work)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DiskError(f"{root}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            if [f.name for f in work.iterdir()] == [locks.LOCK]:  # nothing was begun
                shutil.rmtree(work)
                if new:
                    root.rmdir()
    return facts | {"already_there": False}


def is_whole(name: str, root: Path) -> bool:
    if name == "cinic10":
        return set(cinic.count(root).values()) == {cinic.PER_SPLIT}
    return not published.damage(name, root)


@contextlib.contextmanager
def _alone(work: Path, root: Path) -> Iterator[None]:
    try:
        lock = contextlib.ExitStack()
        lock.enter_context(locks.held(work))
    except RunError:
        raise DataError(f"another process is downloading to {root}", hint="wait for it, or stop it") from None
    with lock:
        yield


def _refuse_taken(of: Archive, root: Path, tree: Path) -> None:
    """CINIC-10's folders have everyday names: what is there may be the user's own. CIFAR's belong to CIFAR."""
    if of.name != "cinic10":
        return
    coming = [name for name in of.brings if not tree.is_dir() or (tree / name).is_dir()]
    taken = [root / name for name in coming if (root / name).exists()]
    if taken:
        counts = ", ".join(f"{n:,} {split}" for split, n in cinic.count(root).items())
        raise DataError(
            f"{taken[0].absolute()} is in the way: expected nothing or the whole of CINIC-10, found {counts} images",
            hint="move it away, or choose another --data-root",
        )


def _room(of: Archive, work: Path, packed: Path) -> None:
    there = packed.stat().st_size if packed.exists() else 0
    needed, free = of.size - there + UNPACKED[of.name], shutil.disk_usage(work).free
    if free < needed:
        raise DiskError(
            f"{work}: about {_mb(needed):,} MB are needed for {of.name}, found {_mb(free):,} MB free",
            hint="free some space, or choose another --data-root",
        )


# ---------------------------------------------------------------------------------------------------------------------
# The transfer


def _fetch(of: Archive, url: str, packed: Path, progress: Progress) -> None:
    """The published file at `packed`, to the byte. What an earlier start left is used, and thrown away if it is bad."""
    while True:
        resumed = packed.exists()
        _transfer(of, url, packed, progress)
        with packed.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found == of.md5:
            return
        packed.unlink()
        if not resumed:
            raise DataError(
                f"{url}: expected MD5 {of.md5}, found {found}: another file, or damaged on its way",
                hint="try again, or name a mirror: --url URL",
            )


def _transfer(of: Archive, url: str, packed: Path, progress: Progress) -> None:
    """Append what is missing. Raises DataError with what has arrived kept."""
    have = packed.stat().st_size if packed.exists() else 0
    if have > of.size:
        packed.unlink()
        have = 0
    if have == of.size:
        return
    with _answer(url, have) as answer:
        begins, size = _offered(answer, have)
        if size is not None and size != of.size:
            raise DataError(
                f"{url}: expected {of.size:,} bytes, the server offers {size:,}: not the published archive",
                hint="name a mirror: --url URL",
            )
        have = begins
        with writing(packed, hint="free some space; the same command goes on from there"):
            with packed.open("ab" if begins else "wb") as stream:
                for chunk in _chunks(url, answer):
                    stream.write(chunk)
                    have += len(chunk)
                    progress(_mb(have), _mb(of.size), f"{_mb(have):,} of {_mb(of.size):,} MB")
                    if have > of.size:
                        break
    if have < of.size:
        raise DataError(
            f"{url}: the transfer ended after {have:,} of {of.size:,} bytes",
            hint="the same command goes on from there",
        )
    if have > of.size:
        packed.unlink()
        raise DataError(f"{url}: expected {of.size:,} bytes, the server sends more: not the published archive")


def _answer(url: str, have: int) -> Any:
    """The open answer to a request for all bytes from `have` on."""
    headers = {"User-Agent": f"okdc/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    hint = "is there a network? a mirror can be named: --url URL"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url}: HTTP {error.code} {error.reason}", hint=hint) from None
    except urllib.error.URLError as error:
        words = getattr(error.reason, "strerror", None) or error.reason
        raise DataError(f"{url}: cannot be reached: {words}", hint=hint) from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url}: no answer: {error or type(error).__name__}", hint=hint) from None
    except ValueError as error:  # not a URL at all
        raise DataError(f"--url: {error}", hint="https://host/path/file.tar.gz") from None


def _offered(answer: Any, have: int) -> tuple[int, int | None]:
    """At which byte an answer begins, and the size of the whole file where the server tells it."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found and int(found[1]) == have:
            return have, int(found[2]) if found[2].isdigit() else None
        raise DataError(f"{answer.url}: asked for the bytes from {have:,} on, the server sends others")
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _chunks(url: str, answer: Any) -> Iterator[bytes]:
    """A network that goes away is not the disk's fault."""
    while True:
        try:
            chunk = answer.read1(CHUNK)  # what is there, so that all of it is kept where the rest does not come
        except http.client.IncompleteRead as error:
            chunk, answer = error.partial, None
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{url}: the transfer broke off: {error}", hint="the same command goes on") from None
        if chunk:
            yield chunk
        if not chunk or answer is None:
            return


# ---------------------------------------------------------------------------------------------------------------------
# Unpacking


def _unpack(packed: Path, tree: Path, of: Archive, progress: Progress) -> None:
    """All of the archive in `tree`, or no `tree`. Files and folders below it, and nothing else, are taken."""
    aside = tree.with_name("tree.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writing(aside, hint="free some space, then the same command again"):
            try:
                with packed.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:gz") as tar:
                    for member in tar:
                        if not (member.isreg() or member.isdir()):
                            raise DataError(f"{of.name}: the archive holds {member.name!r}, neither file nor folder")
                        tar.extract(member, aside, filter="data")
                        done = stream.tell()
                        progress(_mb(done), _mb(of.size), f"unpacked {_mb(done):,} of {_mb(of.size):,} MB")
            except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{of.name}: the archive cannot be unpacked: {error}") from None
            top = _top(aside, of)
            top.rename(tree)
    except DataError:
        packed.unlink(missing_ok=True)  # it has the published MD5 and is of no use: nothing to go on from
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _top(aside: Path, of: Archive) -> Path:
    """The folder of the archive that has what it should bring: its top, or the one folder there."""
    for place in [aside, *sorted(aside.glob("*/"))]:
        if all((place / name).is_dir() for name in of.brings):
            return place
    there = ", ".join(sorted(f.name for f in aside.glob("*"))) or "nothing"
    raise DataError(f"{of.name}: expected {', '.join(of.brings)} in the archive, found {there}")


def _move(tree: Path, root: Path, of: Archive, work: Path) -> None:
    """Each entry of `tree` to the root: what is damaged there gives way, what else is there stays."""
    for entry in sorted(tree.iterdir()):
        target = root / entry.name
        if target.exists():
            if entry.name not in of.brings:
                continue
            old = work / f"old-{entry.name}"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        entry.rename(target)


def _mb(count: int) -> int:
    return max(1, round(count / 1e6))


def next_command(name: str, root: str | None) -> str:
    """What trains on the data that was brought: with the first shipped recipe for it."""
    fits = [recipe for recipe, path in catalog.recipes().items() if read(path).get("data", {}).get("name") == name]
    words = fits[0] if fits else f"RECIPE data.name={name}"
    return f"okdc distill {words}" + (
        f" --data-root {shlex.quote(root)}" if root not in (None, ROOTS.get(name)) else ""
    )
