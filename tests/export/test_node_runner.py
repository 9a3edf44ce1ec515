"""export/node/run.mjs: the bundle's client in Node gives the answers of the Python one, and refuses the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from making import write_json
from PIL import Image
from runners import (
    EXPORT,
    NODE,
    SPOILT,
    add_model,
    external,
    javascript,
    needs_node,
    needs_packages,
    nobody_reads,
    not_a_number,
    put,
    zoo,
)

from okdc.runs.files import read_json

pytestmark = needs_node


def _run(*words: str | Path, script: Path = NODE, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = ["node", str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def _refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr


def _png(path: Path, values: npt.NDArray[np.uint16], colour: int) -> Path:
    """A PNG of 16 bits in any mode: Pillow writes grey alone."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def _images(folder: Path) -> list[Path]:
    """The zoo, what only Node's decoder has to get right, and more than one batch."""
    files = zoo(folder)
    rng = np.random.default_rng(6)
    for name, channels, colour in (("deep_rgb", 3, 2), ("deep_rgba", 4, 6), ("deep_grey_alpha", 2, 4)):
        values = rng.integers(0, 2**16, (21, 34, channels), dtype=np.uint16)
        files.append(_png(folder / f"{name}.png", values, colour))
    tall = Image.fromarray(rng.integers(0, 256, (90, 30, 3), dtype=np.uint8))
    tall.save(folder / "tall.png")
    tall.save(folder / "moving.gif", save_all=True, append_images=[tall.transpose(Image.Transpose.ROTATE_180)])
    tall.save(folder / "profile.png", icc_profile=_profile(), gamma=0.2)
    files += [folder / name for name in ("tall.png", "moving.gif", "profile.png")]
    return files + files[:40]


