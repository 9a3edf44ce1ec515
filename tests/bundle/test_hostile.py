"""Bundles that are damaged, foreign, or made to do harm: a clear line, exit 1 or 2, and nothing else is touched."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from asking import Answer, ask, picture
from bundles import bomb, edit, edit_model, of_digits, put_model, seal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image

import okdc
from okdc.bundle.bundle import BundleDir
from okdc.errors import CheckFailed
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
Json = dict[str, Any]


@pytest.fixture(autouse=True)
def bundle(finished: RunDir, blob: bytes, tmp_path: Path) -> Path:
    """A bundle whose images are not to be had, so that its accuracy costs nothing; and an image beside it."""
    of_digits(finished, blob, tmp_path / "bundle")
    edit(Path("bundle/manifest.json"), lambda m: m["recipe"]["data"].update(name="folder"))
    Image.fromarray(picture(1)).save("image.png")
    return Path("bundle")


def verified(capsys: Captured) -> Answer:
    return ask(capsys, "verify", "bundle")


def predicted(capsys: Captured) -> Answer:
    return ask(capsys, "predict", "bundle", "image.png")


def refused(answer: Answer, code: int, says: str = "") -> None:
    """One line says what is wrong; it is no bug, and nothing came of it."""
    assert answer.code == code, answer.err
    assert len([line for line in answer.err.splitlines() if line.startswith("error[")]) == 1
    assert "error[bug]" not in answer.err
    assert "Traceback" not in answer.err
    assert says in answer.err


# --- what is opened meanwhile

PYTHON = tuple({str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, Path(okdc.__file__).parents[1])})
CHANGES = ("mkdir", "rename", "remove", "rmdir", "symlink", "link", "chmod", "truncate")
STARTS = ("system", "exec", "posix_spawn", "fork")
OTHER = {*(f"os.{word}" for word in CHANGES + STARTS), "subprocess.Popen", "socket.connect", "pickle.find_class"}
_touched: list[str] | None = None
_watched = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _touched is None:
        return
    if event in OTHER:
        _touched.append(f"{event} {arguments!r}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path = str(Path(os.fsdecode(arguments[0])).absolute())
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        inside = path.startswith((str(Path("bundle").absolute()), str(Path("image.png").absolute()), "/proc", "/sys"))
        if path != os.devnull and (writes or not (inside or path.startswith(PYTHON))):
            _touched.append(f"open {path}")


@contextmanager
def touching_nothing_else() -> Iterator[None]:
    """Opens nothing for writing, and for reading only what is in the bundle, the image and the installation."""
    global _touched, _watched
    if not _watched:  # an audit hook stays for good
        sys.addaudithook(_watch)
        _watched = True
    found: list[str] = []
    _touched = found
    try:
        yield
    finally:
        _touched = None
    assert found == []


def test_the_watch_sees_what_is_touched() -> None:
    with pytest.raises(AssertionError, match=r"open .*new"), touching_nothing_else():
        Path("new").write_text("x")
    with pytest.raises(AssertionError, match=r"open .*new"), touching_nothing_else():
        Path("new").read_text()
    with pytest.raises(AssertionError, match=r"os\.remove"), touching_nothing_else():
        Path("new").unlink()


# --- damage


def names() -> list[str]:
    return sorted(read_json(Path("bundle/manifest.json"))["files"])


@pytest.mark.parametrize("how", ["a byte changed", "cut", "longer", "empty", "missing", "a folder", "a pipe"])
def test_every_file_that_is_not_the_manifests_is_named(capsys: Captured, how: str) -> None:
    """In verify each; in predict the model alone counts."""
    verified(capsys)
    for name in names():
        path = Path("bundle", name)
        content = path.read_bytes()
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a pipe":
            os.mkfifo(path)
        elif how != "missing":
            middle = len(content) // 2
            changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            spoilt = {"a byte changed": changed, "cut": content[:-1], "longer": content + b"\n", "empty": b""}
            path.write_bytes(spoilt[how])
        with touching_nothing_else():
            answer = verified(capsys)
            refused(answer, 1, f"error[files]: bundle/{name}")
            if name in ("model.onnx", "sample/expected.json"):
                assert predicted(capsys).code == (1 if name == "model.onnx" else 0)
        if how == "a folder":
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert verified(capsys).code == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"\x00\xff\xfe", "not JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b"{}", "schema None"),
        (b'{"schema": 2}', "a newer okdc made it"),
        (b'{"schema": "1"}', "schema 1, this okdc reads schema 1"),
        (b'{"schema": true}', "schema True"),
        (b'{"schema": 1e400}', "schema inf"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"schema": 1}', "models: missing"),
        (b'{"a": ' * 100_000, "not JSON"),
        (b'{"schema": 1, "models": ' + b'{"a": ' * 10 + b"1" + b"}" * 11, "is damaged"),
    ],
)
def test_a_manifest_that_is_none_is_refused(capsys: Captured, content: bytes, says: str) -> None:
    Path("bundle/manifest.json").write_bytes(content)
    for answer in (verified(capsys), predicted(capsys)):
        refused(answer, 2, says)
        assert answer.out == ""


def test_a_manifest_cut_anywhere_is_refused(capsys: Captured) -> None:
    path = Path("bundle/manifest.json")
    content = path.read_bytes()
    for end in range(0, len(content) - 2, len(content) // 25):
        path.write_bytes(content[:end])
        refused(verified(capsys), 2)


@pytest.mark.parametrize("thing", ["nothing", "image.png", "a folder", "sample"])
def test_what_is_no_bundle_is_said(capsys: Captured, thing: str) -> None:
    Path("a folder").mkdir()
    shutil.copytree("bundle/sample", "sample")
    for command in ("verify", "predict"):
        refused(
            ask(capsys, command, thing, *(["image.png"] if command == "predict" else [])), 2, f"{thing} is no bundle"
        )


# --- manifests that mean harm


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("models"),
        lambda m: m.pop("judged_on"),
        lambda m: m.update(models=["float32"]),
        lambda m: m.update(models={}),
        lambda m: m["models"].update(int4=m["models"]["float32"]),
        lambda m: m["models"].update(int8=m["models"]["float32"]),
        lambda m: m["models"]["float32"].update(file="../model.onnx"),
        lambda m: m["models"]["float32"].update(file="/etc/passwd"),
        lambda m: m["models"]["float32"].update(top1_pct="97"),
        lambda m: m["models"]["float32"].update(top1_pct=float("nan")),
        lambda m: m["models"]["float32"].update(top1_pct=10**400),
        lambda m: m.update(labels="0123456789"),
        lambda m: m.update(labels=[0, 1]),
        lambda m: m.update(labels=["\ud800", "b"]),
        lambda m: m["input"].update(height=10**9, width=10**9),
        lambda m: m["input"].update(height=True, width=True),
        lambda m: m["input"].update(height=8.0),
        lambda m: m["input"].update(layout="NCHW"),
        lambda m: m["input"].update(resize="squeezed"),
        lambda m: m["input"].update(shorter_side=16),
        lambda m: m["judged_on"].update(part="../../images"),
        lambda m: m["judged_on"].update(rows=[-1]),
        lambda m: m["judged_on"].update(rows=[]),
        lambda m: m["judged_on"].update(rows=[0] * m["accuracy"]["images"]),
        lambda m: m["accuracy"].update(split="test\x1b[2J"),
        lambda m: m.update(architecture="resnet8\nall is as stated"),
        lambda m: m.update(files=[]),
        lambda m: m["files"].update({"infer.py": "0" * 64}),
        lambda m: m["files"].update({"./infer.py": m["files"]["infer.py"]}),
        lambda m: m["files"].update({"sample//0.png": m["files"]["sample/0.png"]}),
        lambda m: m["files"].update({"\x1b[2J": m["files"]["infer.py"]}),
        lambda m: m["files"].update({"nul\0": m["files"]["infer.py"]}),
        lambda m: m["files"].update({f"{i}": m["files"]["infer.py"] for i in range(1000)}),
        lambda m: m["files"]["infer.py"].update(sha256=7),
        lambda m: m["files"]["infer.py"].update(bytes=-1),
        lambda m: m.update(normalisation={"mean": [0.5], "std": [0.5]}),
    ],
)
def test_a_manifest_of_other_types_or_words_is_refused_before_anything_is_used(
    capsys: Captured, change: Callable[[Json], object]
) -> None:
    edit_as_ascii(change)
    for answer in (verified(capsys), predicted(capsys)):
        refused(answer, 2, "error[run]: bundle/manifest.json")
        assert answer.out == ""
        assert len(answer.err) < 3000


def edit_as_ascii(change: Callable[[Json], object]) -> None:
    """As `edit`, for words that are no text."""
    path = Path("bundle/manifest.json")
    facts = read_json(path)
    change(facts)
    path.write_text(json.dumps(facts))


def test_sizes_beyond_all_memory_are_only_numbers(capsys: Captured) -> None:
    edit(Path("bundle/manifest.json"), lambda m: m["files"]["infer.py"].update(bytes=10**9))
    refused(verified(capsys), 1, "infer.py is not the file of the manifest")
    edit(Path("bundle/manifest.json"), lambda m: m["files"]["infer.py"].update(bytes=10**30))
    refused(verified(capsys), 2, "files.infer.py.bytes: expected at most")
    edit(Path("bundle/manifest.json"), lambda m: m["files"]["infer.py"].update(bytes=1))
    edit(Path("bundle/manifest.json"), lambda m: m["accuracy"].update(images=10**18))
    refused(verified(capsys), 2, "judged on 1000000")
    edit(Path("bundle/manifest.json"), lambda m: m["accuracy"].update(images=10**300))
    refused(verified(capsys), 2, "accuracy.images: expected at most")


def test_files_larger_than_any_bundle_has_are_not_read(
    capsys: Captured, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have holes: nothing that large lies on the disk."""
    with (bundle / "infer.py").open("r+b") as stream:
        stream.truncate(2**31)
    edit(bundle / "manifest.json", lambda m: m["files"]["infer.py"].update(bytes=2**31))
    opened = BundleDir.open(bundle)
    with monkeypatch.context() as patch:
        patch.setattr("okdc.bundle.bundle.hashlib.sha256", lambda _: pytest.fail("it was read"))
        with pytest.raises(CheckFailed, match="no file of a bundle has more than 2 GiB"):
            opened.content("infer.py")
    (bundle / "infer.py").unlink()
    edit(bundle / "manifest.json", lambda m: m["files"]["sample/expected.json"].update(bytes=2**25 + 1))
    with pytest.raises(CheckFailed, match="33,554,433 bytes, expected 33,554,432 at most"):
        BundleDir.open(bundle).parsed("sample/expected.json")
    with (bundle / "manifest.json").open("r+b") as stream:
        stream.truncate(2**40)
    for answer in (verified(capsys), predicted(capsys)):
        refused(answer, 2, "no manifest has more than")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "sample/../../secret", "", ".", "a\\..\\b", "link", "link/x", "loop"]
)
def test_a_file_name_that_leads_out_of_the_folder_is_refused_and_not_followed(capsys: Captured, name: str) -> None:
    Path("secret").write_text("secret")
    Path("bundle/link").symlink_to(Path("/etc"))
    Path("bundle/loop").symlink_to("loop")
    edit(Path("bundle/manifest.json"), lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 6}}))
    with touching_nothing_else():
        for answer in (verified(capsys), predicted(capsys)):
            refused(answer, 2, "leads out of the bundle")


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "sample"])
def test_a_link_out_of_the_folder_is_not_followed(capsys: Captured, name: str) -> None:
    shutil.move(f"bundle/{name}", "elsewhere")
    Path("bundle", name).symlink_to(Path("elsewhere").absolute())
    with touching_nothing_else():
        for answer in (verified(capsys), predicted(capsys)):
            refused(answer, 2, "out of the bundle")


