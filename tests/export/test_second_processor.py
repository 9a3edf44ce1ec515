"""int8 on another processor: an x86 without VNNI, as qemu's user mode emulates one (Debian's qemu-user).

There onnxruntime adds pairs of 8-bit products in 16 bits, which saturate where weights use all eight bits: a file that
is fine where it was made loses predictions on its user's laptop (github.com/microsoft/onnxruntime/issues/5849, 6004).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from making import write_json
from PIL import Image
from runners import PYTHON, put

from okdc.bundle.artefacts import Setting
from okdc.bundle.layout import EXPECTED, MODELS
from okdc.bundle.session import Session
from okdc.data import digits
from okdc.precision import half, quantize
from okdc.runs.files import read_json

QEMU = shutil.which("qemu-x86_64")
# A Haswell (2013) has AVX2 and no VNNI. What qemu cannot emulate of it is left out, or it warns of each.
HASWELL = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"
SETTING = Setting(weights="per-channel", calibration="minmax")
IMAGES = 300

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="needs an x86 with Linux"),
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed (Debian: qemu-user)"),
]

FEATURES = """
from numpy._core._multiarray_umath import __cpu_features__ as has
print(has["AVX2"], has["FMA3"], has["AVX512F"], has["AVX512VNNI"])
"""
# The same program on both processors: logits of every model in a folder.
ANSWERS = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
folder = Path(sys.argv[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
found = {}
for path in sorted(folder.glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found[path.stem] = session.run(["logits"], {"image": np.load(folder / "images.npy")})[0]
np.savez(sys.argv[2], **found)
"""


def _run(command: list[object]) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def _python_there(*words: object) -> subprocess.CompletedProcess[str]:
    """This interpreter and its packages on the other processor."""
    return _run([QEMU, "-cpu", HASWELL, sys.executable, *words])


def _has_vnni() -> bool:
    return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


needs_vnni = pytest.mark.skipif(not _has_vnni(), reason="this processor has no VNNI: it answers as the emulated one")


@pytest.fixture(scope="module")
def files(shipped: Path) -> dict[str, bytes]:
    """The run's student in its precisions, and in int8 with all eight bits of the weights used."""
    pixels, _ = digits.arrays()
    float32 = (shipped / MODELS["float32"]).read_bytes()
    return {
        "float32": float32,
        "float16": half.half(float32),
        "int8": quantize.quantize(float32, pixels[:256], SETTING),
        "full_range": quantize.quantize(float32, pixels[:256], SETTING, full_range=True),
    }


Logits = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def answers(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> tuple[Logits, Logits]:
    """Logits by file, here and there, of images that calibrated none of them."""
    folder = tmp_path_factory.mktemp("answers")
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
    np.save(folder / "images.npy", digits.arrays()[0][-IMAGES:])
    here = _run([sys.executable, "-c", ANSWERS, folder, folder / "here.npz"])
    there = _python_there("-c", ANSWERS, folder, folder / "there.npz")
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    with np.load(folder / "here.npz") as mine, np.load(folder / "there.npz") as other:
        return dict(mine), dict(other)


def _flips(answers: tuple[Logits, Logits], name: str) -> int:
    here, there = (side[name].argmax(1) for side in answers)
    return int((here != there).sum())


def test_it_has_avx2_and_no_vnni() -> None:
    done = _python_there("-c", FEATURES)
    assert (done.stdout.split(), done.stderr) == (["True", "True", "False", "False"], "")


def test_int8_answers_the_same_to_the_last_bit(answers: tuple[Logits, Logits]) -> None:
    here, there = answers
    np.testing.assert_array_equal(here["int8"], there["int8"])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_floats_answer_the_same_but_for_rounding(answers: tuple[Logits, Logits], precision: str) -> None:
    here, there = answers
    assert _flips(answers, precision) == 0
    np.testing.assert_allclose(there[precision], here[precision], rtol=0, atol=2e-5 if precision == "float32" else 2e-2)


@needs_vnni
def test_weights_that_use_all_eight_bits_change_predictions_there(answers: tuple[Logits, Logits]) -> None:
    """What the default is for, and the proof that the comparison can fail."""
    here, there = answers
    agreement = [(side["full_range"].argmax(1) == side["float32"].argmax(1)).mean() for side in answers]
    assert agreement[0] > 0.98
    assert _flips(answers, "full_range") >= 5
    assert np.abs(here["full_range"] - there["full_range"]).max() > 0.5


def _with_int8(bundle: Path, content: bytes) -> None:
    """A bundle's second model, with the logits that it gives here."""
    put(bundle, ("files", MODELS["int8"]), {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)})
    put(bundle, ("models", "int8"), {"file": MODELS["int8"], "top1_pct": 50.0, "balanced_accuracy_pct": 50.0})
    (bundle / MODELS["int8"]).write_bytes(content)
    expected = read_json(bundle / EXPECTED)
    images = [Image.open(bundle / "sample" / case["image"]) for case in expected["cases"]]
    logits, _ = Session(content)(np.stack([np.asarray(image) for image in images]))
    expected["models"]["int8"] = {"tolerance": 1e-5, "logits": logits.astype(float).tolist()}
    write_json(bundle / EXPECTED, expected)


def test_the_bundles_selftest_passes_there(bundle: Path, files: dict[str, bytes]) -> None:
    _with_int8(bundle, files["int8"])
    done = _python_there(PYTHON, bundle, "--selftest", "--model", "int8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("self-test passed: 5 images")


@needs_vnni
def test_the_selftest_tells_of_a_file_that_answers_otherwise_there(bundle: Path, files: dict[str, bytes]) -> None:
    _with_int8(bundle, files["full_range"])
    assert _run([sys.executable, PYTHON, bundle, "--selftest", "--model", "int8"]).returncode == 0
    done = _python_there(PYTHON, bundle, "--selftest", "--model", "int8")
    assert (done.returncode, done.stdout.startswith("self-test FAILED: 5 images")) == (1, True), done.stderr
