"""The one training loop. It knows `Method.forward` and nothing of any method.

    start()   a recipe becomes a run: data, cohort, method, a fresh directory, then train()
    resume()  a run's directory becomes the same again, from its last checkpoint, then train()
    train()   epochs of steps; validation; best and last kept; a checkpoint after each epoch and at a signal
    judge()   the test split, read once: every head at the last epoch, and the kept student from its file

Order of a start, on which exactness rests: images, students (each from its own stream), method, device and memory
format, optimiser, checkpoint. No global generator is read after the students are initialised.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from okdc import build
from okdc.build import Job
from okdc.cohort import Backbone
from okdc.data.batches import Normalise, TrainBatches, eval_batches
from okdc.data.images import RESIZE
from okdc.errors import DeviceError, DiskError, Interrupted, RunError, TrainingError
from okdc.files import read_json, write, write_json
from okdc.machine import differences
from okdc.recipe import Engine, Recipe
from okdc.run import Run, refuse_taken
from okdc.talk import Listener
from okdc.training import checkpoint, device, optim
from okdc.training.device import Settings
from okdc.training.metrics import Summary, Totals, evaluate, logits_of, top1_pct
from okdc.training.signals import StopRequest

EVAL_BATCH = 500  # of validation and test; part of what a recorded accuracy means


@dataclass
class Progressed:
    """Where a training is: all of it goes into a checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    totals: Totals | None = None  # of an epoch that was interrupted
    best: dict[str, Any] = field(default_factory=dict)  # epoch, student, val_top1_pct, weights
    seconds: float = 0.0  # in training steps, over all starts
    log_rows: int = 0


def start(recipe: Recipe, stem: str, out: Path | None, provenance: dict[str, Any], tell: Listener) -> Run:
    """Train a recipe from scratch in a new run directory. Returns the complete run."""
    refuse_taken(out)
    settings = device.choose(recipe.engine, recipe.data.image_size, recipe.deterministic)
    for reason in settings.reasons:
        tell.note(reason)
    with tell.reading() as progress:
        found = build.dataset(recipe, progress)
    job = build.job(recipe, found)
    for note in job.notes:
        tell.note(note)
    info = {
        "schema": 1,
        "recipe_sha256": job.recipe.sha256(),
        "data_sha256": found.fingerprint,
        "classes": list(found.classes),
        "started_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "settings": settings.saved(),
        "reasons": list(settings.reasons),
        **provenance,
    }
    run = Run.create(stem, job.recipe.text(), info, out)
    tell.note(f"run {run.path}")
    with run.held(), _continuable(run):
        train(job, run, settings, Progressed(), None, tell)
    return run


def resume(run: Run, tell: Listener, data_root: str | None = None) -> Run:
    """Continue a run to the bit, with the settings it was started with; what keeps it from being exact is said.

    Raises RunError for a run that failed or that another process trains, DeviceError where this machine lacks its
    device, DataError for other images.
    """
    if run.state == "complete":
        tell.note(f"{run.path} is complete: nothing to do")
        return run
    if run.state == "failed":
        why = run.facts().get("failed", "")
        raise RunError(f"{run.path} failed: {why}", hint="it would fail again; start another run")
    facts = read_json(run.info, "settings")
    with run.held(), _continuable(run):
        recipe, _ = build.recipe_of(run, data_root)
        try:
            settings = device.choose(Engine(**facts["settings"]), recipe.data.image_size, recipe.deterministic)
        except DeviceError as error:
            raise DeviceError(f"{run.path}: {error.message}", hint="continue it on a machine like its own") from None
        tell.note("as it was started: " + ", ".join(f"{name} {value}" for name, value in settings.saved().items()))
        for difference in differences(facts):
            tell.note(f"not exact to the bit: {difference}")
        recipe, found = build.data_of(run, data_root, tell)
        job = build.job(recipe, found)
        state, notes = checkpoint.load(run)
        for note in notes:
            tell.note(note)
        progressed = Progressed()
        if state is None:
            tell.note(f"{run.path}: no checkpoint was written yet, it starts from its first step")
        else:
            totals = Totals.restore(state["totals"], settings.torch_device) if state["totals"] else None
            progressed = Progressed(
                state["epoch"], state["step"], totals, state["best"], state["seconds"], state["log_rows"]
            )
            tell.note(f"{run.path} continues at epoch {progressed.epoch + 1}, step {progressed.step + 1}")
        run.keep_rows(progressed.log_rows)
        train(job, run, settings, progressed, state, tell)
    return run


@contextmanager
def _continuable(run: Run) -> Iterator[None]:
    """Whatever ends a training from outside, its last checkpoint stands: say how to go on from it."""
    try:
        yield
    except KeyboardInterrupt:  # before the first step, while judging, or a second Ctrl-C
        raise Interrupted(
            f"SIGINT: {run.path} is as its last checkpoint left it", exit_code=130, hint=f"okdc resume {run.path}"
        ) from None
    except DiskError as error:
        raise DiskError(error.message, hint=f"free some space, then: okdc resume {run.path}") from error


