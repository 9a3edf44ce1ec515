"""Decoded images on disk: what a second start takes from them, and what it never believes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asking import picture, write_tree
from PIL import Image

from okdc.data import cache
from okdc.data.cache import Decoded, cache_folder, load
from okdc.data.listing import list_images
from okdc.errors import DataError


@pytest.fixture
def root() -> Path:
    return write_tree(Path("root"), {"train": {"a": 3, "b": 2}})


def entries() -> list[Path]:
    return sorted(cache_folder().glob("images/*"))


def from_cache(decoded: Decoded) -> bool:
    return any("from the cache" in note for note in decoded.notes)


def spoil(path: Path) -> None:
    """Other bytes, the same size and time."""
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_images_are_decoded_once(root: Path) -> None:
    first = load(list_images(root), 8)
    assert first.notes == [f"decoded 5 images, cached in {entries()[0]}"]
    spoil(root / "train/a/000.png")
    again = load(list_images(root), 8)  # it cannot have come from the files
    assert again.notes == ["5 decoded images from the cache"]
    assert np.array_equal(again.pixels, first.pixels)
    assert again.sha256 == first.sha256


def test_the_sha256_is_that_of_the_files_contents(root: Path) -> None:
    listing = list_images(root)
    digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in listing.files)
    assert load(listing, 8).sha256 == hashlib.sha256(digests).hexdigest()


def touched(root: Path) -> None:
    os.utime(root / "train/a/000.png", ns=(0, 0))


def grown(root: Path) -> None:
    path = root / "train/a/000.png"
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def renamed(root: Path) -> None:
    (root / "train/a/000.png").rename(root / "train/a/zero.png")


def regrouped(root: Path) -> None:
    (root / "train/a/002.png").rename(root / "train/b/002.png")


def removed(root: Path) -> None:
    (root / "train/a/000.png").unlink()


@pytest.mark.parametrize("change", [touched, grown, renamed, regrouped, removed])
def test_any_change_of_paths_sizes_or_times_is_decoded_anew(root: Path, change: Callable[[Path], None]) -> None:
    load(list_images(root), 8)
    change(root)
    assert not from_cache(load(list_images(root), 8))
    assert from_cache(load(list_images(root), 8))
    assert len(entries()) == 2


def test_a_file_that_was_spoilt_and_touched_is_found_out(root: Path) -> None:
    load(list_images(root), 8)
    spoil(root / "train/a/000.png")
    touched(root)
    with pytest.raises(DataError, match="1 of 5 images cannot be read"):
        load(list_images(root), 8)


def test_another_image_size_has_pixels_of_its_own(root: Path) -> None:
    load(list_images(root), 8)
    other = load(list_images(root), 12)
    assert not from_cache(other)
    assert other.pixels.shape == (5, 12, 12, 3)
    assert from_cache(load(list_images(root), 8))


def test_a_folder_that_was_moved_is_still_in_the_cache(root: Path) -> None:
    before = load(list_images(root), 8)
    shutil.move(root, "elsewhere")
    after = load(list_images(Path("elsewhere")), 8)
    assert from_cache(after)
    assert after.sha256 == before.sha256


def test_the_sha256_differs_for_other_contents_under_the_same_names(root: Path) -> None:
    before = load(list_images(root), 8)
    Image.fromarray(picture(99, 8)).save(root / "train/a/000.png")
    assert load(list_images(root), 8).sha256 != before.sha256


# --- damage


def said_damaged(decoded: Decoded) -> bool:
    return any("not as they were written" in note for note in decoded.notes)


def made_again(root: Path, first: Decoded) -> Decoded:
    """What the next start gets: decoded anew and right, and cached again."""
    again = load(list_images(root), 8)
    assert not from_cache(again)
    assert np.array_equal(again.pixels, first.pixels)
    assert again.sha256 == first.sha256
    third = load(list_images(root), 8)
    assert from_cache(third)
    assert not said_damaged(third)
    return again


def zeroed(content: bytes) -> bytes:
    """All pixels black, behind a head that is whole."""
    return content[:-960] + bytes(960)


def exchanged(content: bytes) -> bytes:
    """Two images have changed places."""
    return content[:-384] + content[-192:] + content[-384:-192]


@pytest.mark.parametrize(
    "damage",
    [
        zeroed,
        exchanged,
        lambda _: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: content + content,
        lambda content: content[1:],
        lambda _: b"PK\x03\x04 and no more",
        lambda content: content.replace(b'"damaged": []', b'"damaged": [[0, "x"]]'),
        lambda content: content.replace(b"{", b"[", 1),
        lambda content: content.split(b"\n")[0] + b"\n99999999999999999999 x\n",
    ],
)
def test_a_damaged_entry_is_said_and_made_again(root: Path, damage: Callable[[bytes], bytes]) -> None:
    first = load(list_images(root), 8)
    (entry,) = entries()
    assert damage(entry.read_bytes()) != entry.read_bytes()
    entry.write_bytes(damage(entry.read_bytes()))
    assert said_damaged(made_again(root, first))
    assert entries() == [entry]


def test_no_bit_that_flips_anywhere_is_believed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of the head and of the pixels, one bit at a time, with several parts under a checksum each."""
    monkeypatch.setattr(cache, "_PART", 100)
    listing = list_images(root)
    first = load(listing, 8)
    (entry,) = entries()
    whole, key = entry.read_bytes(), entry.name
    read = cache._read(entry, key, 5, (8, 8, 3))
    assert read is not None
    assert np.array_equal(read[1], first.pixels)
    believed = []
    for at in range(len(whole)):
        entry.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            cache._read(entry, key, 5, (8, 8, 3))
            believed.append(at)
        except cache._DamagedError:
            pass
    assert believed == []


