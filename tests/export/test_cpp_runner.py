"""export/cpp: built with g++ as its own first lines say, it gives the Python runner's answers to the same bundle.

Its image and JSON readers are built once more with the sanitizers on: what is damaged must be refused, not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from making import write_json
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from runners import EXPORT, LETTERS, PYTHON, SPOILT, not_a_number, zoo

from okdc import escaping
from okdc.data import images
from okdc.runs.files import read_json

SOURCE = EXPORT / "cpp"
UNITY = Path(
    "com.github.asus4.onnxruntime/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers"
)
PROBE = r"""
#include "files.hpp"
#include "image.hpp"
#include "json.hpp"
#include "resize.hpp"
#include <iostream>

// fit SIDE SHORTER FILE...: the bytes of each in FILE.out; json FILE...: each as a line in ASCII; sha256, shown FILE...
int main(int count, char** given) {
    const std::string what = given[1];
    for (int i = what == "fit" ? 4 : 2; i < count; ++i) {
        const std::string path = given[i];
        try {
            if (what == "sha256") {
                std::cout << sha256(read_file(path)) << "\n";
            } else if (what == "shown") {
                std::cout << shown(read_file(path)) << "\n";
            } else if (what == "json") {
                std::cout << json::line(json::parse(read_file(path))) << "\n";
            } else {
                const int side = std::stoi(given[2]), shorter = std::stoi(given[3]);
                const Image image = fit(read_image(path), side, side, shorter);
                std::ofstream(path + ".out", std::ios::binary)
                    .write(reinterpret_cast<const char*>(image.pixels.data()), std::streamsize(image.pixels.size()));
                std::cout << "read\n";
            }
        } catch (const std::runtime_error& error) {
            std::cout << "refused: " << error.what() << "\n";
        }
    }
}
"""
HEADERS = {
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "png.h": "libpng-dev",
    "sha2.h": "libmd-dev",
    "turbojpeg.h": "libturbojpeg0-dev",
    "zlib.h": "zlib1g-dev",
}
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]


def _headers() -> Path | None:
    include = os.environ.get("OKDC_ONNXRUNTIME_INCLUDE")
    places = [Path(include)] if include else []
    places += [folder / "node_modules" / UNITY for folder in SOURCE.parents]
    places += [Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")]
    return next((place for place in places if (place / "onnxruntime_cxx_api.h").is_file()), None)


def _missing() -> str:
    if shutil.which("g++") is None:
        return "g++ is not installed"
    for header, package in HEADERS.items():
        command = ["g++", "-E", "-x", "c++", "-"]
        if subprocess.run(command, input=f"#include <{header}>", capture_output=True, text=True).returncode:
            return f"the header {header} is not installed (Debian's {package})"
    return ""


def _missing_runtime() -> str:
    headers = _headers()
    if headers is None:
        return "no onnxruntime_cxx_api.h: OKDC_ONNXRUNTIME_INCLUDE names its folder (export/README.md says where from)"
    wanted = re.search(r"define ORT_API_VERSION (\d+)", (headers / "onnxruntime_c_api.h").read_text(encoding="utf-8"))
    version = int(onnxruntime.__version__.split(".")[1])
    if wanted is None or int(wanted[1]) > version:
        return f"the headers ask for onnxruntime 1.{wanted[1] if wanted else '?'}, the library is 1.{version}"
    return "" if _libraries() else "this onnxruntime has no shared library"


def _libraries() -> list[Path]:
    return sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))


reason = _missing()
runtime_reason = reason or _missing_runtime()
pytestmark = pytest.mark.skipif(bool(reason), reason=reason)
needs_runtime = pytest.mark.skipif(bool(runtime_reason), reason=runtime_reason)


def _execute(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cpp").write_text(PROBE, encoding="utf-8")
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["g++", "-std=c++17", "-O1", *sanitizers, *WARNINGS, f"-I{SOURCE}", folder / "probe.cpp"]
    command += ["-lturbojpeg", "-lpng", "-lz", "-lmd"]
    done = _execute(*command, "-o", folder / "probe")
    assert done.returncode == 0, done.stderr

    def ask(*words: str | Path) -> list[str]:
        done = _execute(folder / "probe", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return ask


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """include/ and lib/ as a release of onnxruntime has them: headers, and the library of the Python package."""
    folder, headers = tmp_path_factory.mktemp("onnxruntime"), _headers()
    assert headers is not None
    (folder / "include").symlink_to(headers.resolve())
    (folder / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(_libraries()[-1])
    return folder


@pytest.fixture(scope="module")
def runner(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command that stands in the first lines of run.cpp."""
    folder = tmp_path_factory.mktemp("built")
    source = SOURCE / "run.cpp"
    line = re.search(r"^//\s+(g\+\+ .*)$", source.read_text(encoding="utf-8"), re.M)
    assert line is not None
    words = [word.replace("ORT", str(runtime)) for word in shlex.split(line[1])]
    words = ["-isystem" if word == "-I" else word for word in words]  # warnings of the headers are not ours
    words = [str(source) if word == "run.cpp" else word for word in words]
    words[words.index("-o") + 1] = str(folder / "run")
    done = _execute(*words, *WARNINGS)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def _write_ppm(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Path:
    height, width = pixels.shape[:2]
    header = f"{'P6' if pixels.ndim == 3 else 'P5'}\n# a comment\n{width} {height}\n255\n"
    path.write_bytes(header.encode() + pixels.tobytes())
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Its parts


def test_images_of_many_sizes_become_pillows_bytes(
    probe: Callable[..., list[str]], script: ModuleType, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 160, (60, 2))]
    sizes += [(1, 1), (1, 90), (90, 1), (32, 32), (32, 48), (31, 33), (64, 64), (500, 333), (7, 600), (900, 3)]
    for side, shorter in ((32, 32), (1, 1), (24, 29), (57, 80)):
        cases = []
        for i, (height, width) in enumerate(sizes):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            if i % 4 == 1:  # hard edges at the very ends of the scale: where a weight's rounding would show
                pixels = np.where(pixels < 128, 0, 255).astype(np.uint8)
            grey = i % 5 == 2
            path = _write_ppm(tmp_path / f"{i}.ppm", pixels[..., 0] if grey else pixels)
            if i % 3 == 0:
                path = tmp_path / f"{i}.png"
                Image.fromarray(pixels[..., 0] if grey else pixels).save(path)
            cases.append((path, Image.fromarray(pixels[..., 0] if grey else pixels)))
        assert set(probe("fit", str(side), str(shorter), *[path for path, _ in cases])) == {"read"}
        for path, image in cases:
            actual = np.frombuffer(Path(f"{path}.out").read_bytes(), np.uint8).reshape(side, side, 3)
            np.testing.assert_array_equal(
                actual, script.fit(script.to_rgb(image), side, shorter), err_msg=f"{image} to {side}"
            )


