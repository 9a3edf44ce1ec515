"""answers.json: its threshold is chosen on validation alone, by a rule; its counts are of the images that judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bundles import of_digits
from reading import read_data

import okdc
from okdc.bundle.answers import LEAST_WRONG, Outcomes, counts_of, describe, threshold_of
from okdc.bundle.artefacts import Answers
from okdc.bundle.bundle import BundleDir
from okdc.bundle.session import Session
from okdc.runs.run import RunDir


def outcomes(confidence: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_]) -> Outcomes:
    return Outcomes(np.zeros(len(wrong), np.int64), wrong.astype(np.int64), confidence)


NONE = outcomes(np.empty(0), np.empty(0, bool))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("steps", [7, 1000])
def test_the_threshold_is_the_lowest_that_halves_the_error(seed: int, steps: int) -> None:
    """Against the definition, tried confidence by confidence; with few steps many confidences are equal."""
    rng = np.random.default_rng(seed)
    confidence = np.ceil(rng.uniform(0.2, 1, 300) * steps) / steps
    validation = outcomes(confidence, rng.random(300) > confidence)
    counts = {t: validation.at(t) for t in sorted(set(confidence.tolist()))}
    halves = [t for t, c in counts.items() if c.answered_wrong / c.answered <= c.wrong / c.images / 2]
    assert threshold_of(validation) == (halves[0] if halves else "confidence does not tell")


def test_without_enough_to_choose_by_there_is_no_threshold() -> None:
    confidence = np.linspace(0.3, 1, 100)
    few = np.arange(100) < LEAST_WRONG - 1
    assert threshold_of(NONE) == "no validation images"
    assert threshold_of(outcomes(confidence, few)) == "too few wrong answers"
    assert threshold_of(outcomes(confidence, ~few)) == "confidence does not tell"
    assert threshold_of(outcomes(confidence, np.arange(100) < LEAST_WRONG)) == confidence[6]  # 4 of 94


def test_the_images_that_judge_move_no_threshold() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.2, 1, 400)
    validation, judging = (outcomes(confidence, rng.random(400) > confidence) for _ in range(2))
    other = outcomes(judging.confidence, ~judging.wrong)
    found = [describe("test", images, validation).not_sure for images in (judging, other)]
    assert found[0]
    assert found[1]
    assert found[0].threshold == found[1].threshold
    assert found[0].validation == found[1].validation
    assert found[0].judging != found[1].judging


def test_a_class_without_images_and_one_that_is_never_answered_have_no_cells() -> None:
    labels, logits = np.array([0, 0, 2, 2]), np.eye(5)[[0, 4, 2, 0]]
    answers = describe("test", Outcomes.of(labels, logits), NONE)
    assert answers.confusions == ((0, 0, 1), (0, 4, 1), (2, 0, 1), (2, 2, 1))
    assert (answers.not_sure, answers.no_threshold) == (None, "no validation images")
    counts = counts_of(answers, 5)
    assert (counts.images, counts.right) == ([2, 0, 2, 0, 0], [1, 0, 1, 0, 0])


def test_an_export_writes_the_answers_of_its_file(finished: RunDir, blob: bytes, tmp_path: Path) -> None:
    """Both splits asked of the file anew; the run's own validation answers are kept in 16 bits."""
    dataset, session, kept = read_data("digits"), Session(blob), okdc.Run(finished.path).predictions
    bundle = BundleDir.open(of_digits(finished, blob, tmp_path / "bundle"))
    answers = bundle.read("answers.json", Answers)
    of = {}
    for name, rows in (("test", kept.test.rows), ("validation", kept.validation.rows)):
        logits, probabilities = session(dataset.images[rows].numpy(), 64)
        of[name] = Outcomes.of(dataset.labels[rows].numpy(), logits)
        np.testing.assert_allclose(of[name].confidence, probabilities.max(1), rtol=1e-5)
    expected = describe("test", of["test"], of["validation"])
    assert answers.confusions == expected.confusions
    assert answers.not_sure
    assert expected.not_sure
    assert answers.not_sure.threshold == pytest.approx(expected.not_sure.threshold, abs=1e-3)
    assert answers.not_sure.validation == expected.not_sure.validation


def test_another_student_than_the_kept_one_has_a_threshold_of_its_own(run: RunDir) -> None:
    opened = okdc.Run(run.path)
    other = 1 - opened.result.kept.student
    bundle = okdc.export(opened, student=other)
    answers = bundle.folder.read("answers.json", Answers)
    assert bundle.verify()["passed"]
    assert answers.not_sure
    assert answers.not_sure.validation.images == 700
    wrong = answers.images - sum(counts_of(answers, 10).right)
    assert wrong == round(answers.images * (1 - opened.students[other].top1_pct / 100))
