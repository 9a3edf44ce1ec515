from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import (
    CALLS,
    EPOCHS,
    STEPS,
    Quiet,
    built,
    digest,
    no_waiting,
    outcome,
    recipe,
    result,
    resume,
    rows,
    signalled,
    start,
    train,
    uninterrupted,
)
from making import run_info
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from okdc.assembly import job as assembly
from okdc.assembly import student as students
from okdc.assembly.student import logits_of
from okdc.backbones.resnet import cifar_resnet
from okdc.data.augmentation import Augmentation
from okdc.data.batches import Normalise, TrainBatches, eval_batches
from okdc.data.datasets import Dataset
from okdc.errors import DiskError, RecipeError, RunError, TrainingError
from okdc.methods.base import Batch, Step
from okdc.recipe.schema import Augment
from okdc.runs import predictions
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import checkpoint, loop
from okdc.training import selection as keep
from okdc.training.metrics import Summary, top1_pct

# ---------------------------------------------------------------------------------------------------------------------
# The seed is all


def test_two_runs_of_one_seed_are_equal_to_the_bit() -> None:
    assert outcome(start()) == uninterrupted()


def test_another_seed_gives_other_weights_and_another_log() -> None:
    other = start("seed=1")
    assert result(other)["weights_sha256"] != uninterrupted()["result"]["weights_sha256"]
    assert rows(other)[0]["losses"] != uninterrupted()["rows"][0]["losses"]


def test_no_global_generator_has_a_say() -> None:
    """Neither before the start nor while it trains: an extra evaluation somewhere must not change a run."""

    def poison(call: int = 99) -> None:
        torch.manual_seed(call)
        np.random.seed(call)
        random.seed(call)
        torch.rand(call)

    poison()
    assert outcome(start(tell=Quiet(poison))) == uninterrupted()


def test_a_run_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    start("optim.epochs=1")
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def test_an_epoch_is_its_whole_batches_and_a_run_its_epochs() -> None:
    """50 images are three batches of 16; the two left over would be a batch of their own for BatchNorm."""
    job, sizes = built(recipe()), []
    job.method.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0].images)) if m.training else None)
    tell = Quiet()
    run = train(job, tell)
    assert sizes == [16] * (STEPS * EPOCHS)
    assert [row["epoch"] for row in run.rows()] == [1, 2, 3]
    assert len(tell.counts) == CALLS
    assert [done for done, _ in tell.counts] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    assert {total for _, total in tell.counts} == {9}


def test_every_module_is_in_training_mode_at_every_step() -> None:
    """Validation leaves evaluation mode behind; an epoch that begins in it would train with frozen statistics."""
    job, modes, tracked = built(recipe()), [], []

    def look(method: nn.Module, args: Any) -> None:  # noqa: ARG001
        if torch.is_inference_mode_enabled():
            modes.append({m.training for m in method.modules()} == {False})
        else:
            modes.append({m.training for m in method.modules()} == {True})
            tracked.append(int(fused.num_batches_tracked))  # type: ignore[arg-type]

    fused = next(m for name, m in job.method.named_modules() if "fusion" in name and isinstance(m, nn.BatchNorm2d))
    job.method.register_forward_pre_hook(look)
    train(job)
    assert len(modes) > STEPS * EPOCHS
    assert all(modes)
    assert tracked == list(range(STEPS * EPOCHS))  # validation moved the fused classifier's statistics not once


def test_progress_is_the_fraction_of_steps_done_and_both_groups_follow_the_schedule() -> None:
    """The first step has 0. A fusion module whose rate never falls is a known mistake of public code."""
    job = built(recipe("optim.epochs=8"))
    progress: list[float] = []
    rates: list[list[float]] = []
    job.method.register_forward_pre_hook(lambda m, args: progress.append(args[1].item()) if m.training else None)
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: rates.append([g["lr"] for g in optimizer.param_groups])  # noqa: ARG005
    )
    try:
        run = train(job)
    finally:
        hook.remove()
    assert progress == pytest.approx([i / 24 for i in range(24)])
    expected = [0.05] * 12 + [0.005] * 6 + [0.0005] * 6
    assert [r[0] for r in rates] == pytest.approx(expected)
    assert [r[1] for r in rates] == [r[0] for r in rates]
    assert [row["lr"] for row in run.rows()] == pytest.approx(expected[2::3])