def test_an_image_is_read_as_by_the_python_runner_or_refused(
    probe: Callable[..., list[str]], script: ModuleType, tmp_path: Path
) -> None:
    read = set()
    files = zoo(tmp_path / "zoo")
    for path, answer in zip(files, probe("fit", "8", "8", *files), strict=True):
        if answer == "read":
            read.add(path.name)
            with Image.open(path) as image:
                expected = script.fit(script.to_rgb(image), 8, 8)
            actual = np.frombuffer(Path(f"{path}.out").read_bytes(), np.uint8).reshape(8, 8, 3)
            np.testing.assert_array_equal(actual, expected, err_msg=path.name)
        else:
            assert answer.startswith(f"refused: {path}: "), answer
    turned = {"turned.jpg", *(f"turned_{orientation}.png" for orientation in range(1, 9))}
    grey = {"grey.png", "grey.jpg", "one_bit.png"}
    assert read == {"wide.png", "tall.png", "exact.png", "tiny.png", "palette.png", "smooth.jpg"} | grey | turned


def _decodes(script: ModuleType, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return script.fit(script.to_rgb(image), 24, 24)  # type: ignore[no-any-return]


def _packet(orientation: int, *, attribute: bool) -> bytes:
    value = f'="{orientation}"' if attribute else f">{orientation}</tiff:Orientation>"
    return f"<x:xmpmeta>tiff:Orientation, then <tiff:Orientation{value}</x:xmpmeta>".encode()


def test_a_jpeg_becomes_pillows_bytes(probe: Callable[..., list[str]], script: ModuleType, tmp_path: Path) -> None:
    """Every orientation, subsampling and scan order, of noise and of smooth colours; EXIF of either byte order."""
    rng = np.random.default_rng(4)
    noise = Image.fromarray(rng.integers(0, 256, (61, 97, 3), dtype=np.uint8))
    smooth = noise.crop((0, 0, 9, 7)).resize((203, 157), Image.Resampling.BICUBIC)
    for orientation in range(10):
        exif = Image.Exif()
        exif.endian = "<" if orientation % 2 else ">"
        exif[0x010E] = "a description before the orientation"
        if orientation:
            exif[0x0112] = orientation
        smooth.save(tmp_path / f"turned_{orientation}.jpg", exif=exif)
        noise.save(tmp_path / f"turned_{orientation}.png", exif=exif)
    for name, image in (("noise", noise), ("smooth", smooth)):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                path = tmp_path / f"{name}_{subsampling}_{progressive}.jpg"
                image.save(path, subsampling=subsampling, progressive=progressive, restart_marker_rows=3)
    for attribute in (False, True):
        packet = _packet(6, attribute=attribute)
        smooth.save(tmp_path / f"xmp_{attribute}.jpg", xmp=packet)
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet.decode())
        noise.save(tmp_path / f"xmp_{attribute}.png", pnginfo=text)
    exif[0x0112] = 3
    smooth.save(tmp_path / "both.jpg", xmp=_packet(6, attribute=True), exif=exif)
    files = sorted(tmp_path.iterdir())
    assert probe("fit", "24", "24", *files) == ["read"] * len(files)
    for path in files:
        pixels = np.frombuffer(Path(f"{path}.out").read_bytes(), np.uint8).reshape(24, 24, 3)
        np.testing.assert_array_equal(pixels, _decodes(script, path), err_msg=path.name)