def train(job: Job, run: Run, settings: Settings, at: Progressed, state: dict[str, Any] | None, tell: Listener) -> None:
    """Train from `at` (with the tensors of `state`) to the last epoch, then judge and write the result."""
    recipe = job.recipe
    device.apply(settings, recipe.deterministic)

    # The memory format is final before the optimiser exists: its fused kernel walks raw memory.
    method = job.method.to(settings.torch_device).to(memory_format=settings.torch_memory_format)
    optimizer = optim.sgd(method, recipe.optim)
    if state is not None:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        optim.assert_same_strides(optimizer)

    dataset = job.dataset.to(settings.torch_device)
    assert recipe.data.mean is not None
    assert recipe.data.std is not None
    normalise = Normalise(recipe.data.mean, recipe.data.std, settings.torch_device, settings.torch_memory_format)
    batches = TrainBatches(
        dataset, recipe.optim.batch_size, recipe.data.crop_padding, recipe.data.flip, normalise, recipe.seed
    )
    steps, epochs = batches.steps, recipe.optim.epochs
    whole = steps * epochs
    progress = torch.zeros((), device=settings.torch_device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    candidates = _candidates(job)

    def save(totals: Totals | None) -> None:
        checkpoint.save(
            run,
            {
                "epoch": at.epoch,
                "step": at.step,
                "totals": totals.state() if totals else None,
                "method": method.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": at.best,
                "seconds": at.seconds,
                "log_rows": at.log_rows,
            },
        )

    text, first = "", True
    with StopRequest() as stop, tell.training() as bar:
        while at.epoch < epochs:
            # One epoch. Training mode is set anew each time: validation left eval mode behind.
            method.train()
            totals = at.totals or Totals(settings.torch_device)
            at.totals = None
            began = time.perf_counter()
            for images, labels in batches.epoch(at.epoch, at.step):
                done = at.epoch * steps + at.step
                progress.fill_(done / whole)
                for group in optimizer.param_groups:
                    group["lr"] = optim.rate(recipe.optim, done / whole)

                with settings.autocast():
                    step = method(images, labels, progress)
                loss = torch.stack(list(step.losses.values())).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.optim.clip:
                    torch.nn.utils.clip_grad_norm_(parameters, recipe.optim.clip)
                if first:
                    optim.assert_same_strides(optimizer)
                    first = False
                optimizer.step()
                totals.add(step, labels, done)

                at.step += 1
                bar(done + 1, whole, text)
                if stop.signal and at.step < steps:
                    _stop_if_bad(totals.read(), run, steps)
                    at.seconds += time.perf_counter() - began
                    save(totals)
                    _interrupt(stop, run, at)
            at.epoch, at.step = at.epoch + 1, 0

            # The device is waited for here, once an epoch.
            trained = totals.read()
            at.seconds += time.perf_counter() - began
            _stop_if_bad(trained, run, steps)
            if not torch.stack([p.isfinite().all() for p in parameters]).all():
                _fail(run, f"a weight is not finite after epoch {at.epoch}")
            validated = None
            if len(dataset.val):
                with settings.autocast():
                    validated = evaluate(
                        method, eval_batches(dataset, dataset.val, normalise, EVAL_BATCH), settings.torch_device
                    )
                if validated.bad:
                    _fail(run, f"validation after epoch {at.epoch}: {validated.bad[1]} is not finite")
                _keep_best(at, candidates, validated, method.cohort.backbone, run, job)
            run.append(_row(at, recipe, trained, validated, batches, time.perf_counter() - began))
            at.log_rows += 1
            save(None)
            text = _line(at, epochs, trained, validated)
            bar(at.epoch * steps, whole, text)
            if stop.signal:
                _interrupt(stop, run, at)

    if not at.best:  # no validation images: the student that the recipe names, at the last epoch
        at.best = _record(at.epoch, candidates[0], None, method.cohort.backbone(candidates[0]))
    keep_student(run, job, at.best)
    result = judge(job, run, at, batches)
    measured = {"judged_on": result["judged_on"], "images": result["images"], "top1_pct": result["kept"]["top1_pct"]}
    write_json(run.student, read_json(run.student) | measured)
    write_json(run.result, result)  # last: it is what makes a run complete


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


def _candidates(job: Job) -> list[int]:
    """The students that may be kept."""
    keep, cohort = job.recipe.cohort.keep, job.method.cohort
    count = len(cohort.students)
    if keep == "best":
        return list(range(count))
    if keep == "smallest":
        return [min(range(count), key=lambda k: sum(p.numel() for p in cohort.backbone(k).parameters()))]
    return [keep]


def _keep_best(
    at: Progressed,
    candidates: list[int],
    validated: Summary,
    backbone: Callable[[int], Backbone],
    run: Run,
    job: Job,
) -> None:
    """The best candidate on validation so far. At equal accuracy the later epoch, which has trained longer."""
    accuracy = {k: validated.top1_pct[f"student{k}"] for k in candidates}
    k = max(candidates, key=lambda k: (accuracy[k], -k))
    if not at.best or accuracy[k] >= at.best["val_top1_pct"]:
        at.best = _record(at.epoch, k, accuracy[k], backbone(k))
        keep_student(run, job, at.best)


def _record(epoch: int, k: int, accuracy: float | None, student: Backbone) -> dict[str, Any]:
    weights = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()
    }  # contiguous: safetensors refuses channels_last
    return {"epoch": epoch, "student": k, "val_top1_pct": accuracy, "weights": weights}


