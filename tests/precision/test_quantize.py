"""int8: every kind of network, the same bytes anywhere, seven-bit weights, and a search that takes the best."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import graphs
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import Graph, Pixels
from onnx import numpy_helper
from onnxruntime.quantization import quantize_static

from okdc.bundle.artefacts import Setting
from okdc.bundle.session import Session
from okdc.errors import CheckFailed
from okdc.precision import quantize, ranges, regions
from okdc.precision.quantize import SETTINGS

FIRST = SETTINGS[0]


@pytest.fixture(scope="module")
def images() -> Pixels:
    return graphs.digits()[0][:96]


def weights(blob: bytes) -> dict[str, np.ndarray]:
    """The 8-bit weights of a file: initializers of more than one axis."""
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(blob).graph.initializer}
    return {name: value for name, value in found.items() if value.dtype == np.int8 and value.ndim > 1}


def test_there_are_six_settings() -> None:
    assert len(set(SETTINGS)) == len(SETTINGS) == 6


@pytest.mark.parametrize("make", graphs.NETWORKS)
def test_every_kind_of_network_is_quantised_between_its_weights_and_answers_nearly_as_before(
    make: Callable[[Graph, str], str], images: Pixels
) -> None:
    blob = Graph(make).blob()
    small = quantize.quantize(blob, images, FIRST)
    model = onnx.load_model_from_string(small)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    before = onnx.load_model_from_string(blob)
    weighted = [node for node in before.graph.node if node.op_type in regions.WEIGHTED]
    assert len(weights(small)) == len(weighted)
    there = {node.name: node for node in model.graph.node}
    for name in regions.outside(before, "int8")[:4]:  # Cast, Transpose, Sub, Mul: pixels are normalised in float32
        assert there[name] == next(node for node in before.graph.node if node.name == name)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    assert softmax.input[0] == "logits"
    assert model.graph.output == before.graph.output

    (z, _), (found, p) = Session(blob)(images, 64), Session(small)(images, 64)
    assert 0 < np.abs(found - z).mean() < 0.1 * z.std()
    assert np.allclose(p.sum(1), 1, atol=1e-5)


def test_what_is_added_behind_the_last_product_stays_float32(images: Pixels) -> None:
    """A head of MatMul and Add: its bias is none that the product could take in."""
    model = onnx.load_model_from_string(quantize.quantize(Graph(graphs.matrix).blob(), images, FIRST))
    last = next(node for node in model.graph.node if "logits" in node.output)
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert last.op_type == "Add"
    assert last.input[1] in floats


def test_what_the_file_says_of_itself_stays(blob: bytes, images: Pixels) -> None:
    before = onnx.load_model_from_string(blob)
    after = onnx.load_model_from_string(quantize.quantize(blob, images, FIRST))
    assert list(after.metadata_props) == list(before.metadata_props)
    assert (after.ir_version, after.producer_name, after.producer_version) == (
        before.ir_version,
        before.producer_name,
        before.producer_version,
    )
    assert {value.name for value in after.graph.value_info} <= {n for node in after.graph.node for n in node.output}


def test_weights_have_seven_bits_unless_the_full_range_is_asked_for(blob: bytes, images: Pixels) -> None:
    for setting in SETTINGS[:2]:
        narrow, full = (weights(quantize.quantize(blob, images, setting, full_range=f)) for f in (False, True))
        assert max(np.abs(w.astype(int)).max() for w in narrow.values()) == 64
        assert max(np.abs(w.astype(int)).max() for w in full.values()) > 120


def test_each_setting_is_what_it_says(blob: bytes) -> None:
    images = graphs.digits()[0][:1000]  # of fewer, a hundred-thousandth is no value at all
    found = {setting: quantize.quantize(blob, images, setting) for setting in SETTINGS}
    assert len(set(found.values())) == 6
    for setting, small in found.items():
        model = onnx.load_model_from_string(small)
        scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_scale")}
        per_channel = any(
            scales[node.input[1]].size > 1 for node in model.graph.node if node.op_type == "DequantizeLinear"
        )
        assert per_channel == (setting.weights == "per-channel")


SCRIPT = """
import hashlib, sys
from pathlib import Path
import numpy as np
from okdc.precision import quantize
blob, images = Path(sys.argv[1]).read_bytes(), np.load(sys.argv[2])
for setting in quantize.SETTINGS[::2]:
    print(hashlib.sha256(quantize.quantize(blob, images, setting)).hexdigest())