def _profile() -> bytes:
    """A colour profile other than sRGB: Pillow leaves the values alone, and so has every client to."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _answers(text: str) -> list[tuple[str, dict[str, float]]]:
    rows = [json.loads(line) for line in text.splitlines()]
    return [(Path(row["image"]).name, {t["label"]: t["probability"] for t in row["top"]}) for row in rows]


@needs_packages
def test_every_image_gets_the_answer_that_python_gives(
    shipped: Path, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(shipped), *map(str, _images(tmp_path / "zoo")), "--json", "--top", "10"]
    assert script.main(words) == 0
    expected = _answers(capsys.readouterr().out)
    done = _run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    found = _answers(done.stdout)
    assert len(found) == len(expected) > 64, "more than a batch"
    for (name, ours), (same, theirs) in zip(found, expected, strict=True):
        assert name == same
        # Both decode by libjpeg-turbo and libwebp; another build of one may round otherwise.
        allowed = 1e-5 if name.endswith((".png", ".gif")) or name == "lossless.webp" else 0.05
        assert ours == pytest.approx(theirs, abs=allowed), name
        if allowed < 0.05:
            assert max(ours, key=lambda n: ours[n]) == max(theirs, key=lambda n: theirs[n]), name


@needs_packages
def test_without_json_the_lines_are_pythons(
    shipped: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(shipped), *map(str, sorted((shipped / "sample").glob("*.png"))), "--top", "3"]
    assert script.main(words) == 0
    assert _run(*words).stdout == capsys.readouterr().out


@needs_packages
def test_the_selftest_passes_and_says_what_python_says(shipped: Path) -> None:
    done = _run(shipped, "--selftest", shipped / "sample" / "0.png", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("self-test passed: 5 images, max |d| "), "JSON lines are alone on stdout"
    assert len(done.stdout.splitlines()) == 1


@needs_packages
def test_a_case_that_does_not_come_out_fails_the_selftest(bundle: Path) -> None:
    path = bundle / "sample" / "expected.json"
    facts = read_json(path)
    facts["models"]["float32"]["logits"][2][0] += 1e-3
    write_json(path, facts)
    done = _run(bundle, "--selftest")
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED" in done.stdout
    write_json(path, facts | {"cases": [], "models": {"float32": {"tolerance": 1.0, "logits": []}}})
    assert _run(bundle, "--selftest").returncode == 1


@needs_packages
@pytest.mark.parametrize("model", ["float32", "int8", "float16"])
def test_each_of_a_bundles_models_passes_its_own_selftest(shipped: Path, model: str) -> None:
    done = _run(shipped, "--model", model, "--selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("self-test passed: 5 images")


@needs_packages
@pytest.mark.parametrize("model", ["float32", "int8", "float16"])
def test_a_network_of_many_operators_passes_its_selftest(many_operators: Path, model: str) -> None:
    done = _run(many_operators, "--model", model, "--selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("self-test passed: 5 images")


@needs_packages
def test_the_model_that_is_asked_for_answers(bundle: Path) -> None:
    words: list[str | Path] = [bundle, bundle / "sample" / "0.png", "--json"]
    assert _run(*words).stdout != _run(*words, "--model", "int8").stdout
    put(bundle, models={"float32": read_json(bundle / "manifest.json")["models"]["float32"]})
    _refused(_run(*words, "--model", "int8"), "no int8 model, there is float32")


@needs_packages
@pytest.mark.parametrize(("spoil", "says"), SPOILT)
def test_what_is_not_this_bundle_is_refused_in_one_line(
    bundle: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(bundle)
    _refused(_run(bundle, "--selftest"), says)


@needs_packages
@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/../../secret", "..\\secret", "C:secret"])
def test_a_name_that_leads_out_of_the_bundle_is_not_opened(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_bytes(b"secret")
    known = {name: {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}}
    put(bundle, files=read_json(bundle / "manifest.json")["files"] | known)
    put(bundle, ("models", "float32", "file"), name)
    _refused(_run(bundle, "--selftest"), "names a file outside itself")


@needs_packages
@pytest.mark.parametrize("constant", [False, True])
def test_a_model_with_weights_in_other_files_is_refused(bundle: Path, constant: bool) -> None:
    (bundle / "here.bin").write_bytes(bytes(120))
    add_model(bundle, "float32", weights=external("here.bin", constant=constant))
    _refused(_run(bundle, bundle / "sample" / "0.png", cwd=bundle), "external data")


@needs_packages
def test_what_is_no_model_is_refused_in_one_line_whatever_its_hash(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"PK\x03\x04zipped")
    put(bundle, ("files", "model.onnx", "sha256"), hashlib.sha256(b"PK\x03\x04zipped").hexdigest())
    _refused(_run(bundle, "--selftest"), "error: ")


@needs_packages
def test_answers_that_are_no_numbers_are_no_answers(bundle: Path) -> None:
    not_a_number(bundle)
    assert _run(bundle, "--selftest").returncode == 1
    _refused(_run(bundle, bundle / "sample" / "0.png", "--json"), "not finite")


@needs_packages
def test_a_reader_that_goes_is_one_line_too(shipped: Path) -> None:
    code, said = nobody_reads("node", NODE, shipped, shipped / "sample" / "0.png")
    assert (code, said) == (2, "error: write EPIPE\n")


@needs_packages
def test_what_is_no_image_is_said(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "sample" / "0.png").read_bytes()
    made: dict[str, Any] = {
        "empty.png": b"",
        "half.png": whole[: len(whole) // 2],
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    }
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
        _refused(_run(bundle, tmp_path / name), f"{name}: ")
    _refused(_run(bundle, bundle / "nothing.png"), "nothing.png: No such file")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    _refused(_run(bundle, tmp_path / "bomb.png"), "bomb.png: Input image exceeds pixel limit")


@pytest.mark.parametrize(
    "words", [[], ["bundle"], ["bundle", "a.png", "--top", "0"], ["bundle", "a.png", "--model", "int4"], ["--colour"]]
)
def test_words_that_mean_nothing_are_refused(words: list[str]) -> None:
    _refused(_run(*words), "error: ")


def test_where_a_package_is_missing_the_line_says_how_it_is_installed(shipped: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "export"
    for name in ("node", "web"):
        shutil.copytree(EXPORT / name, elsewhere / name, ignore=shutil.ignore_patterns("node_modules"))
    done = _run(shipped, "--selftest", script=elsewhere / "node" / "run.mjs")
    _refused(done, "onnxruntime-node is missing; install it: ONNXRUNTIME_NODE_INSTALL=skip npm install")


def test_an_older_node_is_refused(shipped: Path) -> None:
    """Node 18 has no global crypto: a file that is not the manifest's would pass."""
    code = f"""
    Object.defineProperty(process, 'versions', {{ value: {{ ...process.versions, node: '18.20.8' }} }});
    await import({NODE.as_uri()!r});
    """
    command = ["node", "--input-type=module", "-e", code, "--", str(shipped), "--selftest"]
    _refused(subprocess.run(command, capture_output=True, text=True, check=False), "expected Node 20, found")


def test_the_words_of_the_rule_are_those_of_the_manifest(script: ModuleType) -> None:
    code = "const b = await import(web + 'bundle.mjs'); console.log(JSON.stringify([b.RULE, b.LARGER, b.MODELS]))"
    assert json.loads(javascript(code)) == [script.RULE, script.LARGER, list(script.MODELS)]


def test_where_a_browser_cannot_hash_the_bundle_is_read_all_the_same(shipped: Path) -> None:
    """crypto.subtle is there over https and on localhost alone; the page says that nothing was checked."""
    code = """
    import fs from 'node:fs/promises';
    const { open } = await import(web + 'bundle.mjs');
    const read = (name) => fs.readFile(process.argv[1] + '/' + name);
    const spoilt = async (name) => (name.endsWith('.onnx') ? new Uint8Array(9) : read(name));
    const attempt = async (job) => { try { return (await job()).length; } catch (error) { return error.message; } };
    console.log(await attempt(async () => (await open(spoilt)).model('float32')));
    Object.defineProperty(globalThis, 'crypto', { value: {} });
    console.log(await attempt(async () => (await open(spoilt)).model('float32')));
    """
    refused, length = javascript(code, shipped).splitlines()
    assert refused.startswith("model.onnx is not the file of the manifest")
    assert length == "9"
