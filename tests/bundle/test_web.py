"""okdc.bundle.web: a bundle and its page in one folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import closing
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from bundles import of_digits
from making import write_json
from serving import running

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


def _get(url: str) -> tuple[str, bytes]:
    with closing(urllib.request.urlopen(url)) as answer:
        return answer.headers["Content-type"], answer.read()


def test_a_page_is_served_as_browsers_want_it_and_to_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(web, "PORT", 0)
    types = {"index.html": "text/html", "app.mjs": "text/javascript", "a.wasm": "application/wasm"}
    for name in types:
        (tmp_path / name).write_text(name)
    server = web.PageServer(tmp_path)
    with running(server):
        assert server.server_address[0] == "127.0.0.1"
        assert {name: _get(f"{server.url}/{name}") for name in types} == {
            name: (kind, name.encode()) for name, kind in types.items()
        }
        assert _get(server.url)[1] == b"index.html"
    assert capsys.readouterr() == ("", "")


def test_a_port_that_is_taken_is_left_for_a_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web.PageServer(tmp_path) as first:
        monkeypatch.setattr(web, "PORT", first.server_port)
        with web.PageServer(tmp_path) as second:
            assert second.url == f"http://localhost:{second.server_port}"
            assert second.server_port not in (0, first.server_port)


def test_another_error_of_the_network_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_: ThreadingHTTPServer) -> None:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    monkeypatch.setattr(ThreadingHTTPServer, "server_bind", bind)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        web.PageServer(tmp_path)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_serve_says_its_address_and_ends_with_ctrl_c(bundle: Path, runtime: Path, as_json: list[str]) -> None:
    command: list[str | Path] = [sys.executable, "-m", "okdc", "export", bundle, "--target", "web", "--serve"]
    command += ["--runtime", runtime, *as_json]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = next(match[0] for line in process.stdout if (match := re.search(r"http://localhost:[0-9]+", line)))
        page = (catalog.folder("export") / "web" / "index.html").read_bytes()
        assert _get(f"{url}/index.html") == ("text/html", page)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (bundle.with_name("web") / "index.html").is_file()