def test_three_hundred_epochs_are_three_hundred_rows_and_the_rate_drops_at_150_and_225() -> None:
    run = start(
        "optim.epochs=300",
        "optim.batch_size=10",
        "optim.lr=0.1",
        "data.train_images=10",
        "data.val_fraction=0.0",
        "cohort.keep=0",
        "method.name=baseline",
    )
    found = [row["lr"] for row in run.rows()]
    assert len(found) == 300
    assert found == pytest.approx([0.1] * 150 + [0.01] * 75 + [0.001] * 75)


def test_the_loss_of_a_row_is_the_sum_of_its_terms_and_every_head_has_its_columns() -> None:
    for row in uninterrupted()["rows"]:
        assert set(row["losses"]) == {
            "ce_student0",
            "ce_student1",
            "ce_fused",
            "kl_ensemble_fused",
            "kl_fused_student0",
            "kl_fused_student1",
        }
        assert row["loss"] == pytest.approx(sum(row["losses"].values()))
        assert set(row["train_top1_pct"]) == set(row["val_top1_pct"]) == {"student0", "student1", "fused", "ensemble"}


def test_training_learns() -> None:
    """Two hundred digits and ten epochs: far above chance, or the gradient is not what it should be."""
    run = start("optim.epochs=10", "data.train_images=200", "data.val_fraction=0.1")
    assert run.rows()[-1]["loss"] < run.rows()[0]["loss"] / 2
    assert min(result(run)["heads_last_epoch_top1_pct"].values()) > 70


def test_clipping_bounds_the_gradient_of_everything_that_learns() -> None:
    norms: list[float] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001
        grads = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack(grads).norm().item())

    hook = register_optimizer_step_pre_hook(look)
    try:
        start("optim.clip=0.5", "optim.epochs=1")
        clipped = norms.copy()
        start("optim.epochs=1")
    finally:
        hook.remove()
    assert max(clipped) <= 0.5 + 1e-4
    assert min(norms[len(clipped) :]) > 0.5


def test_bfloat16_and_channels_last_train_and_leave_a_plain_float32_student() -> None:
    run = start("engine.dtype=bfloat16", "engine.memory_format=channels_last")
    weights = load_file(run.weights)
    assert all(value.is_contiguous() for value in weights.values())
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    state, _ = checkpoint.load(run)
    assert state is not None
    kernel = state["method"]["cohort.students.0.stages.3.0.conv2.weight"]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    assert digest(weights) != digest(load_file(start().weights))


# ---------------------------------------------------------------------------------------------------------------------
# The test split is read once


def test_the_test_split_has_no_say_in_weights_log_or_choice() -> None:
    clean, spoilt = built(recipe()), built(recipe())
    images, labels = spoilt.dataset.images.clone(), spoilt.dataset.labels.clone()
    torch.manual_seed(0)
    images[spoilt.dataset.test] = torch.randint(256, images[spoilt.dataset.test].shape, dtype=torch.uint8)
    labels[spoilt.dataset.test] = (labels[spoilt.dataset.test] + 3) % 10
    spoilt = replace(spoilt, dataset=replace(spoilt.dataset, images=images, labels=labels))
    run_a, run_b = train(clean), train(spoilt)
    a, b = outcome(run_a), outcome(run_b)
    assert a["result"].pop("kept")["top1_pct"] != b["result"].pop("kept")["top1_pct"]  # the poison was read, at the end
    answers = [predictions.read(run.predictions, run.read_result()) for run in (run_a, run_b)]
    assert (answers[0].validation.logits == answers[1].validation.logits).all()
    for found, run in ((a, run_a), (b, run_b)):
        del found["result"]["heads_last_epoch_top1_pct"], found["student"]["top1_pct"], found["student"]["sha256"]
        for key in ("largest_class_pct", "smallest_class_pct", "predictions_sha256"):
            del found["result"][key]
        for student in found["result"]["cohort"]:
            del student["top1_pct"], student["student_sha256"]  # of the file that holds the accuracy
            del student["balanced_accuracy_pct"]
        other = 1 - found["student"]["student"]
        found["others"] = read_json(run.files_of_other(other)[1])
        del found["others"]["top1_pct"], found["others"]["sha256"]
    assert a == b