def test_the_entry_of_other_files_is_none(root: Path) -> None:
    """A cache that was put together by hand: whole, of the same shape, and of other images."""
    other = write_tree(Path("other"), {"train": {"b": 3, "c": 2}})
    load(list_images(other), 8)
    (theirs,) = entries()
    first = load(list_images(root), 8)
    (mine,) = set(entries()) - {theirs}
    shutil.copy(theirs, mine)
    assert said_damaged(made_again(root, first))


def test_an_entry_that_is_missing_is_not_called_damaged(root: Path) -> None:
    first = load(list_images(root), 8)
    assert not said_damaged(first)
    entries()[0].unlink()
    assert not said_damaged(made_again(root, first))


def test_a_disk_that_fails_to_read_an_entry_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(list_images(root), 8)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cache, "_read_head", fails)
    again = load(list_images(root), 8)
    assert not from_cache(again)
    assert any("Input/output error" in note for note in again.notes)


def test_a_cache_that_cannot_be_written_costs_a_note(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKDC_CACHE", "/dev/full/x")
    listing = load(list_images(root), 8)
    assert listing.pixels.shape == (5, 8, 8, 3)
    (note,) = listing.notes
    assert note.startswith("the decoded images are not cached: /dev/full/x/")
    assert note.endswith(": Not a directory")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_costs_a_note_and_leaves_nothing_half_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync", fails) if call == "fsync" else (Path, "replace", fails)))
    decoded = load(list_images(root), 8)
    assert decoded.pixels.shape == (5, 8, 8, 3)
    (note,) = decoded.notes
    assert note.endswith(f": {os.strerror(number)}")
    assert list((cache_folder() / "images").iterdir()) == []


# --- processes beside each other, and killed ones


CHILD = """
import os, signal, sys
from pathlib import Path
from okdc.data import cache
from okdc.data.listing import list_images
if "die" in sys.argv:
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.readline()
print(cache.load(list_images(Path("root")), 8).sha256)
"""


def child(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_writer_leaves_is_no_entry_and_goes_at_the_next_write(root: Path) -> None:
    killed = child("die")
    killed.communicate("\n")
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = (cache_folder() / "images").iterdir()
    assert leftover.name.startswith(".new-")
    decoded = load(list_images(root), 8)
    assert not from_cache(decoded)
    assert not said_damaged(decoded)
    (entry,) = (cache_folder() / "images").iterdir()
    assert entry != leftover
    assert from_cache(load(list_images(root), 8))


def test_what_a_living_process_writes_stays(root: Path) -> None:
    theirs = cache_folder() / "images" / ".new-theirs"
    theirs.parent.mkdir(parents=True)
    with theirs.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        os.utime(theirs, (0, 0))  # a slow disk
        load(list_images(root), 8)
        assert theirs.exists()
    entries()[0].unlink()
    load(list_images(root), 8)
    assert not theirs.exists()


def test_a_file_that_was_taken_for_a_leftover_before_its_lock_is_written_under_another_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, gone = fcntl.flock, list[Path]()

    def late(descriptor: int, how: int) -> None:
        if not gone:
            gone.extend((cache_folder() / "images").glob(".new-*"))
            gone[0].unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    load(list_images(root), 8)
    assert len(gone) == 1
    assert from_cache(load(list_images(root), 8))
    assert len(list((cache_folder() / "images").iterdir())) == 1


def test_without_locks_only_an_old_file_is_a_leftover(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    folder = cache_folder() / "images"
    folder.mkdir(parents=True)
    for name in (".new-old", ".new-young"):
        (folder / name).touch()
    os.utime(folder / ".new-old", (0, 0))
    load(list_images(root), 8)
    assert [path.name for path in folder.glob(".new-*")] == [".new-young"]


def test_several_builders_at_once_end_with_one_whole_entry(root: Path) -> None:
    children = [child() for _ in range(3)]
    for one in children:  # each has imported what it needs, or soon has
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    answers = [one.communicate()[0] for one in children]
    assert [one.returncode for one in children] == [0, 0, 0]
    decoded = load(list_images(root), 8)
    assert from_cache(decoded)
    assert set(answers) == {f"{decoded.sha256}\n"}
    assert len(list((cache_folder() / "images").iterdir())) == 1


def test_a_builder_that_was_faster_leaves_a_whole_entry_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one moves its file over that of the first."""
    write = cache._write

    def second(entry: Path, *rest: object) -> None:
        write(entry, *rest)  # type: ignore[arg-type]
        write(entry, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_write", second)
    first = load(list_images(root), 8)
    assert from_cache(again := load(list_images(root), 8))
    assert np.array_equal(again.pixels, first.pixels)


def test_the_cache_lies_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("OKDC_CACHE", "~/mine")
    assert cache_folder() == Path("/home/me/mine")
    monkeypatch.setenv("OKDC_CACHE", "")
    assert cache_folder() == Path("/xdg/okdc")
    monkeypatch.delenv("OKDC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/me/.cache/okdc")