"""


def test_the_bytes_are_the_same_in_another_process_and_in_another_folder_and_nothing_is_printed(
    tmp_path: Path, blob: bytes, images: Pixels, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(blob)
    np.save(tmp_path / "images.npy", images)
    here = [hashlib.sha256(quantize.quantize(blob, images, setting)).hexdigest() for setting in SETTINGS[::2]]
    assert capfd.readouterr() == ("", "")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model.onnx"), str(tmp_path / "images.npy")],
        env=os.environ | {"PYTHONHASHSEED": "7", "TMPDIR": str(elsewhere)},
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == here
    assert done.stderr == ""
    left = {path.name for path in elsewhere.iterdir()} - {".ses"}  # onnxruntime leaves that one when it is imported
    assert not left


def test_the_ranges_do_not_depend_on_how_many_images_are_taken_at_once(
    blob: bytes, images: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        Setting(weights="per-tensor", calibration="entropy"),
        Setting(weights="per-tensor", calibration="percentile"),
    ]
    expected = [quantize.quantize(blob, images, setting) for setting in settings]
    monkeypatch.setattr(ranges, "PIXELS", 7 * 8 * 8)
    assert [quantize.quantize(blob, images, setting) for setting in settings] == expected


def test_a_network_without_weights_is_refused(images: Pixels) -> None:
    blob = Graph(lambda g, x: g.add("MatMul", g.mean(x), g.tensor(np.ones((3, 10))))).blob()
    model = onnx.load_model_from_string(blob)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type = "Gather"
    with pytest.raises(CheckFailed, match="nothing to reduce") as caught:
        quantize.quantize(model.SerializeToString(), images, FIRST)
    assert caught.value.kind == "int8"


# The ranges.


def histogram(values: np.ndarray) -> ranges.Histogram:
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return ranges.Histogram(low, high, ranges._bins(values, max(-low, high)))


def test_the_fast_histogram_counts_as_numpys_does_but_for_values_on_an_edge() -> None:
    values = np.random.default_rng(0).normal(0, 2, 50_000).astype(np.float32)
    reach = float(np.abs(values).max())
    expected, _ = np.histogram(values, ranges.BINS, (-reach, reach))
    found = ranges._bins(values, reach)
    assert found.sum() == len(values)
    assert np.abs(found.cumsum() - expected.cumsum()).max() <= 5


def test_a_tensor_that_is_zero_everywhere_has_a_range() -> None:
    flat = ranges.Histogram(0.0, 0.0, ranges._bins(np.zeros(9, np.float32), 0.0))
    assert flat.percentile() == flat.entropy() == (0.0, 0.0)


def test_percentile_leaves_out_what_is_rarer_than_one_in_a_hundred_thousand_and_nothing_else() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 400_000)
    values[0] = 50.0
    low, high = histogram(values).percentile()
    assert low == pytest.approx(0, abs=0.06)
    assert 0.99 <= high <= 1.06, "the outlier does not stretch the range"
    values[:100] = 50.0
    assert histogram(values).percentile()[1] == 50.0, "a hundred of them do"


def plain_divergence(counts: list[int], width: int, levels: int) -> float:
    """The definition, bin by bin."""
    half = len(counts) // 2
    middle = counts[half - width : half + width]
    p = [float(n) for n in middle]
    p[0] += sum(counts[: half - width])
    p[-1] += sum(counts[half + width :])
    q = [0.0] * len(p)
    for level in range(levels):
        bins = [i for i in range(len(p)) if level * len(p) // levels <= i < (level + 1) * len(p) // levels]
        there = [i for i in bins if p[i]]
        for i in there:
            q[i] = sum(middle[j] for j in bins) / len(there)
    found = 0.0
    for a, b in zip(p, q, strict=True):
        if a:
            a, b = a / sum(p), b / sum(q) or 1e-10
            found += a * math.log(a / b)
    return found


@pytest.mark.parametrize("width", [16, 19, 27, 32])
def test_the_divergence_is_that_of_its_definition(width: int) -> None:
    counts = np.random.default_rng(width).poisson(3, 64) * (np.random.default_rng(1).random(64) > 0.3)
    counts[5] = 40
    assert ranges.divergence(counts, width, 16) == pytest.approx(plain_divergence(counts.tolist(), width, 16))


def test_entropy_keeps_a_range_that_is_used_evenly_and_cuts_off_a_far_outlier() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 100_000)
    low, high = histogram(values).entropy()
    assert low == pytest.approx(0, abs=1e-3)
    assert high == pytest.approx(1, abs=0.02)
    zeros = np.concatenate([values, np.zeros(900_000)])
    assert histogram(zeros).entropy()[1] == histogram(values).entropy()[1], "a Relu's zeros change nothing"
    values[0] = 6.0
    assert 0.9 < histogram(values).entropy()[1] < 1.2


# The search.


def test_the_search_takes_the_setting_that_keeps_most_predictions(blob: bytes) -> None:
    images, labels = graphs.digits()
    said: list[str] = []
    setting, small, rows = quantize.search(blob, images[:96], images[1000:1400], labels[1000:1400], False, said.append)
    assert [(row.weights, row.calibration) for row in rows] == [(s.weights, s.calibration) for s in SETTINGS]
    assert len(said) == 6
    best = max(rows, key=lambda row: (row.agreement_pct, row.top1_pct, -(row.mean_abs or 0.0)))
    assert (best.weights, best.calibration) == (setting.weights, setting.calibration)
    assert small == quantize.quantize(blob, images[:96], setting)
    assert best.bytes == len(small) < 0.6 * len(blob)
    z, found = Session(blob)(images[1000:1400], 64)[0], Session(small)(images[1000:1400], 64)[0]
    assert best.agreement_pct == pytest.approx(100 * (z.argmax(1) == found.argmax(1)).mean())
    assert best.mean_abs == pytest.approx(np.abs(z - found).mean())


RIGHT = [0, 1, 2, 0, 1, 2, 0, 1]  # the labels; the float32 file has the last two wrong
FULL = [0, 1, 2, 0, 1, 2, 1, 2]
OTHERS = ([2, 2, 1, 1, 2, 1, 2, 0], 1.0)  # wrong in every image, and other than float32


@pytest.mark.parametrize(
    ("answers", "best"),
    [
        # As float32 says, beside all right: what is kept counts more than what is right.
        ([OTHERS, (RIGHT, 0.0), (FULL, 0.5)], 2),
        # Both differ from float32 in one image. The first is wrong there and nearer, the other is right.
        ([OTHERS, ([0, 1, 2, 0, 1, 2, 2, 2], 0.0), ([0, 1, 2, 0, 1, 2, 0, 2], 0.5)], 2),
        ([OTHERS, (FULL, 0.5), (FULL, 0.25), (FULL, 0.75)], 2),  # the nearest of those that say the same
        ([OTHERS, (FULL, 0.5), (FULL, 0.5)], 1),  # the first of equal ones
    ],
    ids=["agreement", "accuracy", "difference", "first"],
)
def test_the_order_in_which_a_setting_is_better(
    answers: list[tuple[list[int], float]], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting's file by its answers, and by how much all logits of it are off; those left out are the worst."""
    settings = iter(answers + [OTHERS] * (len(SETTINGS) - len(answers)))

    class Made:
        def __init__(self, *_: object) -> None:
            self.files = iter(range(len(SETTINGS)))

        def __call__(self, _: object) -> bytes:
            return b"file %d" % next(self.files)

    def session(file: bytes) -> Callable[..., tuple[npt.NDArray[np.float32], None]]:
        said, off = (FULL, 0.0) if file == b"float32" else next(settings)
        return lambda *_: (8 * np.eye(3, dtype=np.float32)[said] + np.float32(off), None)

    monkeypatch.setattr(quantize, "Quantizer", Made)
    monkeypatch.setattr(quantize, "Session", session)
    pixels = np.zeros((len(RIGHT), 8, 8, 3), np.uint8)
    setting, file, rows = quantize.search(b"float32", pixels, pixels, np.array(RIGHT), False, lambda _: None)
    assert (setting, file) == (SETTINGS[best], b"file %d" % best)
    assert len(rows) == len(SETTINGS)