def test_the_validation_split_has_no_say_in_the_weights_of_the_last_epoch() -> None:
    """It chooses; it does not teach, not even through batch statistics."""
    clean, spoilt = built(recipe()), built(recipe())
    images = spoilt.dataset.images.clone()
    images[spoilt.dataset.val] = 255 - images[spoilt.dataset.val]
    spoilt = replace(spoilt, dataset=replace(spoilt.dataset, images=images))
    runs = train(clean), train(spoilt)
    assert digest(clean.method.state_dict()) == digest(spoilt.method.state_dict())
    assert runs[0].rows()[-1]["val_top1_pct"] != runs[1].rows()[-1]["val_top1_pct"]


def test_splits_do_not_meet() -> None:
    found = built(recipe()).dataset
    together = torch.cat([found.train, found.val, found.test])
    assert len(together.unique()) == len(together) == 50 + 50 + 797


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


def expected_choice(log: list[dict[str, Any]], candidates: list[int]) -> tuple[int, int]:
    """Epoch and student of the best validation accuracy: the later epoch of equal ones, the first student of it."""
    best = max(row["val_top1_pct"][f"student{k}"] for row in log for k in candidates)
    epoch = max(row["epoch"] for row in log if best in [row["val_top1_pct"][f"student{k}"] for k in candidates])
    row = log[epoch - 1]
    return epoch, next(k for k in candidates if row["val_top1_pct"][f"student{k}"] == best)


def test_best_keeps_student_and_epoch_by_validation() -> None:
    chosen = set()
    for seed in range(4):
        run = start(f"seed={seed}", "optim.epochs=5", "optim.lr=0.2", "cohort.share=none")
        epoch, student = expected_choice(run.rows(), [0, 1])
        kept = read_json(run.result)["kept"]
        assert (kept["epoch"], kept["student"]) == (epoch, student)
        assert kept["val_top1_pct"] == run.rows()[epoch - 1]["val_top1_pct"][f"student{student}"]
        chosen.add((epoch, student))
    assert {student for _, student in chosen} == {0, 1}, "the seeds above are meant to choose both"
    assert {epoch for epoch, _ in chosen} != {5}, "and an epoch before the last"


@pytest.mark.parametrize("keep", [0, 1])
def test_an_index_keeps_that_student_at_its_best_epoch(keep: int) -> None:
    run = start(f"cohort.keep={keep}", "cohort.share=none", "optim.epochs=4", "optim.lr=0.2")
    kept = read_json(run.result)["kept"]
    assert (kept["epoch"], kept["student"]) == expected_choice(run.rows(), [keep])


def test_the_last_epoch_is_kept_of_every_student_where_the_recipe_says_so() -> None:
    words = ("cohort.share=none", "optim.epochs=4", "optim.lr=0.4")
    best, last = (start(*words, f"cohort.keep_epoch={epoch}") for epoch in ("best", "last"))
    assert rows(best) == rows(last)
    cohort = result(last)["cohort"]
    assert [row["epoch"] for row in cohort] == [4, 4]
    assert {row["epoch"] for row in result(best)["cohort"]} != {4}  # the two differ here
    final = last.rows()[-1]["val_top1_pct"]
    assert [row["val_top1_pct"] for row in cohort] == [final["student0"], final["student1"]]
    assert result(last)["kept"]["student"] == max((0, 1), key=lambda k: (final[f"student{k}"], -k))


