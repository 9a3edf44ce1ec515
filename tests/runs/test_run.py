from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making import LOGGED, result_of, run_info, write_json

from okdc.errors import DiskError, RunError
from okdc.runs import locks
from okdc.runs import run as run_module
from okdc.runs.artefacts import Provenance
from okdc.runs.files import read_json, write
from okdc.runs.log import log_bytes
from okdc.runs.provenance import provenance
from okdc.runs.run import RunDir, runs


def made(stem: str = "digits", out: Path | None = None, at: str = "2026-01-01T00:00:00", **facts: object) -> RunDir:
    return RunDir.create(stem, run_info(at, **{"recipe": {"seed": 0}, **facts}), out)


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- where a run goes


def test_runs_are_numbered_by_recipe_from_one_on() -> None:
    assert [made(stem).path for stem in ("a", "a", "b", "a")] == [
        Path("runs/a-1"),
        Path("runs/a-2"),
        Path("runs/b-1"),
        Path("runs/a-3"),
    ]


def test_a_number_is_never_used_again_while_a_later_one_exists() -> None:
    made(), made(), made()
    RunDir(Path("runs/digits-2")).discard()
    Path("runs/digits-9").touch()  # not a run, but taken
    Path("runs/digits-old").mkdir()
    assert made().path == Path("runs/digits-10")


def test_a_name_that_another_process_takes_meanwhile_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made(), made(), made()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))  # as if they came after this process had looked
    assert made().path == Path("runs/digits-4")