def keep_student(run: Run, job: Job, best: dict[str, Any]) -> None:
    """student.safetensors with the plain backbone's own keys, and student.json, which says what they are."""
    weights = to_safetensors(best["weights"])
    recipe = job.recipe
    write(run.weights, weights)
    write_json(
        run.student,
        {
            "schema": 1,
            "architecture": recipe.cohort.students[best["student"]],
            "classes": list(job.dataset.classes),
            "preprocessing": {
                "size": recipe.data.image_size,
                "resize": RESIZE,
                "mean": list(recipe.data.mean or ()),
                "std": list(recipe.data.std or ()),
            },
            "student": best["student"],
            "epoch": best["epoch"],
            "val_top1_pct": best["val_top1_pct"],
            "method": recipe.method["name"],
            "dataset": recipe.data.name,
            "recipe_sha256": recipe.sha256(),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        },
    )


# ---------------------------------------------------------------------------------------------------------------------
# The end: the test split


def judge(job: Job, run: Run, at: Progressed, batches: TrainBatches) -> dict[str, Any]:
    """result.json: in float32, without autocast, every head at the last epoch and the kept student from its file."""
    split, rows = job.dataset.final_split
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # float32 on a GPU, too
        heads = evaluate(
            job.method,
            eval_batches(batches.dataset, rows, batches.normalise, EVAL_BATCH),
            batches.dataset.images.device,
        )
    if heads.bad:  # weights that the last step ruined, where no validation saw them
        _fail(run, f"{split} images after epoch {at.epoch}: {heads.bad[1]} is not finite")
    network, facts = build.student(run)
    logits, labels = student_logits(network, facts, job, rows)
    accuracy = top1_pct(logits, labels)
    return {
        "schema": 1,
        "method": job.recipe.method["name"],
        "dataset": job.recipe.data.name,
        "seed": job.recipe.seed,
        "recipe_sha256": job.recipe.sha256(),
        "judged_on": split,
        "images": len(rows),
        "heads_last_epoch_top1_pct": {name: round(value, 4) for name, value in heads.top1_pct.items()},
        "kept": {
            "student": facts["student"],
            "architecture": facts["architecture"],
            "epoch": facts["epoch"],
            "val_top1_pct": facts["val_top1_pct"],
            "top1_pct": round(accuracy, 4),
        },
        "weights_sha256": facts["weights_sha256"],
        "epochs": job.recipe.optim.epochs,
        "seconds": round(at.seconds, 3),
        "images_per_s": round(at.epoch * batches.steps * batches.batch_size / max(at.seconds, 1e-9), 1),
    }


def student_logits(network: Backbone, facts: dict[str, Any], job: Job, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The kept student's float32 logits, on the CPU, in plain memory format: the same wherever it is asked."""
    rule = facts["preprocessing"]
    cpu = job.dataset.to(torch.device("cpu"))
    return logits_of(network, eval_batches(cpu, rows, Normalise(rule["mean"], rule["std"]), EVAL_BATCH))


# ---------------------------------------------------------------------------------------------------------------------
# Words, and the two ways a training ends early


def _row(
    at: Progressed, recipe: Recipe, trained: Summary, validated: Summary | None, batches: TrainBatches, seconds: float
) -> dict[str, Any]:
    steps = batches.steps
    return {
        "epoch": at.epoch,
        "lr": optim.rate(recipe.optim, (at.epoch * steps - 1) / (recipe.optim.epochs * steps)),
        "loss": sum(trained.losses.values()),
        "losses": trained.losses,
        "train_top1_pct": trained.top1_pct,
        "val_top1_pct": validated.top1_pct if validated else {},
        "seconds": round(seconds, 3),
    }


def _line(at: Progressed, epochs: int, trained: Summary, validated: Summary | None) -> str:
    text = f"epoch {at.epoch}/{epochs}  loss {sum(trained.losses.values()):.3f}"
    if validated:
        text += "  val " + " ".join(f"{name} {value:.1f}" for name, value in validated.top1_pct.items())
    return text


def _stop_if_bad(summary: Summary, run: Run, steps: int) -> None:
    if summary.bad:
        step, term = summary.bad
        _fail(run, f"the loss term {term} is not finite at step {step + 1} (epoch {step // steps + 1})")


def _fail(run: Run, why: str) -> None:
    run.note(failed=why)
    kept = "the checkpoint before it is kept" if run.checkpoint.exists() else "no epoch was finished before it"
    raise TrainingError(f"{why}; {kept} in {run.path}", hint="a lower optim.lr, or optim.clip=1.0")


def _interrupt(stop: StopRequest, run: Run, at: Progressed) -> None:
    assert stop.signal is not None
    raise Interrupted(
        f"{stop.signal.name} after epoch {at.epoch}, step {at.step}: saved in {run.path}",
        exit_code=stop.exit_code,
        hint=f"okdc resume {run.path}",
    )