def test_balanced_accuracy_chooses_where_the_recipe_says_so() -> None:
    job = built(recipe("cohort.keep_metric=balanced"))
    records: list[keep.Record] = []
    for epoch, top1, balanced in (
        (1, (90.0, 10.0), (20.0, 30.0)),
        (2, (80.0, 5.0), (20.0, 40.0)),
        (3, (99.0, 99.0), (10.0, 39.0)),
    ):
        heads = ("student0", "student1")
        summary = Summary({}, dict(zip(heads, top1, strict=True)), None, dict(zip(heads, balanced, strict=True)))
        records = keep.best(job, epoch, summary, records)
    assert [(r["epoch"], r["val_top1_pct"], r["val_balanced_pct"]) for r in records] == [
        (2, 80.0, 20.0),
        (2, 5.0, 40.0),
    ]
    assert keep.chosen(job, records)["student"] == 1


def test_a_run_that_balanced_accuracy_chooses_records_it() -> None:
    run = start("cohort.keep_metric=balanced", "optim.ema=0.5", "cohort.share=none")
    log = rows(run)
    assert all(set(row["val_balanced_pct"]) == set(row["val_top1_pct"]) for row in log)
    for row in result(run)["cohort"]:
        head = f"student{row['student']}" + ("_ema" if row["averaged"] else "")
        assert row["val_balanced_pct"] == log[row["epoch"] - 1]["val_balanced_pct"][head]
        assert row["val_balanced_pct"] == max(
            each["val_balanced_pct"][f"student{row['student']}{end}"] for each in log for end in ("", "_ema")
        )
    assert read_json(run.student)["val_balanced_pct"] == result(run)["kept"]["val_balanced_pct"]
    assert run.read_result().kept.chosen_by_pct == result(run)["kept"]["val_balanced_pct"]


def test_smallest_keeps_the_student_of_fewest_parameters() -> None:
    run = start("cohort.keep=smallest", 'cohort.students=["resnet14", "resnet8"]', "optim.epochs=2")
    assert read_json(run.result)["kept"]["student"] == 1
    assert read_json(run.student)["architecture"] == "resnet8"
    cifar_resnet(8, 10).load_state_dict(load_file(run.weights), strict=True)


DIFFERENT = ('cohort.students=["resnet14", "resnet8", "resnet8"]', "cohort.share=none")


def test_every_student_is_there_at_its_own_best_epoch() -> None:
    """Students of different sizes are a choice: each as it would be shipped, though one alone is kept."""
    run = start(*DIFFERENT, "optim.epochs=5", "optim.lr=0.2", "seed=3")
    found = read_json(run.result)
    for k, student in enumerate(found["cohort"]):
        epoch, _ = expected_choice(run.rows(), [k])
        assert (student["student"], student["epoch"]) == (k, epoch)
        assert student["val_top1_pct"] == run.rows()[epoch - 1]["val_top1_pct"][f"student{k}"]
        loaded = students.load(run, k)
        assert loaded.network.architecture == student["architecture"] == loaded.info.architecture
        assert student["weights_sha256"] == loaded.info.weights_sha256
    assert [student["architecture"] for student in found["cohort"]] == ["resnet14", "resnet8", "resnet8"]
    assert len({student["epoch"] for student in found["cohort"]}) > 1, "the recipe above is meant to tell epochs apart"
    chosen = found["cohort"][found["kept"]["student"]]
    assert found["kept"].items() <= chosen.items()
    assert found["weights_sha256"] == chosen["weights_sha256"]
    others = {0, 1, 2} - {chosen["student"]}
    files = {path.name for path in run.students.iterdir()}
    assert files == {f"student{k}.{kind}" for k in others for kind in ("safetensors", "json")}
    for k in others:
        assert set(read_json(run.files_of_other(k)[1])) == set(read_json(run.student))


def test_every_students_file_scores_what_was_recorded() -> None:
    job = built(recipe(*DIFFERENT, "optim.epochs=2"))
    run = train(job)
    for k, student in enumerate(read_json(run.result)["cohort"]):
        loaded = students.load(run, k)
        for split, expected in ((job.dataset.val, "val_top1_pct"), (job.dataset.test, "top1_pct")):
            scored = top1_pct(*students.answers(loaded, job.dataset, split))
            assert scored == pytest.approx(student[expected], abs=1e-4)
            assert getattr(loaded.info, expected) == student[expected]