def test_a_setting_that_fails_is_a_row_with_an_error_and_is_never_taken(
    blob: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = graphs.digits()

    def fails(*arguments: object, **options: object) -> None:
        if options["per_channel"]:
            raise RuntimeError("no such axis\nand more")
        quantize_static(*arguments, **options)

    monkeypatch.setattr(quantize, "quantize_static", fails)
    setting, _, rows = quantize.search(blob, images[:64], images[:64], labels[:64], False, lambda _: None)
    assert setting.weights == "per-tensor"
    assert [row.error is not None for row in rows] == [True, False] * 3
    assert (rows[0].error or "").endswith("no such axis")


def test_where_no_setting_works_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = graphs.digits()
    model = onnx.load_model_from_string(Graph(graphs.mobilenet).blob())

    def infinite(*_: object) -> bytes:
        bias = next(node for node in model.graph.node if node.op_type == "Gemm").input[2]
        tensor = next(t for t in model.graph.initializer if t.name == bias)
        tensor.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias))
        blob: bytes = model.SerializeToString()
        return blob

    monkeypatch.setattr(quantize.Quantizer, "__call__", infinite)
    with pytest.raises(CheckFailed, match="none of the six") as caught:
        quantize.search(Graph(graphs.mobilenet).blob(), images[:64], images[:64], labels[:64], False, lambda _: None)
    assert caught.value.kind == "int8"
    assert len(caught.value.details) == 6
    assert "not finite" in caught.value.details[0]
