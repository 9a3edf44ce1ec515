"""okdc.bundle.web: a bundle and its page in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bundles import of_digits
from making import write_json

from okdc.bundle import web
from okdc.errors import CheckFailed, OkdcError, RunError, UsageError
from okdc.recipe import catalog
from okdc.runs.files import read_json
from okdc.runs.run import RunDir


@pytest.fixture
def bundle(finished: RunDir, blob: bytes, tmp_path: Path) -> Path:
    """A bundle that a test may spoil, in a folder of its own."""
    return of_digits(finished, blob, tmp_path / "run" / "bundle")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """onnxruntime-web as npm leaves it, as far as `lay` looks at it."""
    folder = tmp_path / "elsewhere" / "node_modules" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in (*web.RUNTIME, "ort.all.mjs"):
        (folder / name).write_text(name)
    return folder


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_page_the_bundle_and_the_runtime_lie_in_one_folder(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    (bundle / "notes.txt").write_text("of nobody's manifest")
    out = web.lay(bundle, tmp_path / "page", runtime)
    files = {f"bundle/{name}" for name in read_json(bundle / "manifest.json")["files"]}
    assert _files(out) == {*web.PAGE, *files, "bundle/manifest.json", *(f"ort/{name}" for name in web.RUNTIME)}
    for name in _files(out / "bundle"):
        assert (out / "bundle" / name).read_bytes() == (bundle / name).read_bytes()


def test_every_file_of_the_page_is_laid() -> None:
    assert _files(catalog.folder("export") / "web") == set(web.PAGE)


@pytest.mark.parametrize("up", [0, 1, 2, 3])
def test_the_runtime_may_be_named_by_any_folder_it_is_installed_in(
    bundle: Path, runtime: Path, tmp_path: Path, up: int
) -> None:
    given = [runtime, *runtime.parents][up]
    assert (web.lay(bundle, tmp_path / "page", given) / "ort" / web.RUNTIME[0]).is_file()


def test_without_a_name_node_modules_are_searched_upwards(
    bundle: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = runtime.parents[2] / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert (web.lay(bundle, tmp_path / "page") / "ort" / web.RUNTIME[0]).read_text() == web.RUNTIME[0]


def test_a_missing_runtime_is_said_with_the_command_that_installs_it(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="onnxruntime-web is missing") as caught:
        web.lay(bundle, tmp_path / "page", tmp_path)
    assert caught.value.hint.startswith("npm install ")
    assert not (tmp_path / "page").exists()


def test_a_page_is_replaced_and_anything_else_is_left_alone(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    out = web.lay(bundle, tmp_path / "page", runtime)
    (out / "old.txt").write_text("of the page before")
    assert "old.txt" not in _files(web.lay(bundle, out, runtime))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for taken in (mine, mine / "thesis.tex", bundle, bundle.parent):
        before = _files(taken)
        with pytest.raises(RunError, match="is no page of a bundle"):
            web.lay(bundle, taken, runtime)
        assert _files(taken) == before
    (tmp_path / "empty").mkdir()
    assert "index.html" in _files(web.lay(bundle, tmp_path / "empty", runtime))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/../../secret", "..\\secret"])
def test_names_that_lead_out_are_not_copied(bundle: Path, runtime: Path, tmp_path: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("secret")
    facts = read_json(bundle / "manifest.json")
    facts["files"][name] = dict(facts["files"]["model.onnx"])
    write_json(bundle / "manifest.json", facts)
    _refuses(bundle, tmp_path / "page", runtime)


def test_links_that_lead_out_are_not_followed(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    sample = bundle / "sample" / "0.png"
    shutil.move(sample, tmp_path / "private.png")
    sample.symlink_to(tmp_path / "private.png")
    _refuses(bundle, tmp_path / "page", runtime)


def test_a_tampered_bundle_is_not_laid(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    with (bundle / "model.onnx").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(CheckFailed, match=r"model\.onnx"):
        web.lay(bundle, tmp_path / "page", runtime)
    assert [path.name for path in tmp_path.iterdir() if "page" in path.name] == []


def _refuses(bundle: Path, out: Path, runtime: Path) -> None:
    with pytest.raises(OkdcError):
        web.lay(bundle, out, runtime)
    assert [path.name for path in out.parent.iterdir() if "page" in path.name] == []