@pytest.mark.parametrize("name", ["../manifest.json", "../../image.png", "/etc/passwd", "expected.json/x", "", "é\0"])
def test_a_case_that_leads_out_of_sample_is_not_read(capsys: Captured, name: str) -> None:
    edit(Path("bundle/sample/expected.json"), lambda e: e["cases"][0].update(image=name))
    seal(Path("bundle"))
    with touching_nothing_else():
        refused(verified(capsys), 1, "is not among the files that the manifest names")


def _zip() -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", b"x")
    return stream.getvalue()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize("content", [b"", _zip(), pickle.dumps(Evil()), b"onnx", bytes(1000)])
def test_a_model_that_is_something_else_is_refused_though_its_hash_fits(
    capsys: Captured, bundle: Path, content: bytes
) -> None:
    put_model(bundle, content)
    with touching_nothing_else():
        for answer in (verified(capsys), predicted(capsys)):
            refused(answer, 1, "error[structure]: bundle/model.onnx is no model for a bundle")
    assert not Path("ran").exists()


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def loop(model: onnx.ModelProto) -> None:
    branch = onnx.helper.make_graph([], "branch", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["logits"], ["x"], then_branch=branch, else_branch=branch))


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def fixed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def larger(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11


def endless(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def wordy(model: onnx.ModelProto) -> None:
    for i in range(1000):
        model.graph.node.add(op_type=f"Own{i:099}")


def of_many(model: onnx.ModelProto) -> None:
    for i in range(1000):
        model.opset_import.add(domain=f"{i:0100}", version=1)


def nameless(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def added(operator: str, inputs: list[str], **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    """One more operator, which nothing reads, and the weights that it may ask for."""

    def change(model: onnx.ModelProto) -> None:
        weights: dict[str, Any] = {"size": [2**20, 2**20], "ratio": 0.5, "on": True}
        for name in set(inputs) & set(weights):
            array = np.array(weights[name], np.float32 if name == "ratio" else None)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        model.graph.node.append(onnx.helper.make_node(operator, inputs, ["x"], **attributes))

    return change


def doubled(model: onnx.ModelProto) -> None:
    """A shape with itself, forty times over."""
    model.graph.node.append(onnx.helper.make_node("Shape", ["image"], ["s0"]))
    for i in range(40):
        model.graph.node.append(onnx.helper.make_node("Concat", [f"s{i}"] * 2, [f"s{i + 1}"], axis=0))


FORBIDDEN = [
    added("RandomNormal", [], shape=[2]),
    added("Bernoulli", ["logits"]),
    added("Dropout", ["logits", "ratio", "on"]),
    added("NonZero", ["logits"]),
    added("Unique", ["logits"]),
    added("SequenceConstruct", ["logits"]),
    added("Optional", ["logits"]),
    added("Cast", ["logits"], to=onnx.TensorProto.STRING),
    added("ConstantOfShape", ["size"]),
    added("Expand", ["ratio", "size"]),
    doubled,
]


@pytest.mark.parametrize(
    "change", [external, loop, foreign, fixed, larger, endless, nameless, wordy, of_many, *FORBIDDEN]
)
def test_a_model_that_is_more_or_less_than_a_classifier_is_refused_though_its_hash_fits(
    capfd: pytest.CaptureFixture[str], bundle: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    """onnxruntime writes to stderr by itself: what the process says is one line all the same."""
    Path("secret").write_bytes(bytes(10_000))
    edit_model(bundle, change)
    with touching_nothing_else():
        for answer in (verified(capfd), predicted(capfd)):
            refused(answer, 1)
            assert "onnxruntime:" not in answer.err
            assert len(answer.err) < 2500


def test_a_model_of_any_bytes_is_refused_or_answers(
    capfd: pytest.CaptureFixture[str], bundle: Path, blob: bytes
) -> None:
    """Some bytes of the graph are others; what is then no text, no operator or no network is no bug of okdc's."""
    random = Random(0)
    for _ in range(40):
        changed = bytearray(blob)
        for _ in range(random.choice((1, 1, 3))):
            changed[random.choice((random.randrange(6000), -1 - random.randrange(3000)))] = random.randrange(256)
        put_model(bundle, bytes(changed))
        answer = verified(capfd)
        if answer.code:
            refused(answer, 1)
    put_model(bundle, blob.replace(b"AveragePool", b"Average\xff\xff\xff\xff").replace(b"Relu", b"Re\xffu"))
    refused(verified(capfd), 1, "no operators of ONNX's opset 18: ")


# --- images that mean harm, among the bundle's own

# For such a file Pillow starts Ghostscript, whatever the file's name.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (bomb(), "exceeds limit"),
        (b"", "zero bytes"),
        (b"no image", "not an image of a known format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "0.png: no whole image"),
        (POSTSCRIPT, "not an image of a known format"),
    ],
)
def test_a_case_that_is_no_whole_image_fails(capsys: Captured, bundle: Path, content: bytes, says: str) -> None:
    (bundle / "sample" / "0.png").write_bytes(content)
    seal(bundle)
    with touching_nothing_else():
        refused(verified(capsys), 1, says)


def test_an_image_to_classify_starts_no_program_either(capsys: Captured) -> None:
    Path("image.png").write_bytes(POSTSCRIPT)
    with touching_nothing_else():
        refused(predicted(capsys), 2, "not an image of a known format")


def test_more_cases_than_a_batch_are_not_decoded(capsys: Captured, bundle: Path) -> None:
    def many(expected: Json) -> None:
        expected["cases"] *= 13
        expected["models"]["float32"]["logits"] *= 13

    edit(bundle / "sample" / "expected.json", many)
    seal(bundle)
    refused(verified(capsys), 1, "cases: expected 64 items or fewer")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b'{"cases": [{}], "models": {}}', b"\xff"])
def test_cases_that_are_nonsense_fail(capsys: Captured, bundle: Path, content: bytes) -> None:
    (bundle / "sample" / "expected.json").write_bytes(content)
    seal(bundle)
    refused(verified(capsys), 1, "sample/expected.json")


# --- whatever comes

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "../x", "/etc/passwd", "float32", "cifar10", "os:system", "\ud800", "\x1b[2J", "é" * 500])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(facts: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value; of long lists the first few."""
    inner = facts.items() if isinstance(facts, dict) else enumerate(facts[:3]) if isinstance(facts, list) else ()
    return [at, *(way for key, value in inner for way in places(value, (*at, key)))]


@settings(
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes its own manifest
)
@given(data=st.data())
def test_no_manifest_brings_about_more_than_a_line(capsys: Captured, data: st.DataObject) -> None:
    path = Path("bundle/manifest.json")
    if not Path("first").exists():
        shutil.copy(path, "first")
        verified(capsys)  # what is imported late is imported now
    facts = copy.deepcopy(read_json(Path("first")))
    for _ in range(data.draw(st.integers(1, 2))):
        way = data.draw(st.sampled_from([way for way in places(facts) if way]))
        inside = facts
        for key in way[:-1]:
            inside = inside[key]
        if data.draw(st.booleans()) and isinstance(inside, dict):
            del inside[way[-1]]
        else:
            inside[way[-1]] = data.draw(JUNK)
    path.write_text(json.dumps(facts))
    with touching_nothing_else():
        for answer in (verified(capsys), predicted(capsys)):
            if answer.code:
                refused(answer, answer.code)
            assert answer.code in (0, 1, 2)
