"""export/python/run.py: the bundle's client, in an interpreter that has no torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from making import write_json
from PIL import Image
from runners import LETTERS, PYTHON, SPOILT, add_model, external, nobody_reads, not_a_number, put, zoo

from okdc import escaping
from okdc.data import images
from okdc.runs.files import read_json

# None in sys.modules makes an import fail as if the package were not installed.
WITHOUT_TORCH = (
    "import sys, runpy\n"
    "for name in ('torch', 'torchvision', 'onnx', 'okdc', 'sklearn', 'safetensors'): sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def _run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(PYTHON), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


Refused = Callable[..., None]


@pytest.fixture
def refused(script: ModuleType, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Holds the script, in this process, to one line with `says` in it, and exit code 2."""

    def check(says: str, *words: str | Path) -> None:
        assert script.main(list(map(str, words))) == 2
        out, err = capfd.readouterr()  # onnxruntime would write past sys.stderr
        assert out == ""
        assert len(err.splitlines()) == 1
        assert says in err

    return check


def test_the_selftest_passes_without_torch_and_images_are_classified(shipped: Path) -> None:
    done = _run(shipped, "--selftest", shipped / "sample" / "0.png", shipped / "sample" / "1.png", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("self-test passed: 5 images"), "JSON lines are alone on stdout"
    lines = done.stdout.splitlines()
    expected = read_json(shipped / "sample" / "expected.json")["models"]["float32"]["logits"]
    for line, logits in zip(lines, expected, strict=False):
        top = json.loads(line)["top"]
        assert top[0]["label"] == str(int(np.argmax(logits)))
        assert [t["probability"] for t in top] == sorted((t["probability"] for t in top), reverse=True)
    assert len(lines) == 2


def test_a_case_that_does_not_come_out_fails_the_selftest(bundle: Path) -> None:
    path = bundle / "sample" / "expected.json"
    facts = read_json(path)
    facts["models"]["float32"]["logits"][2][0] += 1e-3
    write_json(path, facts)
    done = _run(bundle, "--selftest")
    assert done.returncode == 1
    assert "FAILED" in done.stdout


def test_a_selftest_without_cases_fails(bundle: Path) -> None:
    facts = {"schema": 1, "cases": [], "models": {"float32": {"tolerance": 1.0, "logits": []}}}
    write_json(bundle / "sample" / "expected.json", facts)
    assert _run(bundle, "--selftest").returncode == 1


@pytest.mark.parametrize("model", ["float32", "int8", "float16"])
def test_each_of_a_bundles_models_passes_its_own_selftest(shipped: Path, model: str) -> None:
    done = _run(shipped, "--model", model, "--selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("self-test passed: 5 images")


@pytest.mark.parametrize("model", ["float32", "int8", "float16"])
def test_a_network_of_many_operators_passes_its_selftest(many_operators: Path, model: str) -> None:
    done = _run(many_operators, "--model", model, "--selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("self-test passed: 5 images")


def test_the_model_that_is_asked_for_answers(
    bundle: Path, script: ModuleType, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(bundle), str(bundle / "sample" / "0.png"), "--json"]
    assert [script.main([*words, "--model", name]) for name in ("float32", "int8")] == [0, 0]
    first, second = capfd.readouterr().out.splitlines()
    assert first != second
    put(bundle, models={"float32": read_json(bundle / "manifest.json")["models"]["float32"]})
    refused("no int8 model, there is float32", *words, "--model", "int8")
    with pytest.raises(SystemExit, match="2"):
        script.main([*words, "--model", "int4"])


@pytest.mark.parametrize(("spoil", "says"), SPOILT)
def test_what_is_not_this_bundle_is_refused_in_one_line(bundle: Path, spoil: Any, says: str, refused: Refused) -> None:
    spoil(bundle)
    refused(says, bundle, "--selftest")


def test_labels_of_another_model_are_refused(bundle: Path, refused: Refused) -> None:
    put(bundle, labels=["cat"])
    refused("the manifest has 1 labels", bundle, bundle / "sample" / "0.png")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/../../secret", "..\\secret", "C:secret"])
def test_a_name_that_leads_out_of_the_bundle_is_not_opened(bundle: Path, name: str, refused: Refused) -> None:
    (bundle.parent / "secret").write_bytes(b"secret")
    known = {name: {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}}
    put(bundle, files=read_json(bundle / "manifest.json")["files"] | known)
    put(bundle, ("models", "float32", "file"), name)
    refused("names a file outside itself", bundle, "--selftest")


def test_a_sample_that_leads_out_of_the_bundle_is_not_opened(bundle: Path, refused: Refused) -> None:
    facts = read_json(bundle / "sample" / "expected.json")
    facts["cases"][0]["image"] = "../../0.png"
    write_json(bundle / "sample" / "expected.json", facts)
    (bundle.parent / "0.png").write_bytes((bundle / "sample" / "0.png").read_bytes())
    refused("names a file outside itself", bundle, "--selftest")


@pytest.mark.parametrize("place", ["initializer", "constant"])
@pytest.mark.parametrize("location", ["here.bin", "../here.bin", "/etc/passwd"])
def test_a_model_with_weights_in_other_files_is_refused(
    bundle: Path, place: str, location: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime resolves such names against the working directory where it is given bytes."""
    (bundle / "here.bin").write_bytes(bytes(120))
    add_model(bundle, "float32", weights=external(location, constant=place == "constant"))
    monkeypatch.chdir(bundle)
    refused("external data", bundle, bundle / "sample" / "0.png")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04zipped", b"\x80\x04\x95pickled.", b"ORTM" * 9, b"\x8a" * 400_000])
def test_what_is_no_model_is_refused_in_one_line_whatever_its_hash(
    bundle: Path, content: bytes, refused: Refused
) -> None:
    (bundle / "model.onnx").write_bytes(content)
    put(bundle, ("files", "model.onnx", "sha256"), hashlib.sha256(content).hexdigest())
    refused("error: ", bundle, "--selftest")


def test_answers_that_are_no_numbers_are_no_answers(bundle: Path, refused: Refused) -> None:
    not_a_number(bundle)
    assert _run(bundle, "--selftest").returncode == 1
    refused("not finite", bundle, bundle / "sample" / "0.png", "--json")


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["at the end", "at once"])
@pytest.mark.parametrize("images", [1, 400])
def test_a_reader_that_goes_is_one_line_too(shipped: Path, images: int, environment: dict[str, str]) -> None:
    """Whether the first line is written at once, with others when there are enough of them, or at the end."""
    words = [shipped / "sample" / "0.png"] * images
    code, said = nobody_reads(sys.executable, PYTHON, shipped, *words, **environment)
    assert (code, said) == (2, "error: [Errno 32] Broken pipe\n")


def test_a_process_without_an_output_classifies_in_silence(shipped: Path) -> None:
    command = [sys.executable, PYTHON, shipped, shipped / "sample" / "0.png"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_path_is_named_as_it_was_typed(
    shipped: Path, script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes((shipped / "sample" / "0.png").read_bytes())
    assert script.main([str(shipped), "./0.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == "./0.png"


def test_what_is_no_image_is_said(bundle: Path, refused: Refused) -> None:
    refused("manifest.json: not an image of a known format", bundle, bundle / "manifest.json")
    refused("nothing.png: No such file", bundle, bundle / "nothing.png")
    whole = (bundle / "sample" / "0.png").read_bytes()
    (bundle / "half.png").write_bytes(whole[: len(whole) // 2])
    refused("half.png: ", bundle, bundle / "half.png")


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 9_000)])
def test_an_image_that_would_fill_the_memory_is_refused(
    bundle: Path, tmp_path: Path, size: tuple[int, int], refused: Refused
) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", size).save(path)
    refused("bomb.png: ", bundle, path)


def test_a_thread_of_pixels_that_would_fill_the_memory_is_refused(script: ModuleType, tmp_path: Path) -> None:
    Image.new("L", (30_000, 1)).save(tmp_path / "thread.png")
    with Image.open(tmp_path / "thread.png") as image, pytest.raises(ValueError, match="pixels would become"):
        script.fit(image.convert("RGB"), 224, 224)


@pytest.mark.parametrize("word", ["0", "-1", "many"])
def test_no_class_at_all_cannot_be_asked_for(script: ModuleType, shipped: Path, word: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main([str(shipped), str(shipped / "sample" / "0.png"), "--top", word])


def test_the_script_reads_every_image_as_training_does(shipped: Path, script: ModuleType, tmp_path: Path) -> None:
    """Two programs, one rule: bytes equal for every kind of image."""
    bundle = script.Bundle(shipped)
    for path in zoo(tmp_path / "zoo"):
        with Image.open(path) as image:
            expected = images.fit(image, 8)
        np.testing.assert_array_equal(bundle.read(path), expected, err_msg=path.name)


def test_rows_are_resized_before_columns_whatever_pillow_does_first(script: ModuleType) -> None:
    """Pillow 13 takes the columns of tall images first (its pull request 9549), and so rounds otherwise."""
    pixels = np.random.default_rng(4).integers(0, 256, (90, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    rows = np.asarray(image.resize((20, 90), Image.Resampling.BILINEAR))
    both = Image.fromarray(rows).resize((20, 60), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(script.fit(image, 20, 20), np.asarray(both)[20:40])
    np.testing.assert_array_equal(images.fit(image, 20), np.asarray(both)[20:40])


def test_the_script_states_the_rule_that_the_manifest_states(script: ModuleType) -> None:
    assert (script.RULE, script.LARGER) == (images.RESIZE, images.RESIZE_LARGER)


def test_no_name_commands_the_terminal(script: ModuleType, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.shown(LETTERS) == escaping.shown(LETTERS)
    labels = [f"{digit}\x1b[31m\n{digit}" for digit in range(10)]
    put(bundle, ("labels",), labels)
    named = bundle / "sample" / "a\x9b31m.png"
    named.write_bytes((bundle / "sample" / "0.png").read_bytes())
    assert script.main([str(bundle), str(named)]) == 0
    assert script.main([str(bundle), "nowhere\x1b[31m"]) == 2
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x9b"} & set(out + err)
    assert (len(out.splitlines()), len(err.splitlines())) == (1, 1)
