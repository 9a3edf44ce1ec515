"""predictions.npz: what is kept of a run's answers, and what is refused as such."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import tried
from hypothesis import given
from hypothesis import strategies as st
from making import make_run, write_json

from okdc.errors import CheckFailed, DiskError, RunError
from okdc.runs import predictions
from okdc.runs.files import read_json
from okdc.runs.predictions import Answers
from okdc.runs.run import RunDir

Arrays = dict[str, Any]


@pytest.fixture
def made() -> RunDir:
    return RunDir(make_run("run", "fefr", heads={"student0": 70.0, "fused": 80.0}, result={"images": 60}))


def put(run: RunDir, content: bytes) -> None:
    """Another predictions.npz, with its hash in result.json."""
    run.predictions.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    write_json(run.result, read_json(run.result) | {"predictions_sha256": sha256})


def changed(run: RunDir, change: Callable[[Arrays], object]) -> None:
    with np.load(run.predictions) as stored:
        arrays = dict(stored)
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    put(run, buffer.getvalue())


def read(run: RunDir) -> predictions.Predictions:
    return predictions.read(run.predictions, run.read_result())


def test_what_is_written_is_read_and_the_same_answers_are_the_same_bytes(made: RunDir) -> None:
    answers = read(made)
    before = made.predictions.read_bytes()
    assert list(answers.heads) == ["student0", "fused"]
    assert [int(bits.sum()) for bits in answers.heads.values()] == [42, 48]
    assert [int(bits.sum()) for bits in answers.students] == [54, 54]
    assert (len(answers.test.rows), len(answers.validation.rows)) == (60, 0)
    sha256 = predictions.write(made.predictions, answers)
    assert made.predictions.read_bytes() == before
    assert sha256 == hashlib.sha256(before).hexdigest()


def test_a_full_disk_leaves_the_file_that_was_there(made: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, before = read(made), made.predictions.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError):
        predictions.write(made.predictions, answers)
    assert made.predictions.read_bytes() == before


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@tried
@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4))
def test_no_logit_becomes_infinite_and_the_largest_stays_the_largest(rows: list[list[float]]) -> None:
    logits = np.array(rows, np.float32)
    kept = Answers.of(np.arange(len(rows)), np.zeros(len(rows), np.int64), logits)
    assert np.isfinite(kept.relative).all()
    best = logits.argmax(1)
    assert (kept.relative[np.arange(len(rows)), best] == 0).all()
    assert (kept.relative <= 0).all()


@tried
@given(st.lists(st.lists(st.floats(-60, 60, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_logits_of_a_usual_size_keep_their_probabilities(rows: list[list[float]]) -> None:
    def softmax(z: Any) -> Any:
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    logits = np.array(rows, np.float32)
    kept = Answers.of(np.arange(len(rows)), np.zeros(len(rows), np.int64), logits)
    np.testing.assert_allclose(softmax(kept.logits), softmax(logits), atol=1e-3)
    np.testing.assert_allclose(kept.logits, logits, rtol=1e-3, atol=0.07)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.9, 0.999])
def test_a_flipped_bit_is_not_the_file_that_the_run_recorded(made: RunDir, place: float) -> None:
    content = bytearray(made.predictions.read_bytes())
    content[int(place * len(content))] ^= 4
    made.predictions.write_bytes(content)
    with pytest.raises(CheckFailed, match="is not the file that the run recorded") as caught:
        read(made)
    assert caught.value.kind == "predictions"


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


WRONG: dict[str, Callable[[Arrays], object]] = {
    "missing": lambda a: a.pop("test_logits"),
    "another dtype": lambda a: a.update(test_logits=a["test_logits"].astype(np.float32)),
    "another shape": lambda a: a.update(test_logits=a["test_logits"][:-1]),
    "no table": lambda a: a.update(test_logits=a["test_logits"].ravel()),
    "a scalar": lambda a: a.update(test_rows=np.int64(3)),
    "rows below 0": lambda a: a["test_rows"].__setitem__(0, -1),
    "no such class": lambda a: a["test_labels"].__setitem__(0, 10),
    "not finite": lambda a: a["test_logits"].__setitem__((0, 0), np.nan),
    "infinite": lambda a: a["test_largest"].__setitem__(0, np.inf),
    "fewer bits": lambda a: a.update(heads_right=a["heads_right"][:, :-1]),
    "fewer students": lambda a: a.update(students_right=a["students_right"][:-1]),
    "bits as floats": lambda a: a.update(students_right=a["students_right"].astype(np.float32)),
    "another head": lambda a: a.update(heads=np.array(["student0", "fusion"])),
    "heads that are numbers": lambda a: a.update(heads=np.arange(2)),
    "fewer images": lambda a: a.update({k: a[k][:-1] for k in a if k.startswith("test_")}),
    "a pickle": lambda a: a.update(heads=np.array([Malice()], dtype=object)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_has_the_hash_and_not_the_form_is_damaged(made: RunDir, kind: str) -> None:
    changed(made, WRONG[kind])
    with pytest.raises(RunError, match=r"predictions\.npz is damaged: .") as caught:
        read(made)
    assert caught.value.hint
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip", pickle.dumps([1])], ids=["empty", "cut", "text", "pickle"])
def test_what_is_no_archive_is_damaged(made: RunDir, content: bytes) -> None:
    put(made, content)
    with pytest.raises(RunError, match=r"predictions\.npz is damaged: ."):
        read(made)


def test_a_header_that_asks_for_all_memory_is_damaged(made: RunDir) -> None:
    with np.load(made.predictions) as stored:
        arrays = dict(stored)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array)
            content = member.getvalue()
            if name == "test_logits":
                content = content.replace(b"(60, 10), }      ", b"(99999999999, 10)}"[:17].ljust(17))
                assert content != member.getvalue()
            archive.writestr(f"{name}.npy", content)
    put(made, buffer.getvalue())
    with pytest.raises(RunError, match=r"predictions\.npz is damaged: ."):
        read(made)


@pytest.mark.parametrize("key", ["largest_class_pct", "smallest_class_pct"])
def test_a_result_that_was_edited_does_not_fit_its_predictions(made: RunDir, key: str) -> None:
    facts = read_json(made.result)
    write_json(made.result, facts | {key: facts[key] + 1})
    with pytest.raises(CheckFailed, match=r"result\.json says"):
        read(made)


@pytest.mark.parametrize("key", ["top1_pct", "balanced_accuracy_pct"])
def test_an_accuracy_that_was_edited_does_not_fit_its_predictions(made: RunDir, key: str) -> None:
    facts = read_json(made.result)
    for row in (facts["kept"], facts["cohort"][0]):
        row[key] += 1
    write_json(made.result, facts)
    with pytest.raises(CheckFailed, match=r"student0.* % of the images, result\.json says"):
        read(made)


def test_the_accuracy_of_a_head_that_was_edited_does_not_fit_its_predictions(made: RunDir) -> None:
    facts = read_json(made.result)
    facts["heads_last_epoch_top1_pct"]["fused"] += 1
    write_json(made.result, facts)
    with pytest.raises(CheckFailed, match="head fused has"):
        read(made)


def test_a_missing_file_is_named(made: RunDir) -> None:
    result = made.read_result()
    made.predictions.unlink()
    with pytest.raises(RunError, match=r"predictions\.npz: cannot be read"):
        predictions.read(made.predictions, result)
