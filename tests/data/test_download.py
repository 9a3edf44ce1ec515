"""Against a server of the test's own that serves what it is told to, whole, in part or wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from lookalike import packed, write_cifar, write_cinic
from reading import read_data
from serving import Server, change_source, publish, served

from okdc.data import DATASETS, download, find
from okdc.data import cinic10 as cinic
from okdc.errors import DataError, DiskError, UsageError
from okdc.runs import locks


@pytest.fixture
def server() -> Iterator[Server]:
    with served() as serving:
        yield serving


@pytest.fixture
def cifar10(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = write_cifar(Path("made"), monkeypatch, train=20, test=10)
    publish(packed(made), "cifar10", server, monkeypatch)
    return server


@pytest.fixture
def cinic10(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(cinic, "PER_SPLIT", 20)
    made = write_cinic(Path("made"))
    (made / "README.md").write_text("CINIC-10", encoding="utf-8")
    publish(packed(made), "cinic10", server, monkeypatch)
    return server


def get(name: str, root: str | None = "root", url: str | None = None) -> dict[str, Any]:
    return download.download(name, root, url, lambda *_: None)


def is_whole(name: str, root: Path) -> bool:
    archive = find(name).archive
    assert archive is not None
    return archive.is_whole(root)


def refused(kind: type[Exception], said: str, name: str = "cifar10", url: str | None = None) -> Exception:
    with pytest.raises(kind) as caught:
        get(name, url=url)
    assert said in str(caught.value), caught.value
    return caught.value


def below(root: str = "root") -> set[str]:
    """All that is in the root, but the archive on its way."""
    return {str(f.relative_to(root)) for f in Path(root).rglob("*") if f.is_file() and f.name != "archive.part"}


MADE = {"data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta"}
CIFAR_FILES = {f"cifar-10-batches-py/{name}" for name in MADE}


# --- what it brings


def test_what_was_downloaded_can_be_read_and_nothing_else_is_left(cifar10: Server) -> None:
    facts = get("cifar10")
    assert below() == CIFAR_FILES
    assert [f.name for f in Path("root").iterdir()] == ["cifar-10-batches-py"]
    assert read_data("cifar10", "root", 32).fingerprint == read_data("cifar10", "made", 32).fingerprint
    assert facts == {
        "name": "cifar10",
        "root": "root",
        "url": cifar10.url,
        "bytes": len(cifar10.content),
        "md5": hashlib.md5(cifar10.content).hexdigest(),
        "already_there": False,
    }


def test_cifar100_comes_beside_cifar10(cifar10: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    get("cifar10")
    publish(packed(write_cifar(Path("made100"), monkeypatch, "cifar100", 100, 100)), "cifar100", cifar10, monkeypatch)
    get("cifar100")
    assert sorted(f.name for f in Path("root").iterdir()) == ["cifar-10-batches-py", "cifar-100-python"]
    assert len(read_data("cifar100", "root", 32).classes) == 100


@pytest.mark.parametrize("folder", ["", "CINIC-10"])
def test_cinic10_brings_its_three_splits_whether_or_not_they_lie_in_a_folder(
    cinic10: Server, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    if folder:
        Path("outer").mkdir()
        Path("made").rename(Path("outer") / folder)
        publish(packed(Path("outer")), "cinic10", cinic10, monkeypatch)
    get("cinic10")
    assert sorted(f.name for f in Path("root").iterdir()) == ["README.md", "test", "train", "valid"]
    assert len(read_data("cinic10", "root").labels) == 60


def test_a_second_time_there_is_nothing_to_do(cifar10: Server) -> None:
    get("cifar10")
    written = {f: f.stat().st_mtime_ns for f in Path("root").rglob("*")}
    cifar10.status = 500
    assert get("cifar10")["already_there"]
    assert len(cifar10.requests) == 1
    assert {f: f.stat().st_mtime_ns for f in Path("root").rglob("*")} == written


@pytest.mark.usefixtures("cifar10")
def test_a_damaged_file_is_replaced_with_its_folder() -> None:
    get("cifar10")
    Path("root/cifar-10-batches-py/data_batch_2").write_bytes(b"damaged")
    get("cifar10")
    assert is_whole("cifar10", Path("root"))
    assert below() == CIFAR_FILES


def test_a_mirror_is_asked_instead_and_its_file_checked_all_the_same(
    cifar10: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, url = cifar10.url, "http://127.0.0.1:9/elsewhere"
    archive = change_source("cifar10", monkeypatch, url=url).archive
    assert archive is not None
    cifar10.content = cifar10.content[:-1] + b"?"
    refused(DataError, f"{mirror}: expected MD5 {archive.md5}, found ", url=mirror)
    cifar10.content = packed(Path("made"))
    publish(cifar10.content, "cifar10", cifar10, monkeypatch)
    assert get("cifar10", url=mirror)["url"] == mirror


def test_a_file_on_a_disk_is_a_mirror_too(cifar10: Server) -> None:
    Path("copy.tar.gz").write_bytes(cifar10.content)
    get("cifar10", url=Path("copy.tar.gz").absolute().as_uri())
    assert below() == CIFAR_FILES
    assert cifar10.requests == []


# --- where


def test_the_root_is_the_flag_the_variable_or_where_recipes_look(
    cifar10: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get("cifar10", None)["root"] == "data"
    monkeypatch.setenv("OKDC_DATA_ROOT", "variable")
    assert get("cifar10", None)["root"] == "variable"
    assert get("cifar10", "flag")["root"] == "flag"
    assert len(cifar10.requests) == 3
    assert all(is_whole("cifar10", Path(root)) for root in ("data", "variable", "flag"))


@pytest.mark.usefixtures("cinic10")
def test_what_lies_in_the_root_already_stays() -> None:
    Path("root/mine").mkdir(parents=True)
    Path("root/README.md").write_text("mine", encoding="utf-8")
    get("cinic10")
    assert Path("root/README.md").read_text(encoding="utf-8") == "mine"
    assert Path("root/mine").is_dir()
    assert is_whole("cinic10", Path("root"))


def test_a_folder_train_that_is_the_users_own_is_not_touched(cinic10: Server) -> None:
    Path("root/train/cat").mkdir(parents=True)
    Path("root/train/cat/1.png").write_bytes(b"mine")
    refused(DataError, f"{Path.cwd()}/root/train is in the way: ", "cinic10")
    assert below() == {"train/cat/1.png"}
    assert [f.name for f in Path("root").iterdir()] == ["train"]
    assert cinic10.requests == []


# --- a transfer that fails


@pytest.mark.parametrize("sized", [True, False])
def test_a_transfer_that_was_cut_is_not_taken_for_whole_and_goes_on_where_it_stopped(
    cifar10: Server, sized: bool
) -> None:
    cifar10.sized, cifar10.stops_at = sized, 1000
    error = refused(DataError, f"ended after 1,000 of {len(cifar10.content):,} bytes")
    assert "the same command" in getattr(error, "hint", "")
    assert below() == {f".okdc-download-cifar10/{locks.LOCK}"}
    refused(DataError, "ended after 2,000 of")
    cifar10.stops_at = None
    get("cifar10")
    assert cifar10.requests == [None, "bytes=1000-", "bytes=2000-"]
    assert below() == CIFAR_FILES


def test_a_server_that_cannot_go_on_from_the_middle_sends_it_all_again(cifar10: Server) -> None:
    cifar10.ranges, cifar10.stops_at = False, 1000
    refused(DataError, "ended after 1,000 of")
    cifar10.stops_at = None
    get("cifar10")
    assert cifar10.requests == [None, "bytes=1000-"]  # in place of what there was, not behind it
    assert below() == CIFAR_FILES


def test_a_beginning_that_is_bad_is_thrown_away_and_all_of_it_fetched(cifar10: Server) -> None:
    """Of another mirror, or of a power cut."""
    for bad in (b"?" * 1000, b"?" * len(cifar10.content), b"?" * (len(cifar10.content) + 5)):
        Path("root/.okdc-download-cifar10").mkdir(parents=True)
        Path("root/.okdc-download-cifar10/archive.part").write_bytes(bad)
        get("cifar10")
        assert below() == CIFAR_FILES
        shutil.rmtree("root")


def test_another_file_of_the_same_size_is_refused_and_not_kept(cifar10: Server) -> None:
    right = cifar10.content
    cifar10.content = right[:-1] + bytes([right[-1] ^ 1])
    digest = hashlib.md5(cifar10.content).hexdigest()
    refused(DataError, f"expected MD5 {hashlib.md5(right).hexdigest()}, found {digest}")
    assert not list(Path("root").rglob("*.part"))
    cifar10.content = right
    get("cifar10")
    assert cifar10.requests == [None, None]


@pytest.mark.parametrize(
    ("sized", "longer", "said"),
    [
        (True, b"more", "the server offers "),
        (False, b"more", "the server sends more: not the published archive"),
        (True, None, "the server offers 6: not the published archive"),
    ],
)
def test_a_file_of_another_size_is_refused_without_being_fetched(
    cifar10: Server, sized: bool, longer: bytes | None, said: str
) -> None:
    cifar10.sized, cifar10.content = sized, cifar10.content + longer if longer else b"<html>"
    refused(DataError, said)
    assert not list(Path("root").rglob("*.part"))


@pytest.mark.parametrize(("status", "said"), [(404, "HTTP 404 Not Found"), (503, "HTTP 503 Service Unavailable")])
def test_what_a_server_refuses_is_told_in_words(cifar10: Server, status: int, said: str) -> None:
    cifar10.status = status
    assert "--url URL" in getattr(refused(DataError, f"{cifar10.url}: {said}"), "hint", "")


def test_a_server_that_is_not_there_is_told_in_words(cifar10: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(DataError, ": no answer: Connection refused", url=f"http://127.0.0.1:{port}/x")
    refused(DataError, ": no answer: No such file or directory", url="file:///nowhere/x.tar.gz")
    refused(DataError, "--url: unknown url type: 'mirror'", url="mirror")
    assert cifar10.requests == []


@pytest.mark.usefixtures("cifar10")
@pytest.mark.parametrize(
    ("sent", "said", "kept"),
    [
        (b"nonsense\r\n\r\n", ": no answer: nonsense", None),
        (b"", ": no answer: ", None),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", ": the transfer broke off: timed out", b"abc"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            ": the transfer broke off: timed out",
            b"abc",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx",
            ": the transfer ended after 3 of ",
            b"abc",
        ),
        (b"HTTP/1.1 206 OK\r\nContent-Range: bytes 7-8/9\r\n\r\nabc", "the server sends others", None),
    ],
    ids=["nonsense", "nothing", "stalls", "stalls in a chunk", "ends in a chunk", "another part"],
)
def test_a_server_that_talks_nonsense_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, said: str, kept: bytes | None
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(sent)
                if "broke off" in said:
                    over.wait()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            refused(DataError, said, url=f"http://127.0.0.1:{listening.getsockname()[1]}/x")
        finally:
            over.set()
            thread.join()
    parts = [part.read_bytes() for part in Path("root").rglob("*.part")]
    assert parts == ([] if kept is None else [kept])


@pytest.mark.usefixtures("cifar10")
def test_only_one_process_downloads_to_a_root() -> None:
    work = Path("root/.okdc-download-cifar10")
    work.mkdir(parents=True)
    with locks.held(work):
        refused(DataError, "another process is downloading to root")
    get("cifar10")
    assert below() == CIFAR_FILES


# --- a disk or an archive that fails


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    cifar10: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    change_source("cifar10", monkeypatch, unpacked=187_000_000)
    refused(DiskError, "about 187 MB are needed for cifar10, found 5 MB free")
    assert cifar10.requests == []
    assert not below()


def test_a_disk_that_fills_while_the_file_comes_is_told(cifar10: Server) -> None:
    Path("root/.okdc-download-cifar10").mkdir(parents=True)
    Path("root/.okdc-download-cifar10/archive.part").symlink_to("/dev/full")
    refused(DiskError, "archive.part: cannot be written: No space left on device")
    assert cifar10.requests == [None]


def test_a_disk_that_fills_while_it_is_unpacked_leaves_nothing_half_there(
    cifar10: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = tarfile.TarFile.extract

    def third_is_too_much(tar: tarfile.TarFile, member: tarfile.TarInfo, *rest: Any, **options: Any) -> None:
        if member.name.endswith("data_batch_3"):
            raise OSError(errno.ENOSPC, "No space left on device")
        extract(tar, member, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", third_is_too_much)
        refused(DiskError, "tree.new: cannot be written: No space left on device")
        assert below() == {f".okdc-download-cifar10/{locks.LOCK}"}
    get("cifar10")
    assert below() == CIFAR_FILES
    assert cifar10.requests == [None]  # the archive was there


@pytest.mark.parametrize("at", ["extract", "rename"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_process_that_is_killed_leaves_it_whole_or_missing_and_the_next_finishes_it(
    cinic10: Server, monkeypatch: pytest.MonkeyPatch, at: str, nth: int
) -> None:
    class Killed(BaseException):
        pass

    calls = 0

    def killing(call: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Killed
            return call(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        owner: Any = tarfile.TarFile if at == "extract" else Path
        patch.setattr(owner, at, killing(getattr(owner, at)))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the dead tidy nothing up
        with pytest.raises(Killed):
            get("cinic10")
    for split in cinic.SPLITS:  # each is there with all of its images, or is not there
        assert cinic.count(Path("root"))[split] in (0, 20)
    get("cinic10")
    assert is_whole("cinic10", Path("root"))
    assert sorted(f.name for f in Path("root").iterdir()) == ["README.md", "test", "train", "valid"]
    assert len(cinic10.requests) == 1


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
    return made


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("cifar-10-batches-py/../../../../evil"),
        member("cifar-10-batches-py/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("cifar-10-batches-py/link", tarfile.LNKTYPE, "../../evil"),
        member("cifar-10-batches-py/pipe", tarfile.FIFOTYPE),
        member("cifar-10-batches-py/link", tarfile.SYMTYPE, "data_batch_1"),
    ],
    ids=["above", "far above", "symlink", "hard link", "pipe", "symlink within"],
)
def test_an_archive_that_reaches_outside_or_holds_links_is_refused_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch, evil: tarfile.TarInfo
) -> None:
    made = write_cifar(Path("made"), monkeypatch, train=10, test=10)
    publish(packed(made, evil), "cifar10", server, monkeypatch)
    before = {f for f in Path.cwd().parent.rglob("*") if "root" not in f.parts}
    refused(DataError, "cifar10: the archive ")
    assert {f for f in Path.cwd().parent.rglob("*") if "root" not in f.parts} == before
    assert not {f for f in below() if not f.endswith(locks.LOCK)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no archive at all", "cannot be unpacked: "),
        (None, "expected cifar-10-batches-py in the archive, found other"),
    ],
)
def test_an_archive_of_something_else_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    write_cifar(Path("made"), monkeypatch, train=10, test=10)
    Path("else/other").mkdir(parents=True)
    publish(content or packed(Path("else")), "cifar10", server, monkeypatch)
    refused(DataError, said)
    assert not (Path("root") / "other").exists()


def test_an_archive_that_ends_early_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_cifar(Path("made"), monkeypatch, train=10, test=10)
    whole = packed(made)
    publish(whole[: len(whole) // 2], "cifar10", server, monkeypatch)
    refused(DataError, "cifar10: the archive cannot be unpacked: ")
    assert not (Path("root") / "cifar-10-batches-py").exists()


# --- the command


def test_the_command_says_where_it_is_and_what_comes_next(cinic10: Server, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "download", "cinic10", "--data-root", "my cinic")
    assert answer.code == 0, answer.err
    assert answer.out == f"cinic10 is in {Path.cwd()}/my cinic\n"
    assert "1 of 1 MB" in answer.err  # the progress
    assert "next: okdc distill " in answer.err
    assert "--data-root 'my cinic'" in answer.err
    assert ask(capsys, "download", "cinic10", "--data-root", "my cinic").out.startswith("cinic10 was already in ")
    facts = json.loads(ask(capsys, "download", "cinic10", "--data-root", "my cinic", "--json").out)
    assert facts["already_there"]
    assert len(cinic10.requests) == 1


def test_what_it_brought_is_what_a_recipe_finds(cifar10: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "download", "cifar10").code == 0
    words = ["data.name=cifar10", "data.image_size=32", "data.val_fraction=0.3", "data.train_images=20"]
    answer = ask(capsys, "distill", *words, "optim.epochs=1", "optim.batch_size=8")
    assert answer.code == 0, answer.err
    assert len(cifar10.requests) == 1


def test_an_error_of_the_transfer_is_an_answer_of_the_command(
    cifar10: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar10.status = 404
    answer = ask(capsys, "download", "cifar10")
    assert answer.code == 2
    assert answer.err.startswith(f"error[data]: {cifar10.url}: HTTP 404 Not Found\n")
    assert not Path("data").exists()


def test_digits_are_there_without_a_download(capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "download", "digits")
    assert answer.code == 0
    assert answer.out == "digits was already in scikit-learn, nothing to download\n"
    assert "next: okdc distill digits_resnet8\n" in answer.err


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("imagenet", "imagenet is given to people who register", "{train,val}/<wnid>/*.JPEG"),
        ("folder", "these are your own images", "data.root=path/to/images"),
        ("mine:load", "these are your own images", "data.root=path/to/images"),
        ("cifr10", "no data set is called 'cifr10' (did you mean 'cifar10'?)", "cifar10, cifar100, cinic10"),
    ],
)
def test_a_name_without_an_archive_is_told_what_to_do(name: str, said: str, hint: str) -> None:
    assert hint in getattr(refused(UsageError, said, name), "hint", "")
    assert not Path("root").exists()


def test_the_published_sizes_and_sums_are_these() -> None:
    """From the makers' pages; a change here is a change of what is trusted."""
    archives = {name: archive for name in DATASETS.own if (archive := find(name).archive)}
    assert [(name, archive.size, archive.md5) for name, archive in archives.items()] == [
        ("cifar10", 170_498_071, "c58f30108f718f92721af3b95e74349a"),
        ("cifar100", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
        ("cinic10", 687_544_992, "6ee4d0c996905fe93221de577967a372"),
    ]
    assert all(archive.url.startswith("https://") for archive in archives.values())
