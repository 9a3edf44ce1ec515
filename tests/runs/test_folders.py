"""A folder comes into place whole or not at all, whoever else writes it and whatever ends the process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from okdc.errors import DiskError, RunError
from okdc.runs import folders, locks

HAS_EXCHANGE = sys.platform == "linux"


def build(out: Path, text: str, told: list[str] | None = None) -> None:
    with folders.whole(out, lambda folder: (folder / "kind").is_file(), "kind", (told or []).append) as folder:
        (folder / "kind").write_text(text)


def names(folder: Path | str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(params=[True, False] if HAS_EXCHANGE else [False])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can exchange two names in one step."""
    if not request.param:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    return bool(request.param)


@pytest.mark.usefixtures("exchange")
def test_a_folder_is_replaced_and_nothing_else_is_left() -> None:
    out = Path("out")
    for text in ("first", "second"):
        build(out, text)
        assert (out / "kind").read_text() == text
        assert names() == ["out"]
    with pytest.raises(ZeroDivisionError), folders.whole(out, Path.is_dir, "kind") as folder:
        (folder / "kind").write_text("half")
        raise ZeroDivisionError
    assert (out / "kind").read_text() == "second"
    assert names() == ["out"]


@pytest.mark.skipif(not HAS_EXCHANGE, reason="renameat2 is of Linux")
def test_where_names_can_be_exchanged_none_is_ever_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replaced folder has its name in every moment: no rename takes it away."""
    build(Path("out"), "first")
    renamed: list[Path] = []
    monkeypatch.setattr(Path, "rename", lambda path, _: renamed.append(path))
    build(Path("out"), "second")
    assert Path("out/kind").read_text() == "second"
    assert not renamed


def test_what_was_there_comes_back_where_the_new_cannot_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses the second of the two renames."""
    out = Path("out")
    build(out, "first")
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path.name.endswith(".new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(DiskError, match="out: cannot be written: No space left"):
        build(out, "second")
    assert (out / "kind").read_text() == "first"
    assert names() == ["out"]


KILLED = """
import json, os, shutil, sys
from pathlib import Path
from okdc.runs import folders

def counted(work):
    def step(*arguments, **options):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return work(*arguments, **options)
    return step

def build(text):
    with folders.whole(Path("out"), Path.is_dir, "kind") as folder:
        (folder / "kind").write_text(text)

if sys.argv[1] == "False":
    folders._exchange = lambda *_: False
codes = []
while not codes or codes[-1]:
    steps = len(codes)
    os.mkdir(f"at{steps}")
    child = os.fork()
    if child == 0:
        os.chdir(f"at{steps}")
        build("first")
        left = steps
        folders._exchange = counted(folders._exchange)
        shutil.rmtree, Path.rename, Path.mkdir = counted(shutil.rmtree), counted(Path.rename), counted(Path.mkdir)
        build("second")
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.mark.parametrize("has_exchange", [True, False] if HAS_EXCHANGE else [False])
def test_killed_at_any_step_the_earlier_folder_or_the_new_one_is_there_or_comes_back_at_the_next_start(
    has_exchange: bool,
) -> None:
    words = [sys.executable, "-c", KILLED, str(has_exchange)]
    codes = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    assert codes == [9] * (len(codes) - 1) + [0]
    assert len(codes) >= 5
    missing = []
    for steps in range(len(codes)):
        out, told = Path(f"at{steps}/out"), list[str]()
        if not out.exists():
            missing.append(steps)
            assert (folders.earlier(out) / "kind").read_text() == "first"
        with pytest.raises(ZeroDivisionError), folders.whole(out, Path.is_dir, "kind", told.append):
            assert (out / "kind").read_text() in ("first", "second"), "put in order before anything is built"
            raise ZeroDivisionError
        assert names(out.parent) == ["out"], "what the killed process left is gone"
        assert len(told) == (steps in missing)
    assert len(missing) == (0 if has_exchange else 1)


def test_a_second_process_is_refused_and_takes_nothing_away() -> None:
    out = Path("out")
    build(out, "first")
    code = "from test_folders import build; from pathlib import Path; build(Path('out'), 'other')"
    words = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with folders.whole(out, Path.is_dir, "kind") as folder:
        (folder / "kind").write_text("second")
        other = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert "out is being written by another process" in other.stderr
        with pytest.raises(RunError, match="is being written by another process"):
            build(out, "third")  # nor may this process, from another thread
        assert (folder / "kind").read_text() == "second", "its folder is untouched"
    assert (out / "kind").read_text() == "second"
    build(out, "third")
    assert (out / "kind").read_text() == "third"


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removes the file as it ends: a lock on a file without a name would keep nobody out."""
    opened = os.open
    unlinked: list[Path] = []

    def opening(path: Path, *arguments: int) -> int:
        descriptor = opened(path, *arguments)
        if not unlinked:
            unlinked.append(path)
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", opening)
    with locks.written(Path("out")) as certain:
        assert certain
        assert unlinked
        with pytest.raises(RunError), locks.written(Path("out")):
            pass


def test_a_file_system_without_locks_costs_the_certainty_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = Path(".out.01234567.new")
    left.mkdir()
    monkeypatch.setattr(fcntl, "flock", none)
    build(Path("out"), "first")
    assert names() == [left.name, "out"], "it may be another process's"


def test_what_a_link_leads_to_is_replaced_and_the_link_stays() -> None:
    Path("disk").mkdir()
    build(Path("disk/real"), "first")
    Path("out").symlink_to("disk/real")
    build(Path("out"), "second")
    assert Path("out").is_symlink()
    assert Path("disk/real/kind").read_text() == "second"
    assert names("disk") == ["real"]


def test_a_folder_has_the_rights_that_the_user_s_mask_leaves() -> None:
    before = os.umask(0o027)
    try:
        build(Path("out"), "first")
    finally:
        os.umask(before)
    assert Path("out").stat().st_mode & 0o777 == 0o750


def test_only_what_a_killed_process_left_of_this_very_folder_is_removed() -> None:
    others = [".out.new", ".out.01234567.new.bak", ".outer.01234567.new", ".out.0123456z.new", "out.01234567.new"]
    left = [".out.01234567.new", ".out.rejected.89abcdef.new"]
    for name in (*others, *left):
        Path(name).mkdir()
    build(Path("out"), "first")
    assert names() == sorted([*others, "out"])
