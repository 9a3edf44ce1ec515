"""Is the gate shut? A reduced file that lost something is refused, and what it lost is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import graphs
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import Graph, Pixels
from onnx import ModelProto, helper, numpy_helper

from okdc.bundle.artefacts import REDUCED, Gates
from okdc.bundle.session import Images, Session
from okdc.precision import gate, quantize
from okdc.precision.gate import Float32
from okdc.precision.half import half

Labels = npt.NDArray[np.int64]
CLASSES = [str(c) for c in range(10)]


@pytest.fixture(scope="module")
def judging() -> tuple[Pixels, Labels]:
    images, labels = graphs.digits()
    return images[1000:], labels[1000:]


@pytest.fixture(scope="module")
def int8(blob: bytes) -> bytes:
    return quantize.quantize(blob, graphs.digits()[0][:256], quantize.SETTINGS[0])


def gates(drop: float, agreement: float, class_drop: float) -> Gates:
    return Gates(max_drop=drop, min_agreement=agreement, max_class_drop=class_drop)


def judged(kind: str, blob: bytes, reduced: bytes, images: Images, *others: Any) -> dict[str, Any]:
    """The report on a reduced file, the float32 one being asked here."""
    report = gate.judge(kind, Float32(blob, Session(blob)(images[:], 64)[0]), reduced, images, *others)
    return report.to_json()


def changed(blob: bytes, change: Callable[[ModelProto], None]) -> bytes:
    model = onnx.load_model_from_string(blob)
    change(model)
    made: bytes = model.SerializeToString()
    return made


def bias(add: npt.NDArray[np.float32]) -> Callable[[ModelProto], None]:
    """Something added to the logits."""

    def change(model: ModelProto) -> None:
        name = next(node for node in model.graph.node if node.op_type == "Gemm").input[2]
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + add, name))

    return change


def test_a_sound_int8_file_passes_and_the_report_says_how_close_it_is(
    blob: bytes, int8: bytes, judging: tuple[Pixels, Labels]
) -> None:
    images, labels = judging
    report = judged("int8", blob, int8, images, labels, CLASSES, "test")
    assert report["passed"], report["failures"]
    z, found = Session(blob)(images, 64)[0], Session(int8)(images, 64)[0]
    right, still = z.argmax(1) == labels, found.argmax(1) == labels
    assert report["top1_pct"] == {
        "float32": pytest.approx(100 * right.mean(), abs=1e-3),
        "int8": pytest.approx(100 * still.mean(), abs=1e-3),
    }
    assert report["predictions_that_differ"] == (z.argmax(1) != found.argmax(1)).sum()
    assert report["discordant"] == {
        "float32_only_right": (right & ~still).sum(),
        "int8_only_right": (still & ~right).sum(),
    }
    assert report["drop_points"] == pytest.approx(100 * (right.mean() - still.mean()), abs=1e-3)
    assert report["logits"]["mean_abs"] == pytest.approx(np.abs(z - found).mean(), rel=1e-4)
    assert report["bytes"] == {"float32": len(blob), "int8": len(int8), "ratio": round(len(int8) / len(blob), 4)}
    assert (report["split"], report["images"], report["finite"]) == ("test", len(images), True)
    assert set(report["invariance_max_abs"].values()) == {0.0}
    json.dumps(report, allow_nan=False)


def test_float16_passes_its_own_tighter_gate(blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    report = judged("float16", blob, half(blob), *judging, CLASSES, "test")
    assert report["passed"], report["failures"]
    assert report["gates"] == {"max_drop": 0.2, "min_agreement": 99.5, "max_class_drop": 2.0}
    assert 0 < report["logits"]["max_abs"] < report["tolerance"] < 0.2


def test_int8_calibrated_on_black_images_is_refused(blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    broken = quantize.quantize(blob, np.zeros((64, 8, 8, 3), np.uint8), quantize.SETTINGS[0])
    report = judged("int8", blob, broken, *judging, CLASSES, "test")
    assert not report["passed"]
    said = "\n".join(report["failures"])
    assert "top-1 falls by" in said
    assert "(allowed 1.00)" in said
    assert "predictions differ" in said
    assert "(allowed 97.00 %)" in said


def test_a_loss_in_one_class_alone_is_found_where_the_whole_does_not_show_it(
    blob: bytes, judging: tuple[Pixels, Labels]
) -> None:
    images, labels = judging
    z, _ = Session(blob)(images, 64)
    own = z[:, 3]
    margin = own - np.delete(z, 3, 1).max(1)
    lost = np.sort(margin[(labels == 3) & (margin > 0)])
    add = np.zeros(10, np.float32)
    add[3] = -(lost[5] + lost[6]) / 2  # six images of some eighty: 7.5 points of the class, 0.75 of all
    report = judged("int8", blob, changed(blob, bias(add)), images, labels, CLASSES, "test")
    assert len(report["failures"]) == 1
    assert report["failures"][0].startswith("class '3' falls by ")
    assert report["failures"][0].endswith("(allowed 5.00, at least one image)")
    assert report["worst_class"]["class"] == "3"
    assert report["worst_class"]["change_pct"] < -5
    assert report["drop_points"] < 1


def test_one_image_of_a_small_class_is_allowed_and_two_are_not(blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    images, labels = judging
    z, _ = Session(blob)(images, 64)
    margin = z[:, 3] - np.delete(z, 3, 1).max(1)
    threes = np.flatnonzero((labels == 3) & (margin > 0))
    threes = threes[np.argsort(margin[threes])][:8]
    others = np.flatnonzero((labels != 3) & (z.argmax(1) == labels))[:300]
    rows = np.concatenate([threes, others])
    for flips, passes in ((1, True), (2, False)):
        add = np.zeros(10, np.float32)
        add[3] = -(margin[threes[flips - 1]] + margin[threes[flips]]) / 2
        file = changed(blob, bias(add))
        report = judged("float16", blob, file, images[rows], labels[rows], CLASSES, "test", gates(9, 9, 2.0))
        assert report["passed"] == passes, report["failures"]
        assert report["worst_class"] == {
            "class": "3",
            "images": 8,
            "change_pct": -12.5 * flips,
            "allowed_pct": 12.5,
        }


def test_one_flip_among_few_images_fails_no_gate(blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    images, labels = judging
    z, _ = Session(blob)(images, 64)
    best = np.sort(z, 1)
    margin = np.where(z.argmax(1) == labels, best[:, -1] - best[:, -2], np.inf)
    close, sure = int(margin.argmin()), np.argsort(-best[:, -1] + best[:, -2])[:19]
    rows = np.array([close, *sure])
    add = np.zeros(10, np.float32)
    add[labels[close]] = -margin[close] * 1.01
    report = judged("int8", blob, changed(blob, bias(add)), images[rows], labels[rows], CLASSES, "test")
    assert report["predictions_that_differ"] == 1
    assert report["drop_points"] == 5.0
    assert report["passed"], report["failures"]


def test_gates_are_what_they_are_set_to(blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    assert REDUCED["int8"].gates == gates(1.0, 97.0, 5.0)
    add = np.zeros(10, np.float32)
    add[:5] += 0.5
    file = changed(blob, bias(add))
    strict = judged("int8", blob, file, *judging, CLASSES, "test", gates(0.0, 100.0, 0.0))
    lenient = judged("int8", blob, file, *judging, CLASSES, "test", gates(100.0, 0.0, 100.0))
    assert not strict["passed"]
    assert lenient["passed"], lenient["failures"]


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (gates(1.0, 0.0, 100.0), "top-1 falls"),
        (gates(100.0, 97.0, 100.0), "predictions differ"),
        (gates(100.0, 0.0, 5.0), "class "),
    ],
)
def test_each_limit_refuses_by_itself(limits: Gates, says: str, blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    """A file that takes many images for the first class."""
    file = changed(blob, bias(np.array([8.0] + 9 * [0.0], np.float32)))
    report = judged("int8", blob, file, *judging, CLASSES, "test", limits)
    assert not report["passed"]
    assert report["failures"]
    assert all(line.startswith(says) or says in line for line in report["failures"])


def not_a_number(model: ModelProto) -> None:
    bias(np.array([np.nan] + 9 * [0], np.float32))(model)


def test_an_answer_that_is_no_number_is_right_in_no_image(blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    """numpy takes the place of the first that is none for the largest."""
    report = judged("int8", blob, changed(blob, not_a_number), *judging, CLASSES, "test")
    assert report["top1_pct"]["int8"] == 0.0
    assert report["predictions_that_differ"] == report["images"]
    assert not report["finite"]


def batch_coupling(model: ModelProto) -> None:
    """Every image is told a little of the mean over its batch."""
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    place = list(model.graph.node).index(gemm)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    model.graph.node.insert(place, helper.make_node("ReduceMean", [gemm.input[0], "zero"], ["mean_of_batch"]))
    model.graph.node.insert(place + 1, helper.make_node("Sub", [gemm.input[0], "mean_of_batch"], ["coupled"]))
    gemm.input[0] = "coupled"


def other_softmax(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.op_type = "HardSigmoid"
    del node.attribute[:]


def other_labels(model: ModelProto) -> None:
    next(p for p in model.metadata_props if p.key == "okdc.labels").value = "[]"


def fixed_batch(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "images"


def more_work(model: ModelProto) -> None:
    """The last layer is computed twice, and half of both is taken."""
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    place = list(model.graph.node).index(gemm)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    again = helper.make_node("Gemm", gemm.input, ["again"], transB=1)
    both = helper.make_node("Add", ["once", "again"], ["both"])
    logits = helper.make_node("Mul", ["both", "half"], [gemm.output[0]])
    gemm.output[0] = "once"
    for offset, node in enumerate((again, both, logits)):
        model.graph.node.insert(place + 1 + offset, node)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (not_a_number, "not finite"),
        (more_work, "the file has 782,592 MACs, model.onnx has 781,952"),
        (batch_coupling, "batch 64: logits differ"),
        (other_softmax, "probabilities against the softmax"),
        (other_labels, "metadata okdc.labels"),
        (fixed_batch, "takes or gives other tensors"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_defect_is_named(
    change: Callable[[ModelProto], None], said: str, blob: bytes, judging: tuple[Pixels, Labels]
) -> None:
    images, labels = judging
    report = judged("int8", blob, changed(blob, change), images[:200], labels[:200], CLASSES, "test")
    assert not report["passed"]
    assert any(said in failure for failure in report["failures"]), report["failures"]
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(("times", "passes"), [(0.5, True), (2.0, False), (5.0, False)])
@pytest.mark.parametrize("kind", REDUCED)
def test_answers_depend_on_the_batch_by_no_more_than_another_machine_may_make_of_them(
    kind: str, times: float, passes: bool, judging: tuple[Pixels, Labels]
) -> None:
    """int8: two steps of 256 over the range of the logits; float16: four times what rounding to it changed."""
    images, labels = (part[:640] for part in judging)  # whole batches: seven images at once are in the probe alone

    def blob(*faults: tuple[str, Any]) -> bytes:
        return Graph(lambda g, x: g.plant(g.linear(g.mean(x), 3), *faults)).blob()

    off = np.full(10, 1e-4)  # by rounding
    logits, _ = Session(blob(("always", off)))(images, 64)
    tolerance = {"int8": 2 * float(logits.max() - logits.min()) / 255, "float16": 4 * 1e-4}[kind]
    reduced = blob(("always", off), ("batches of 7", np.full(10, times * tolerance)))
    report = judged(kind, blob(), reduced, images, labels, CLASSES, "test", gates(100, 0, 100))
    assert report["tolerance"] == pytest.approx(tolerance, rel=0.01)
    assert report["passed"] is passes, report["failures"]
    assert all(line.startswith(("batch 64:", "2 threads:")) for line in report["failures"])


def test_a_weight_beyond_float16_is_found_in_the_logits_and_nothing_is_warned_of() -> None:
    images, labels = graphs.digits()
    blob = changed(Graph(graphs.mobilenet).blob(), bias(np.array([1e6] + 9 * [0], np.float32)))
    report = judged("float16", blob, half(blob), images[:100], labels[:100], CLASSES, "test")
    assert not report["passed"]
    assert "not finite" in report["failures"][0]
    assert report["tolerance"] is None
    json.dumps(report, allow_nan=False)


def test_every_image_is_read_once(blob: bytes, int8: bytes, judging: tuple[Pixels, Labels]) -> None:
    images, labels = judging
    read: list[int] = []

    class OnDemand:
        shape = images.shape

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, rows: Any) -> Pixels:
            read.extend(np.arange(len(images))[rows])
            part: Pixels = images[rows]
            return part

    float32 = Float32(blob, Session(blob)(images, 64)[0])
    gate.judge("int8", float32, int8, OnDemand(), labels, CLASSES, "test")
    assert read == list(range(len(images)))


def test_the_float32_file_is_not_asked_again(blob: bytes, judging: tuple[Pixels, Labels]) -> None:
    images, labels = judging
    others = np.roll(Session(blob)(images, 64)[0], 1, axis=1)
    report = gate.judge("float16", Float32(blob, others), half(blob), images, labels, CLASSES, "test")
    assert report.predictions_that_differ == len(images)


def test_fewer_images_than_a_batch_are_enough() -> None:
    images, labels = graphs.digits()
    blob = Graph(graphs.mobilenet).blob()
    for count in (1, 3):
        report = judged("float16", blob, half(blob), images[:count], labels[:count], CLASSES, "validation")
        assert report["passed"], report["failures"]
        assert report["images"] == count