def test_a_damaged_jpeg_is_refused_or_read_within_its_bytes(probe: Callable[..., list[str]], tmp_path: Path) -> None:
    """With the sanitizers on. A changed bit of a JPEG may leave a JPEG; a part of it is none."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(5).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg", exif=exif, xmp=_packet(6, attribute=True))
    whole = (tmp_path / "whole.jpg").read_bytes()
    cut, changed = [], []
    for place in range(len(whole)):
        cut.append(tmp_path / f"cut{place}")
        cut[-1].write_bytes(whole[:place])
        changed.append(tmp_path / f"bit{place}")
        changed[-1].write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
    for path, answer in zip(cut, probe("fit", "8", "8", *cut), strict=True):
        assert answer.startswith(f"refused: {path}: "), answer
    for path, answer in zip(changed, probe("fit", "8", "8", *changed), strict=True):
        assert answer == "read" or answer.startswith(f"refused: {path}: "), answer
    frame = whole.index(b"\xff\xc0")
    (tmp_path / "bomb").write_bytes(whole[: frame + 5] + struct.pack(">HH", 60000, 60000) + whole[frame + 9 :])
    assert "60000x60000 pixels, more than" in probe("fit", "8", "8", tmp_path / "bomb")[0]


def test_a_png_that_unpacks_to_more_than_its_size_stops_there(
    probe: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "max_allocation_size_mb=64")
    path = tmp_path / "bomb.png"
    path.write_bytes(_chunks(_header(4, 4), (b"IDAT", zlib.compress(bytes(2**28), 1)), (b"IEND", b"")))
    assert probe("fit", "8", "8", path)[0].startswith(f"refused: {path}: a damaged PNG")


def _chunks(*parts: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, each with the checksum that it should have."""
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


