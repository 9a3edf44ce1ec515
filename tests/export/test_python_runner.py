"""export/python/run.py: the bundle's client, in an interpreter that has no torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from okdc import catalog
from okdc.__main__ import main
from okdc.data import images
from okdc.files import read_json, write_json
from okdc.run import Run

SCRIPT = catalog.folder("export") / "python" / "run.py"
# None in sys.modules makes an import fail as if the package were not installed.
WITHOUT_TORCH = (
    "import sys, runpy\n"
    "for name in ('torch', 'torchvision', 'onnx', 'okdc', 'sklearn', 'safetensors'): sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def _run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runner") / "run"
    assert main(["distill", "optim.epochs=8", "-o", str(path)]) == 0
    assert main(["export", str(path), "--onnx"]) == 0
    return Run.open(path).path / "bundle"


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runner", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_selftest_passes_without_torch_and_images_are_classified(shipped: Path) -> None:
    done = _run(shipped, "--selftest", shipped / "sample" / "0.png", shipped / "sample" / "1.png", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("self-test passed: 5 images"), "JSON lines are alone on stdout"
    lines = done.stdout.splitlines()
    expected = json.loads((shipped / "sample" / "expected.json").read_text())["cases"]
    for line, case in zip(lines, expected, strict=False):
        top = json.loads(line)["top"]
        assert top[0]["label"] == str(int(np.argmax(case["logits"])))
        assert [t["probability"] for t in top] == sorted((t["probability"] for t in top), reverse=True)
    assert len(lines) == 2


def test_a_case_that_does_not_come_out_fails_the_selftest(bundle: Path) -> None:
    path = bundle / "sample" / "expected.json"
    facts = read_json(path)
    facts["cases"][2]["logits"][0] += 1e-3
    write_json(path, facts)
    done = _run(bundle, "--selftest")
    assert done.returncode == 1
    assert "FAILED" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda b: (b / "model.onnx").write_bytes(b"something else"), "is not the file of the manifest"),
        (lambda b: (b / "manifest.json").unlink(), "is no bundle"),
        (lambda b: write_json(b / "manifest.json", read_json(b / "manifest.json") | {"schema": 2}), "schema 2"),
    ],
)
def test_what_is_not_this_bundle_is_refused_in_one_line(bundle: Path, spoil: Any, says: str) -> None:
    spoil(bundle)
    done = _run(bundle, "--selftest")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_no_image_is_said(bundle: Path) -> None:
    done = _run(bundle, bundle / "manifest.json")
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert "Traceback" not in done.stderr


def _zoo(folder: Path) -> list[Path]:
    """Images as people have them: sizes, modes, rotation, transparency, sixteen bits."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (21, 34, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    made = {
        "wide.png": colour,
        "tall.png": colour.transpose(Image.Transpose.ROTATE_90),
        "grey.png": colour.convert("L"),
        "grey_alpha.png": Image.fromarray(pixels[..., :2], "LA"),
        "alpha.png": Image.fromarray(pixels),
        "palette.png": colour.convert("P"),
        "one_bit.png": colour.convert("1"),
        "sixteen.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "exact.png": colour.resize((8, 8)),
        "tiny.png": colour.resize((3, 5)),
    }
    for name, image in made.items():
        image.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    colour.save(folder / "turned.jpg", exif=exif)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    palette = colour.convert("P")
    palette.save(folder / "clear.png", transparency=0)
    return sorted(folder.iterdir())


def test_the_script_reads_every_image_as_training_does(shipped: Path, script: ModuleType, tmp_path: Path) -> None:
    """Two programs, one rule: bytes equal for every kind of image."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    bundle = script.Bundle(shipped)
    for path in _zoo(folder):
        with Image.open(path) as image:
            expected = images.fit(image, 8)
        np.testing.assert_array_equal(bundle.read(path), expected, err_msg=path.name)


def test_the_script_states_the_rule_that_the_manifest_states(script: ModuleType) -> None:
    assert script.RULE == images.RESIZE