def test_one_student_has_no_others() -> None:
    run = start("method.name=baseline", "optim.epochs=1")
    assert not run.students.exists()
    assert [student["student"] for student in read_json(run.result)["cohort"]] == [0]


def test_the_kept_student_lies_once_though_an_earlier_end_had_kept_another() -> None:
    """On a GPU a training that is continued from the checkpoint before its last may end otherwise."""
    job = built(recipe("cohort.keep=1"))
    run = RunDir.create("held", run_info(recipe=job.recipe.tables()))
    run.students.mkdir()
    for path in run.files_of_other(1):
        path.write_bytes(b"of another end")
    records = keep.best(job, 1, None, ())
    keep.write_all(run, job, records)
    assert {path.name for path in run.students.iterdir()} == {"student0.safetensors", "student0.json"}


@pytest.mark.parametrize("seed", range(20))
def test_the_kept_student_follows_from_the_best_epochs_of_all(seed: int) -> None:
    """As if each epoch had been looked at with all students side by side; accuracies here are equal all the time."""
    job, draw = built(recipe('cohort.students=["resnet8", "resnet8", "resnet8"]')), random.Random(seed)
    log = [
        {"epoch": n, "val_top1_pct": {f"student{k}": float(draw.randint(1, 3)) for k in range(3)}} for n in range(1, 8)
    ]
    records: list[keep.Record] = []
    for row in log:
        accuracy = row["val_top1_pct"]
        assert isinstance(accuracy, dict)
        records = keep.best(job, row["epoch"], Summary({}, accuracy, None), records)  # type: ignore[arg-type]
    found = keep.chosen(job, records)
    assert (found["epoch"], found["student"]) == expected_choice(log, [0, 1, 2])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_recorded_of_an_epoch_does_not_train_on(layout: torch.memory_format) -> None:
    network = cifar_resnet(8, 10).to(memory_format=layout)
    weights = keep.copied(network)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())