HOSTILE = {
    "nothing": b"",
    "text": b"hello",
    "a PPM's name alone": b"P6",
    "a header alone": b"P6 4 4 255",
    "a truncated PPM": b"P6\n4 4\n255\n" + bytes(47),
    "a PPM without width": b"P6\n# 4 4 255",
    "a PPM without pixels": b"P6\n0 4\n255\n",
    "16 bits": b"P6\n4 4\n65535\n" + bytes(96),
    "a bomb": b"P6\n99999 99999\n255\n" + bytes(48),
    "an overflow": b"P6\n4294967296 4294967296\n255\n" + bytes(48),
    "digits without end": b"P6\n" + b"9" * 400 + b" 4\n255\n",
    "a PNG's name alone": b"\x89PNG\r\n\x1a\n",
    "a PNG without pixels": _chunks(_header(4, 4), (b"IEND", b"")),
    "pixels without a header": _chunks((b"IDAT", zlib.compress(bytes(52))), (b"IEND", b"")),
    "two headers": _chunks(_header(4, 4), _header(4, 4), (b"IDAT", zlib.compress(bytes(52))), (b"IEND", b"")),
    "too few pixels": _chunks(_header(4, 4), (b"IDAT", zlib.compress(bytes(51))), (b"IEND", b"")),
    "too many pixels": _chunks(_header(4, 4), (b"IDAT", zlib.compress(bytes(53))), (b"IEND", b"")),
    "an unknown filter": _chunks(_header(4, 4), (b"IDAT", zlib.compress(b"\x05" + bytes(51))), (b"IEND", b"")),
    "a PNG bomb": _chunks(_header(2**31 - 1, 2**31 - 1), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")),
    "a promise of much": _chunks(_header(9000, 9000), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")),
    "a chunk longer than the file": _chunks(_header(4, 4)) + b"\xff\xff\xff\xffIDAT" + bytes(20),
    "no end": _chunks(_header(4, 4), (b"IDAT", zlib.compress(bytes(52)))),
}


def test_damaged_images_are_refused(probe: Callable[..., list[str]], tmp_path: Path) -> None:
    """With the sanitizers on: a byte read outside a buffer would end the program."""
    files = {}
    for i, (name, content) in enumerate(HOSTILE.items()):
        files[tmp_path / f"hostile{i}"] = name
        (tmp_path / f"hostile{i}").write_bytes(content)
    whole = _chunks(_header(4, 4), (b"IDAT", zlib.compress(random.Random(0).randbytes(4 * 12 + 4))), (b"IEND", b""))
    for end in range(len(whole)):
        files[tmp_path / f"cut{end}"] = f"cut after {end} bytes"
        (tmp_path / f"cut{end}").write_bytes(whole[:end])
    for place in range(len(whole)):
        files[tmp_path / f"bit{place}"] = f"byte {place} changed"
        (tmp_path / f"bit{place}").write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
    for answer, (path, name) in zip(probe("fit", "8", "8", *files), files.items(), strict=True):
        assert answer.startswith(f"refused: {path}: "), f"{name}: {answer}"


def test_a_side_too_long_for_the_other_is_refused(probe: Callable[..., list[str]], tmp_path: Path) -> None:
    path = _write_ppm(tmp_path / "thin.ppm", np.zeros((1, 60000, 3), np.uint8))
    assert "too narrow" in probe("fit", "64", "64", path)[0]


def test_strings_are_read_and_written_as_python_does(probe: Callable[..., list[str]], tmp_path: Path) -> None:
    strings = ["", "cat", 'a "b" \\ /', "\b\f\n\r\t\x01\x7f", "é ß 日本 😀 \u2028", "\ud83d\ude00"]
    strings.append("\x80\u07ff\u0800\uffff\U0010ffff")
    texts = [json.dumps(text, ensure_ascii=ascii_only) for text in strings for ascii_only in (True, False)]
    paths = []
    for i, text in enumerate(texts):
        paths.append(tmp_path / f"{i}.json")
        paths[i].write_bytes(text.encode("utf-8", "surrogatepass"))
    expected = [json.dumps(json.loads(text)) for text in texts]
    lines = probe("json", *paths)
    assert lines.pop(11).startswith("refused: not JSON: "), "the halves of a pair as UTF-8 are no UTF-8"
    del expected[11]
    assert lines == expected


def test_what_is_no_json_is_refused(probe: Callable[..., list[str]], tmp_path: Path) -> None:
    bad = ["", "{", "[1,", "[1 2]", '{"a" 1}', '{"a":}', '"', '"\\x"', '"\\u12"', '"\\ud800\\u0020"']
    bad += ["01x", "-", "1.", "1e", "nul"]
    bad += ["tru", "[1]]", '"a\nb"', "{1:2}", "NaN", "[" * 100000, '{"a":' * 100000, '"\\', "\x00", "[1,]", "{,}"]
    # What the library itself would read: a byte order mark, more after a NUL, brackets as deep as the file is long.
    bad += ["\ufeff{}", "{}\x00more", "[" * 100 + "]" * 100, "// a comment\n{}"]
    paths = []
    for i, text in enumerate(bad):
        paths.append(tmp_path / f"{i}.json")
        paths[i].write_text(text, encoding="utf-8")
    for text, answer in zip(bad, probe("json", *paths), strict=True):
        assert answer.startswith("refused: not JSON: "), f"{text[:20]!r}: {answer}"


def test_the_hash_is_sha256_at_every_length_of_the_padding(probe: Callable[..., list[str]], tmp_path: Path) -> None:
    contents = [random.Random(length).randbytes(length) for length in (*range(130), 1000, 100003)]
    paths = []
    for i, content in enumerate(contents):
        paths.append(tmp_path / str(i))
        paths[i].write_bytes(content)
    assert probe("sha256", *paths) == [hashlib.sha256(content).hexdigest() for content in contents]


# ---------------------------------------------------------------------------------------------------------------------
# The program


@needs_runtime
def test_its_answers_are_those_of_the_python_runner(runner: Path, shipped: Path, tmp_path: Path) -> None:
    """All classes of 70 images, more than one batch: the bundle's own, a wide one, a tall one, grey ones."""
    rng = np.random.default_rng(1)
    paths = sorted((shipped / "sample").glob("*.png"))
    for i in range(65):
        shape = (int(rng.integers(3, 40)), int(rng.integers(3, 40)), 3)[: 2 + i % 2]
        suffix = "ppm" if len(shape) == 3 else "pgm"
        paths.append(_write_ppm(tmp_path / f'{i} "é".{suffix}', rng.integers(0, 256, shape, dtype=np.uint8)))
    words = [shipped, *paths, "--json", "--top", "10"]
    cpp, python = _execute(runner, *words), _execute(sys.executable, PYTHON, *words)
    assert (cpp.returncode, cpp.stderr) == (python.returncode, python.stderr) == (0, "")
    lines = [[json.loads(line) for line in done.stdout.splitlines()] for done in (cpp, python)]
    assert len(lines[0]) == len(paths)
    for row, python_row in zip(*lines, strict=True):
        assert row["image"] == python_row["image"]
        actual, expected = ({top["label"]: top["probability"] for top in case["top"]} for case in (row, python_row))
        assert actual.keys() == expected.keys()
        assert max(abs(actual[label] - expected[label]) for label in expected) <= 1e-5
    words = [shipped, *paths[:5], "--top", "3", "--selftest"]
    cpp, python = _execute(runner, *words), _execute(sys.executable, PYTHON, *words)
    assert cpp.stdout.splitlines()[1:] == python.stdout.splitlines()[1:]
    assert cpp.stdout.startswith("self-test passed: 5 images, max |d| ")


@needs_runtime
def test_a_jpeg_gets_the_answer_of_the_python_runner(runner: Path, shipped: Path, tmp_path: Path) -> None:
    paths = []
    for i, sample in enumerate(sorted((shipped / "sample").glob("*.png"))):
        exif = Image.Exif()
        exif[0x0112] = 1 + i
        with Image.open(sample) as image:
            for quality in (60, 95):
                paths.append(tmp_path / f"{i}_{quality}.jpg")
                image.convert("RGB").resize((90, 70)).save(paths[-1], quality=quality, exif=exif)
    words = [shipped, *paths, "--json", "--top", "10"]
    cpp, python = (_execute(*program, *words) for program in ([runner], [sys.executable, PYTHON]))
    assert (cpp.returncode, cpp.stderr) == (python.returncode, python.stderr) == (0, "")
    rows = [[json.loads(line)["top"] for line in done.stdout.splitlines()] for done in (cpp, python)]
    assert len(rows[0]) == len(paths)
    for actual, expected in zip(*rows, strict=True):
        assert actual[0]["label"] == expected[0]["label"]
        probabilities = ({best["label"]: best["probability"] for best in row} for row in (actual, expected))
        assert next(probabilities) == pytest.approx(next(probabilities), abs=1e-5)


@needs_runtime
def test_a_name_that_is_no_utf8_stays_a_line_of_json(runner: Path, shipped: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.png")
    shutil.copy(shipped / "sample" / "0.png", path)
    done = subprocess.run([runner, shipped, path, "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["image"] == f"{tmp_path}/\ufffd.png"


@needs_runtime
@pytest.mark.parametrize("model", ["float32", "int8", "float16"])
def test_a_network_of_many_operators_passes_its_selftest(runner: Path, many_operators: Path, model: str) -> None:
    done = _execute(runner, many_operators, "--selftest", "--model", model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("self-test passed: 5 images")


@needs_runtime
def test_the_selftest_of_a_model_holds_it_to_its_own_logits(runner: Path, bundle: Path) -> None:
    """A second model has its own file and its own logits: what is expected of one does not pass for the other."""
    manifest, expected = read_json(bundle / "manifest.json"), read_json(bundle / "sample" / "expected.json")
    model = onnx.load_model(bundle / "model.onnx")
    bias = next(t for t in model.graph.initializer if t.name.endswith("bias") and list(t.dims) == [10])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.25), bias.name))
    blob = model.SerializeToString()
    (bundle / "model.int8.onnx").write_bytes(blob)
    int8 = {"file": "model.int8.onnx", "top1_pct": 50.0, "balanced_accuracy_pct": 50.0}
    manifest["models"] = {"float32": manifest["models"]["float32"], "int8": int8}
    manifest["files"]["model.int8.onnx"] = {"sha256": _sha256(blob), "bytes": len(blob)}
    write_json(bundle / "manifest.json", manifest)
    float32 = expected["models"]["float32"]
    shifted = [[z + 0.25 for z in row] for row in float32["logits"]]
    expected["models"]["int8"] = {"tolerance": 1e-4, "logits": shifted}
    write_json(bundle / "sample" / "expected.json", expected)
    assert _execute(runner, bundle, "--selftest", "--model", "int8").stdout.startswith("self-test passed: 5 images")
    assert _execute(runner, bundle, "--selftest").returncode == 0
    expected["models"]["int8"]["logits"] = float32["logits"]
    write_json(bundle / "sample" / "expected.json", expected)
    done = _execute(runner, bundle, "--selftest", "--model", "int8", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("self-test FAILED: 5 images, max |d| 2.5e-01")
    done = _execute(runner, bundle, "--selftest", "--model", "float16")
    assert (done.returncode, "no float16 model, there is float32, int8" in done.stderr) == (2, True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        manifest = read_json(bundle / "manifest.json")
        change(manifest)
        write_json(bundle / "manifest.json", manifest)

    return spoil


def _hash_of_a_file_outside(bundle: Path) -> None:
    """Whatever a manifest says, with the right hash too: the model lies in the bundle."""
    outside = bundle.parent / "outside.onnx"
    shutil.copy(bundle / "model.onnx", outside)
    manifest = read_json(bundle / "manifest.json")
    manifest["models"]["float32"]["file"] = "../outside.onnx"
    manifest["files"]["../outside.onnx"] = manifest["files"]["model.onnx"]
    write_json(bundle / "manifest.json", manifest)


def _external(bundle: Path) -> None:
    """A model whose weights lie elsewhere, with the right hash."""
    model = onnx.load_model(bundle / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (bundle / "weights").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=os.path.relpath(bundle / "weights"))
    blob = model.SerializeToString()
    (bundle / "model.onnx").write_bytes(blob)
    _edit(lambda m: m["files"]["model.onnx"].update(sha256=_sha256(blob)))(bundle)


def _expect(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        expected = read_json(bundle / "sample" / "expected.json")
        change(expected)
        write_json(bundle / "sample" / "expected.json", expected)

    return spoil


@needs_runtime
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        *SPOILT,
        (_edit(lambda m: m["input"].update(layout="NCHW")), "does not know the input layout"),
        (_edit(lambda m: m["input"].update(shorter_side=16)), "does not know the input resize"),
        (_edit(lambda m: m["input"].update(width=2**40)), '1 to 4096 pixels; look at "width"'),
        (_edit(lambda m: m["input"].update(width=9)), "expected a square input"),
        (_edit(lambda m: m["labels"].pop()), "another number of logits than labels"),
        (_edit(lambda m: m["files"].pop("model.onnx")), '"model.onnx" is missing'),
        (_hash_of_a_file_outside, "names a file outside itself"),
        (_external, "external data"),
        (_expect(lambda e: e["cases"][0].update(image="../../x.png")), "names a file outside itself"),
        (_expect(lambda e: e["models"].pop("float32")), '"float32" is missing'),
        (_expect(lambda e: e["models"]["float32"]["logits"][1].pop()), "another number of logits"),
    ],
)
def test_what_is_not_this_bundle_is_refused_in_one_line(
    runner: Path, bundle: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(bundle)
    done = _execute(runner, bundle, "--selftest")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@needs_runtime
def test_a_model_that_gives_more_answers_than_there_are_labels_is_refused(runner: Path, bundle: Path) -> None:
    _edit(lambda m: m["labels"].pop())(bundle)
    done = _execute(runner, bundle, bundle / "sample" / "0.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected one float32 for each of the manifest's labels" in done.stderr


@needs_runtime
def test_a_file_that_onnxruntime_cannot_read_is_one_line_too(runner: Path, bundle: Path) -> None:
    blob = (bundle / "model.onnx").read_bytes()[:5000]
    (bundle / "model.onnx").write_bytes(blob)
    _edit(lambda m: m["files"]["model.onnx"].update(sha256=_sha256(blob)))(bundle)
    done = _execute(runner, bundle, "--selftest")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


@needs_runtime
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "expected a bundle; usage: run BUNDLE [IMAGE ...]"),
        (["BUNDLE"], "expected an image, or --selftest"),
        (["BUNDLE", "x.ppm", "--top", "0"], "--top 0"),
        (["BUNDLE", "x.ppm", "--top"], "--top: expected a value"),
        (["BUNDLE", "x.ppm", "--fast"], "unknown option --fast"),
        (["BUNDLE", "x.ppm", "--json=1"], "unknown option --json=1"),
        (["BUNDLE", "x.ppm", "--model", "int4"], "--model int4"),
        (["BUNDLE", "missing.ppm"], "missing.ppm: No such file"),
        (["BUNDLE", "BUNDLE/manifest.json"], "manifest.json: not an image that this program reads"),
        (["BUNDLE", "cut.ppm"], "cut.ppm: truncated: 192 bytes of pixels expected, 100 found"),
        (["BUNDLE", "BUNDLE"], "not a file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(runner: Path, shipped: Path, words: list[str], says: str) -> None:
    Path("cut.ppm").write_bytes(b"P6 8 8 255\n" + bytes(100))
    done = _execute(runner, *[word.replace("BUNDLE", str(shipped)) for word in words])
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@needs_runtime
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_the_commands_of_the_readme_build_it(runtime: Path, shipped: Path) -> None:
    block = re.search(r"```\n(cmake .*?)```", (EXPORT / "README.md").read_text(encoding="utf-8"), re.S)
    assert block is not None
    Path("export").symlink_to(EXPORT)
    Path("onnxruntime").symlink_to(runtime)
    *build, run = block[1].replace("BUNDLE", str(shipped)).replace("IMAGE ...", "--selftest").splitlines()
    assert (len(build), run.startswith("build/run ")) == (2, True)
    for command in (*build, run):
        done = _execute(*shlex.split(command))
        assert done.returncode == 0, done.stdout + done.stderr


@needs_runtime
def test_answers_that_are_no_numbers_are_no_answers(runner: Path, bundle: Path) -> None:
    not_a_number(bundle)
    assert _execute(runner, bundle, "--selftest").returncode == 1
    done = _execute(runner, bundle, bundle / "sample" / "0.png", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not finite" in done.stderr


@needs_runtime
def test_an_option_takes_its_value_after_an_equals_sign_too(runner: Path, shipped: Path) -> None:
    image = shipped / "sample" / "0.png"
    outputs = [_execute(runner, shipped, image, *words).stdout for words in (["--top", "2"], ["--top=2"])]
    assert outputs[0] == outputs[1] != ""
    assert _execute(runner, "--help").stdout.startswith("usage: run BUNDLE")


@needs_runtime
def test_its_rules_are_those_of_the_manifest() -> None:
    text = (SOURCE / "run.cpp").read_text(encoding="utf-8")
    assert f'RULE[] = "{images.RESIZE}"' in text
    assert f'LARGER[] = "{images.RESIZE_LARGER}"' in text


def test_a_line_is_escaped_as_okdc_escapes_it(probe: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_text(LETTERS, encoding="utf-8", newline="")
    assert probe("shown", path) == [escaping.shown(LETTERS)]
