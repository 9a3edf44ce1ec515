"""Decoding by processes: the same as by threads, and nothing is left of them when the parent ends."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from asking import picture, write_tree
from PIL import Image

from okdc.data import decoding, workers
from okdc.data.decoding import decode
from okdc.data.images import read
from okdc.data.listing import list_images
from okdc.data.paths import Paths
from okdc.errors import DataError

COUNT = 150


@pytest.fixture
def files() -> Paths:
    return list_images(write_tree(Path("root"), {"train": {"a": COUNT - 1, "b": 1}})).files


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MANY", 100)
    monkeypatch.setattr(workers, "cores", lambda: 2)


def test_few_files_or_one_core_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert workers.forks(workers.MANY)
    assert not workers.forks(workers.MANY - 1)
    monkeypatch.setattr(workers, "cores", lambda: 1)
    assert not workers.forks(workers.MANY)


def test_processes_decode_what_threads_do(files: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not workers.forks(COUNT)
    expected = decode(files, 8)
    monkeypatch.setattr(workers, "MANY", COUNT)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    parent = os.getpid()

    def elsewhere(*args: object) -> object:
        assert os.getpid() != parent
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "read", elsewhere)
    seen: list[tuple[int, int]] = []
    pixels, sha256, _ = decode(files, 8, lambda done, total: seen.append((done, total)))
    assert np.array_equal(pixels, expected[0])
    assert sha256 == expected[1]
    assert sha256 == hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()
    assert seen == [(64, COUNT), (128, COUNT), (COUNT, COUNT)]


@pytest.mark.usefixtures("processes")
def test_large_images_are_decoded_in_smaller_parts(files: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decode(files, 8)
    monkeypatch.setattr(decoding, "_PART_BYTES", 50 * 8 * 8 * 3)
    seen: list[int] = []
    result = decode(files, 8, lambda done, _: seen.append(done))
    assert np.array_equal(result[0], expected[0])
    assert result[1] == expected[1]
    assert seen == [100, COUNT]  # at the first end of a part after each 64


@pytest.mark.usefixtures("processes")
def test_processes_list_every_file_that_is_no_whole_image(files: Paths) -> None:
    files[3].write_bytes(b"")
    files[149].write_bytes(b"<html>")
    files[70].unlink()
    with pytest.raises(DataError, match="3 of 150 images cannot be read") as caught:
        decode(files, 8)
    assert [line.rpartition(": ")[::2] for line in caught.value.details] == [
        (str(files[3]), "zero bytes"),
        (str(files[70]), "No such file or directory"),
        (str(files[149]), "not an image of a known format"),
    ]


@pytest.mark.usefixtures("processes")
def test_an_image_that_looks_like_an_attack_is_refused_in_a_process_too(
    files: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture(1, 20)).save(files[5])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # a warning of Pillow's from here, an error from twice as many
    with pytest.raises(DataError, match=r"1 of 150 images cannot be read, .*exceeds limit"):
        decode(files, 8)


@pytest.mark.usefixtures("processes")
def test_a_worker_that_is_killed_is_an_error_in_words(files: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def killed(*_: object) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(decoding, "read", killed)
    with pytest.raises(DataError, match="a process that decodes the 150 images was killed") as caught:
        decode(files, 8)
    assert "data.image_size" in caught.value.hint


@pytest.mark.usefixtures("processes")
def test_memory_that_runs_out_in_a_worker_runs_out_in_the_parent(files: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "read", full)
    with pytest.raises(MemoryError):
        decode(files, 8)


def leave_a_trace(number: int) -> int:
    Path(f"done-{number}").touch()
    time.sleep(0.001)
    return number


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("files", [99, 100])
def test_what_waits_for_a_worker_is_dropped_when_nobody_wants_it_any_more(files: int) -> None:
    assert workers.forks(files) is (files == 100)
    with pytest.raises(KeyboardInterrupt), workers.pool(files) as pool:
        results = pool.map(leave_a_trace, range(2000))
        assert next(results) == 0
        raise KeyboardInterrupt
    assert len(list(Path().glob("done-*"))) < 2000


# --- signals

SLOW = f"""
import os, time
from pathlib import Path
from okdc.data import decoding, workers
workers.cores = lambda: 2
def read(content, transform, real=decoding.read):
    Path("worker-" + str(os.getpid())).touch()
    time.sleep(0.5)
    return real(content, transform)
decoding.read = read
try:
    decoding.decode([Path("one.png")] * {workers.MANY}, 8)
except KeyboardInterrupt:
    print("stopped")
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").exists() or ") Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_say_nothing_of_ctrl_c_and_do_not_outlive_their_parent(number: signal.Signals) -> None:
    Image.fromarray(picture(1, 8)).save("one.png")
    parent = subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while len(pids := [int(path.name.partition("-")[2]) for path in Path().glob("worker-*")]) < 2:
            assert parent.poll() is None
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # as a terminal does
        else:
            parent.kill()
        out, err = parent.communicate(timeout=60)
        assert (out, err) == ("stopped\n" if number == signal.SIGINT else "", "")
        until = time.monotonic() + 60
        while any(map(alive, pids)):
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait()