def test_the_kept_weights_score_what_was_recorded() -> None:
    """On validation, and on the test split: read back from the file, in float32."""
    job = built(recipe("optim.lr=0.2", "optim.epochs=4"))
    run = train(job)
    loaded = students.load(run)
    rule = loaded.info.preprocessing
    for split, expected in (
        (job.dataset.val, loaded.info.val_top1_pct),
        (job.dataset.test, read_json(run.result)["kept"]["top1_pct"]),
    ):
        batches = eval_batches(job.dataset, split, Normalise(rule.mean, rule.std), 64)
        assert top1_pct(*logits_of(loaded.network, batches)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("share", ["low", "stem1", "none"])
def test_without_validation_the_named_student_of_the_last_epoch_is_kept_as_it_was_trained(share: str) -> None:
    """Its own forward equals its logits inside the method, its keys are the plain network's."""
    job = built(recipe("data.val_fraction=0.0", "cohort.keep=1", f"cohort.share={share}"))
    run = train(job)
    assert [row["val_top1_pct"] for row in run.rows()] == [{}] * EPOCHS
    found = read_json(run.result)["kept"]
    assert (found["student"], found["epoch"], found["val_top1_pct"]) == (1, EPOCHS, None)
    other = read_json(run.result)["cohort"][0]
    assert (other["student"], other["epoch"], other["val_top1_pct"]) == (0, EPOCHS, None)
    network = students.load(run).network
    images = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        batch = Batch(images, torch.zeros(6, dtype=torch.int64))
        inside = job.method.eval()(batch, torch.ones(())).logits["student1"]
        torch.testing.assert_close(network(images), inside, rtol=0, atol=1e-5)
    assert set(load_file(run.weights)) == set(cifar_resnet(8, 10).state_dict())


def test_best_without_validation_images_is_refused() -> None:
    with pytest.raises(RecipeError, match="keep='best'") as caught:
        start("data.val_fraction=0.0")
    assert "cohort.keep=0" in caught.value.hint
    assert not list(Path("runs").glob("*"))


def test_the_students_file_holds_a_plain_backbone_and_nothing_of_peers_or_fused_classifier() -> None:
    run = start()
    weights = load_file(run.weights)
    fresh = cifar_resnet(8, 10)
    assert sorted(weights) == sorted(fresh.state_dict())
    fresh.load_state_dict(weights, strict=True)
    assert sum(weights[name].numel() for name, _ in fresh.named_parameters()) == 78_042


def test_result_json_holds_these_facts() -> None:
    run = start()
    found = read_json(run.result)
    assert set(found) == {
        "schema",
        "method",
        "method_card",
        "variant",
        "students",
        "share",
        "teacher",
        "starts",
        "leader",
        "views",
        "dataset",
        "data_sha256",
        "seed",
        "recipe_sha256",
        "judged_on",
        "images",
        "largest_class_pct",
        "smallest_class_pct",
        "heads_last_epoch_top1_pct",
        "kept",
        "cohort",
        "weights_sha256",
        "log_sha256",
        "sha256",
        "predictions_sha256",
        "epochs",
        "steps",
        "seconds",
        "compiled",
        "images_per_s",
    }
    assert set(found["kept"]) == {
        "student",
        "architecture",
        "epoch",
        "val_top1_pct",
        "top1_pct",
        "balanced_accuracy_pct",
        "params",
        "macs",
    }
    assert (found["kept"]["params"], found["kept"]["macs"]) == (78_042, 781_952)  # of the profile, at 8×8
    assert (found["variant"], found["students"], found["share"]) == ("fefr", ["resnet8", "resnet8"], "low")
    assert found["teacher"] is None
    assert found["data_sha256"] == run.read_info().data_sha256
    assert set(found["heads_last_epoch_top1_pct"]) == {"student0", "student1", "fused", "ensemble"}
    assert (found["judged_on"], found["images"], found["epochs"]) == ("test", 797, EPOCHS)
    assert found["recipe_sha256"] == run.read_info().recipe_sha256 == read_json(run.student)["recipe_sha256"]
    assert found["weights_sha256"] == uninterrupted()["weights"]
    assert found["steps"] == EPOCHS * STEPS
    assert found["images_per_s"] == pytest.approx(EPOCHS * STEPS * 16 / found["seconds"], rel=0.02)
    student = read_json(run.student)
    assert student["top1_pct"] == found["kept"]["top1_pct"]
    assert (student["judged_on"], student["images"]) == ("test", 797)
    assert run.state() == "complete"


def test_a_data_set_without_test_images_is_judged_on_validation_and_says_so() -> None:
    job = built(recipe())
    job = replace(job, dataset=replace(job.dataset, test=torch.empty(0, dtype=torch.int64)))
    found = read_json(train(job).result)
    assert (found["judged_on"], found["images"]) == ("validation", 50)


# ---------------------------------------------------------------------------------------------------------------------
# A loss that is not finite


def spoiling(job: assembly.Job, step: int, term: str, value: float = math.nan) -> None:
    """Let one loss term of the method be `value` at one step of training, counted from 1."""
    seen = 0

    def spoil(method: nn.Module, args: Any, out: Step) -> Step:  # noqa: ARG001
        nonlocal seen
        seen += method.training
        if method.training and seen == step:
            return Step(out.losses | {term: out.losses[term] * value}, out.logits)
        return out

    job.method.register_forward_hook(spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails_the_run_by_step_and_term_and_keeps_what_was_good(value: float) -> None:
    job = built(recipe())
    spoiling(job, 2 * STEPS + 2, "kl_fused_student1", value)
    with pytest.raises(TrainingError, match=r"kl_fused_student1 is not finite at step 8 \(epoch 3\)") as caught:
        train(job)
    assert caught.value.exit_code == 2
    run = RunDir.open(Path("runs/held-1"))
    assert run.state() == "failed"
    assert len(run.rows()) == 2
    state, _ = checkpoint.load(run)
    assert state is not None
    assert state["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in state["method"].values())
    with pytest.raises(RunError, match="kl_fused_student1"):
        resume(run.path)


def test_a_signal_after_a_loss_that_is_not_finite_saves_no_ruined_state() -> None:
    """The look at the losses comes once an epoch; a checkpoint in between must not pass for a good one."""
    job = built(recipe())
    spoiling(job, STEPS + 1, "ce_fused")
    with pytest.raises(TrainingError, match=r"ce_fused is not finite at step 4 \(epoch 2\)"):
        train(job, signalled(STEPS + 1 + 2, signal.SIGINT))
    run = RunDir.open(Path("runs/held-1"))
    state, _ = checkpoint.load(run)
    assert state is not None
    assert (state["epoch"], state["step"], run.state()) == (1, 0, "failed")


def test_a_rate_that_is_far_too_high_fails_in_words() -> None:
    with pytest.raises(TrainingError, match="is not finite") as caught:
        start("optim.lr=1e30")
    assert "optim.lr" in caught.value.hint
    run = RunDir.open(Path("runs/tiny-1"))
    assert run.state() == "failed"
    assert not run.result.exists()


def ruin_at_last_step(job: assembly.Job, to: float = math.inf) -> None:
    """Weights that the last step makes infinite, or huge, while all losses were finite."""
    whole, seen = STEPS * EPOCHS, 0
    head = job.method.cohort.backbone(0).head

    def ruin(grad: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return grad.sign() * to if seen == whole else grad

    list(head.parameters())[-1].register_hook(ruin)  # its bias, so that every answer is ruined


def test_weights_ruined_by_an_epochs_last_step_are_noticed_before_they_are_saved() -> None:
    job = built(recipe())
    ruin_at_last_step(job)
    with pytest.raises(TrainingError, match="a weight is not finite after epoch 3"):
        train(job)
    run = RunDir.open(Path("runs/held-1"))
    assert run.state() == "failed"
    assert read_json(run.student)["epoch"] < 3
    assert not run.students.exists()


def test_weights_ruined_by_the_last_step_fail_where_nothing_validates() -> None:
    """They would otherwise be shipped."""
    job = built(recipe("data.val_fraction=0.0", "cohort.keep=0"))
    ruin_at_last_step(job)
    with pytest.raises(TrainingError, match="not finite"):
        train(job)
    assert RunDir.open(Path("runs/held-1")).state() == "failed"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ((), "validation after epoch 3"),
        (("data.val_fraction=0.0", "cohort.keep=0"), "test images after the last epoch"),
    ],
)
def test_weights_that_are_finite_and_answer_with_numbers_that_are_not_fail_the_run(
    words: tuple[str, ...], where: str
) -> None:
    """Only a look at the answers tells: at the validation of the epoch, or where nothing validates at the judging."""
    job = built(recipe("optim.lr=1.0", "optim.milestones=[]", *words))
    # 1.9 times that by Nesterov: two classes are further apart than float32 goes.
    ruin_at_last_step(job, 1.7e38)
    with pytest.raises(TrainingError, match=where):
        train(job)
    run = RunDir.open(Path("runs/held-1"))
    assert run.state() == "failed"
    assert not run.result.exists()


# ---------------------------------------------------------------------------------------------------------------------
# A full disk


def full(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[[int, tuple[Any, ...]], bool]) -> None:
    """Let a call that writes fail as on a full disk, where `when(number of the call, its arguments)` says so."""
    call, calls = getattr(owner, name), 0

    def refusing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if when(calls, args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args)

    monkeypatch.setattr(owner, name, refusing)


def full_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The disk is full when the nth file is synced; folders, which are synced too, are not counted."""
    files = itertools.count(1)

    def the_nth_file(_: int, args: tuple[Any, ...]) -> bool:
        return stat.S_ISREG(os.fstat(args[0]).st_mode) and next(files) == nth

    full(monkeypatch, os, "fsync", the_nth_file)


def test_a_disk_that_fills_up_at_any_write_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes 1 and 2 make the run. From then on there is a run to continue, whichever write fails."""
    for nth in itertools.count(3):
        with monkeypatch.context() as patch:
            full_at(patch, nth)
            try:
                start()
            except DiskError as error:
                assert "No space left on device" in error.message
                assert error.exit_code == 2
            else:
                break  # the run has fewer writes than that
        run = RunDir.newest("resumable")
        assert {p.name for p in run.path.glob(".*")} == {".lock"}  # nothing half-written is left
        assert outcome(resume(run.path)) == uninterrupted()
    assert nth > 2 + 3 * EPOCHS  # a row, a checkpoint and more in every epoch


@pytest.mark.parametrize("name", [".checkpoint.pt.new", "checkpoint.pt"])
def test_a_checkpoint_that_cannot_be_moved_into_place_leaves_one_to_continue_from(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Path] = []

    def third(_: int, args: tuple[Any, ...]) -> bool:
        moves.extend(args[:1] if args[0].name == name else [])
        return len(moves) == 2 and args[0].name == name

    with monkeypatch.context() as patch:
        full(patch, Path, "replace", third)
        with pytest.raises(DiskError):
            start()
    path = Path("runs/tiny-1")
    tell = Quiet()
    assert outcome(resume(path, tell)) == uninterrupted()
    assert any("continues at epoch" in note for note in tell.notes)


def test_a_failed_write_names_the_file_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    full_at(monkeypatch, 6)
    with pytest.raises(DiskError, match=r"runs/tiny-1/checkpoint\.pt: cannot be written") as caught:
        start()
    assert caught.value.hint
    assert json.loads((Path("runs/tiny-1") / "run.json").read_text())["data_sha256"]


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU


def gpu_batches(device: str) -> tuple[TrainBatches, Dataset]:
    job = built(recipe())
    dataset = job.dataset.to(torch.device(device))
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, torch.device(device))
    return TrainBatches(dataset, 16, Augmentation(Augment(padding=1)), normalise, 0), dataset


@pytest.mark.gpu
def test_data_lives_on_the_gpu_and_its_batches_are_those_of_a_cpu() -> None:
    (here, _), (there, dataset) = gpu_batches("cpu"), gpu_batches("cuda")
    assert dataset.images.is_cuda
    assert dataset.labels.is_cuda
    for (a, x, *_), (b, y, *_) in zip(here.epoch(2), there.epoch(2), strict=True):
        assert b.is_cuda
        torch.testing.assert_close(a, b.cpu())
        assert torch.equal(x, y.cpu())


@pytest.mark.gpu
def test_drawing_batches_on_the_gpu_never_waits_for_it() -> None:
    batches = iter(gpu_batches("cuda")[0].epoch(0))
    next(batches)  # the draws of the epoch cross over here
    with no_waiting():
        left = len(list(batches))
    assert left == STEPS - 1


@pytest.mark.gpu
def test_a_deterministic_run_on_the_gpu_is_equal_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    words = ("engine.device=cuda", "engine.dtype=bfloat16", "deterministic=true")
    try:
        assert outcome(start(*words)) == outcome(start(*words))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("metric", "word", "pct"), [("top1", "val", 100.0), ("balanced", "balanced", 62.5)])
def test_the_line_of_an_epoch_fits_eighty_columns_and_says_what_it_measures(metric: str, word: str, pct: float) -> None:
    heads = ("student0", "student1", "fused", "ensemble")
    summary = Summary({"all": 99.999}, dict.fromkeys(heads, pct), None, dict.fromkeys(heads, pct))
    recipe = SimpleNamespace(cohort=SimpleNamespace(keep_metric=metric))
    training = SimpleNamespace(position=SimpleNamespace(epoch=999), epochs=999, job=SimpleNamespace(recipe=recipe))
    line = loop.Training._line(training, summary, summary)  # type: ignore[arg-type]
    assert line.endswith(f"  {word} students {pct} {pct} fused {pct} ensemble {pct}")
    assert len(line) <= 80