def test_processes_that_start_together_get_runs_of_their_own() -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1]); from making import run_info; from okdc.runs.run import RunDir\n"
        "for _ in range(20): print(RunDir.create('a', run_info()).path)"
    )
    tests = str(Path(__file__).parents[1])
    both = [subprocess.Popen([sys.executable, "-c", code, tests], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    taken = [line for process in both for line in process.communicate()[0].split()]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(taken) == sorted(f"runs/a-{n}" for n in range(1, 41))


def test_of_two_that_begin_in_one_folder_at_once_the_second_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found the folder empty before either has written."""
    make = run_module.new_folder

    def overtaken(stem: str, out: Path | None = None) -> Path:
        path = make(stem, out)
        monkeypatch.setattr(run_module, "new_folder", make)
        made(out=out, processes=2)
        return path

    monkeypatch.setattr(run_module, "new_folder", overtaken)
    with pytest.raises(RunError, match="here already holds a run"):
        made(out=Path("here"), processes=1)
    assert RunDir(Path("here")).read_info().processes == 2
    with locks.written(Path("there")), pytest.raises(RunError, match="there is being written by another process"):
        made(out=Path("there"))


def test_a_run_starts_with_its_recipe_and_its_facts() -> None:
    run = made(recipe_sha256="abc")
    assert run.recipe.read_text() == "seed = 0\n"
    assert run.read_info().recipe_sha256 == "abc"
    assert names(run.path) == {"recipe.toml", "run.json"}


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "no parent"])
def test_a_named_directory_is_taken_as_it_is_named(there: str) -> None:
    out = Path("deep/er/here" if there == "no parent" else "here")
    if there == "an empty folder":
        out.mkdir()
    assert made(out=out).path == out
    assert not Path("runs").exists()


def test_a_directory_that_holds_a_run_is_refused_and_left_alone() -> None:
    first = made(out=Path("here"), processes=1)
    with pytest.raises(RunError, match="here already holds a run") as caught:
        made(out=Path("here"), processes=2)
    assert "okdc resume here" in caught.value.hint
    assert first.read_info().processes == 1


def test_a_directory_with_anything_in_it_and_a_file_are_refused() -> None:
    Path("folder").mkdir()
    Path("folder/thesis.tex").write_text("years of work")
    for out in (Path("folder"), Path("folder/thesis.tex")):
        with pytest.raises(RunError, match="is not an empty folder"):
            made(out=out)
    assert Path("folder/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("out", ["/dev/null/x", "/dev/null/x/y", "file/x"])
def test_a_place_below_a_file_is_refused_before_any_work(out: str) -> None:
    Path("file").touch()
    with pytest.raises(DiskError, match="is not a folder") as caught:
        run_module.refuse_taken(Path(out))
    assert str(Path(out).absolute()) in caught.value.message
    assert caught.value.hint


def test_a_read_only_folder_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # no permission stops root
    for out in (None, Path("here")):
        with pytest.raises(DiskError, match="is read-only"):
            run_module.refuse_taken(out)


def test_a_folder_that_the_system_will_not_make_is_a_disk_error() -> None:
    with pytest.raises(DiskError, match="/proc/okdc: cannot be written"):
        made(out=Path("/proc/okdc"))


def test_a_run_whose_first_files_cannot_be_written_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([os.fsync, os.fsync, no_space])  # recipe.toml and its folder are written, run.json is not
    monkeypatch.setattr(os, "fsync", lambda number: next(calls)(number))
    with pytest.raises(DiskError, match="No space left on device"):
        made()
    assert names(Path("runs")) == set()


# --- finding runs


def test_open_takes_a_run_and_refuses_everything_else_with_what_there_is() -> None:
    run = made()
    assert RunDir.open(run.path) == run
    Path("folder").mkdir()
    Path("file").touch()
    for path, said in (("nowhere", "no such run"), ("file", "no such run"), ("folder", "is not a run")):
        with pytest.raises(RunError, match=said) as caught:
            RunDir.open(Path(path))
        assert path in caught.value.message
        assert "runs/digits-1" in caught.value.hint


def test_without_any_run_the_hint_is_to_start_one() -> None:
    with pytest.raises(RunError) as caught:
        RunDir.open(Path("nowhere"))
    assert "okdc distill" in caught.value.hint


def test_a_run_is_resumable_until_it_is_complete_or_failed() -> None:
    fresh, failed, complete = made(), made(), made()
    failed.note(failed="the loss is not finite")
    write_json(complete.result, {})
    assert [run.state() for run in (fresh, failed, complete)] == ["resumable", "failed", "complete"]
    assert failed.read_info().started_at == "2026-01-01T00:00:00"  # a note adds


def test_the_newest_run_is_the_one_started_last_and_not_the_one_named_last() -> None:
    first = made("z", at="2026-01-01T10:00:00")
    last = made("a", at="2026-01-02T10:00:00")
    before = made("m", at="2026-01-01T20:00:00")
    assert [run.path for run in runs()] == [first.path, before.path, last.path]
    assert RunDir.newest("resumable") == last
    for run in (first, before):
        write_json(run.result, {})
    assert RunDir.newest("complete") == before


def test_no_run_of_a_state_names_the_folder_and_the_next_command() -> None:
    with pytest.raises(RunError, match=f"no complete run in {Path.cwd()}/runs") as caught:
        RunDir.newest("complete")
    assert "okdc distill" in caught.value.hint
    made()
    with pytest.raises(RunError) as caught:
        RunDir.newest("complete")
    assert "okdc resume" in caught.value.hint


def test_other_things_below_runs_are_no_runs() -> None:
    Path("runs/notes").mkdir(parents=True)
    Path("runs/file").touch()
    Path("runs/half").mkdir()
    Path("runs/half/recipe.toml").write_text("seed = 0")
    assert runs() == []


# --- writing


def cut_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)


def cut_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", no_space)


def cut_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", no_space)


@pytest.mark.parametrize("cut", [cut_fsync, cut_replace, cut_open])
@pytest.mark.parametrize("keep", [True, False])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    cut: Callable[[pytest.MonkeyPatch], None], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("state").mkdir()
    path, previous = Path("state/x.bin"), Path("state/x.previous.bin")
    write(path, b"first", previous)
    write(path, b"second", previous)
    with monkeypatch.context() as patch:
        cut(patch)
        with pytest.raises(DiskError, match=r"state/x\.bin: cannot be written: No space left on device") as caught:
            write(path, b"third", previous if keep else None)
    assert "nothing that was there is lost" in caught.value.hint
    assert path.read_bytes() == b"second"
    assert previous.read_bytes() == b"first"
    assert names(Path("state")) == {"x.bin", "x.previous.bin"}


def test_a_file_that_stepped_aside_comes_back_where_the_new_one_cannot_come(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("x"), b"old")
    replace = Path.replace

    def arriving(path: Path, target: Path) -> Path:
        if path.name == ".x.new":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", arriving)
    with pytest.raises(DiskError, match="x: cannot be written"):
        write(Path("x"), b"new", previous=Path("y"))
    assert Path("x").read_bytes() == b"old"
    assert not Path(".x.new").exists()


def test_a_full_disk_while_writing_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that really is full."""
    Path("state").mkdir()
    write(Path("state/x"), b"old")
    monkeypatch.setattr(Path, "with_name", lambda *_: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(DiskError, match="No space left on device"):
        write(Path("state/x"), b"new")
    assert Path("state/x").read_bytes() == b"old"


def test_a_write_is_on_disk_before_it_takes_the_place_of_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def told_fsync(number: int) -> None:
        order.append("fsync")
        fsync(number)

    def told_replace(self: Path, target: Path) -> Path:
        order.append(f"-> {target}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "replace", told_replace)
    write(Path("x"), b"1")
    write(Path("x"), b"2", previous=Path("y"))
    once = ["fsync", "-> x", "fsync"]  # the file, its place, the folder that knows of it
    assert order == [*once, "fsync", "-> y", "-> x", "fsync"]
    assert (Path("x").read_bytes(), Path("y").read_bytes()) == (b"2", b"1")


def test_the_first_write_has_no_previous() -> None:
    write(Path("x"), b"1", previous=Path("y"))
    assert not Path("y").exists()


def test_json_is_read_as_written_and_damage_is_named() -> None:
    write_json(Path("x.json"), {"title": "größe", "n": 1.5})
    assert read_json(Path("x.json")) == {"title": "größe", "n": 1.5}
    for content, said in ((b'{"n": 1', "not JSON"), (b"\xff\xfe", "not JSON"), (b"[1]", "expected a JSON object")):
        Path("x.json").write_bytes(content)
        with pytest.raises(RunError, match=rf"x\.json: {said}"):
            read_json(Path("x.json"))
    with pytest.raises(RunError, match=r"y\.json: cannot be read: No such file"):
        read_json(Path("y.json"))


# --- the log


def rows(count: int) -> list[dict[str, Any]]:
    return [{"epoch": n, **LOGGED, "loss": 1 / n} for n in range(1, count + 1)]


def test_the_log_keeps_what_was_appended() -> None:
    run = made()
    assert run.rows() == []
    for row in rows(3):
        run.append(row)
    assert run.rows() == rows(3)
    assert len(run.log.read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_last_line_that_was_cut_short_does_not_count(cut: int) -> None:
    run = made()
    for row in rows(3):
        run.append(row)
    whole = run.log.read_bytes()
    run.log.write_bytes(whole[:-cut])
    kept = 3 if cut == 1 else 2  # without its line end the last row is still whole
    assert run.rows() == rows(kept)
    assert run.restore_rows(rows(2)) is False
    run.append(rows(3)[-1])
    assert run.log.read_bytes() == whole


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_log_is_cut_to_what_a_checkpoint_has_counted(count: int) -> None:
    run = made()
    for row in rows(3):
        run.append(row)
    assert run.restore_rows(rows(count)) is False
    assert run.rows() == rows(count)


@pytest.mark.parametrize("damage", [b"", b'{"epoch": 1}\n', b'{"epoch": 1, "loss": 1.0}\n', b"\x00" * 9])
def test_rows_that_the_log_has_lost_are_written_again_from_the_checkpoint(damage: bytes) -> None:
    run = made()
    run.log.write_bytes(damage)
    assert run.restore_rows(rows(3)) is True
    assert run.rows() == rows(3)


def test_a_row_out_of_order_and_what_follows_it_do_not_count() -> None:
    run = made()
    for row in (*rows(2), rows(4)[3], rows(3)[2]):
        run.append(row)
    assert run.rows() == rows(2)


@pytest.mark.parametrize(
    "line",
    [
        b'{"epoch": 2}',
        b"[" * 9000,
        *(json.dumps({"epoch": 2, **LOGGED, key: value}).encode() for key, value in (
            ("seconds", "1"), ("lr", None), ("loss", math.nan), ("losses", 3), ("val_top1_pct", [1]),
            ("train_top1_pct", {"student0": math.inf}), ("val_balanced_pct", {"student0": "high"}),
        )),
    ],
)  # fmt: skip
def test_a_row_that_no_training_writes_and_what_follows_it_do_not_count(line: bytes) -> None:
    run = made()
    run.log.write_bytes(log_bytes(rows(1)) + line + b"\n" + log_bytes(rows(3)[2:]))
    assert run.rows() == rows(1)


def test_the_log_of_a_complete_run_is_proven() -> None:
    run = made()
    for row in rows(3):
        run.append(row)
    content = run.log.read_bytes()
    write_json(run.result, result_of("fefr", {}, log_sha256=hashlib.sha256(content).hexdigest()))
    assert run.rows() == rows(3)
    for other in (content[:-1], content[: len(content) // 2], b"", content.replace(b"1.0", b"1.1")):
        run.log.write_bytes(other)
        with pytest.raises(RunError, match=r"log\.jsonl is not the file"):
            run.rows()


def test_a_log_on_a_full_disk_says_how_to_go_on() -> None:
    run = made()
    run.log.symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"log\.jsonl: cannot be written: No space left on device") as caught:
        run.append({"epoch": 1})
    assert f"okdc resume {run.path}" in caught.value.hint


def test_provenance_is_the_command_and_the_versions() -> None:
    found = provenance(["okdc", "distill", "seed=1"])
    assert found.command == ("okdc", "distill", "seed=1")
    assert {"okdc", "python", "torch", "numpy"} <= set(found.versions)
    assert Provenance.model_validate(json.loads(json.dumps(found.to_json()))) == found
