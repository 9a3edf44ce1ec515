"""Which device judges a student after a training on a GPU, and in which numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness import Quiet, resume, start
from torch import Tensor

from okdc.assembly import reopen
from okdc.assembly import student as students
from okdc.cohort import Backbone
from okdc.runs import predictions
from okdc.runs.run import RunDir
from okdc.training import result

pytestmark = pytest.mark.gpu

WORDS = ("engine.device=cuda", "engine.compile=off")


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = True


def watched(monkeypatch: pytest.MonkeyPatch, wrong: int = 0) -> list[tuple[str, bool, str, bool]]:
    """Where each student answered, and how. The first `wrong` images of a batch get another class on a GPU."""
    asked: list[tuple[str, bool, str, bool]] = []
    real = result._logits

    def logits(network: Backbone, images: Tensor) -> Tensor:
        z = real(network, images)
        exact = torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        asked.append((images.device.type, exact and torch.backends.cudnn.deterministic, str(z.dtype), network.training))
        if images.is_cuda:
            z[:wrong] = -z[:wrong]
        return z

    monkeypatch.setattr(result, "_logits", logits)
    return asked


def recorded(run: RunDir, wrong: int) -> None:
    """The kept student was judged on the CPU, the other on the GPU, and every file of the run says the same."""
    record = run.read_result()
    kept = record.kept.student
    assert [row.judged_device for row in record.cohort] == ["cpu" if k == kept else "cuda" for k in (0, 1)]
    dataset = reopen.data_of(run, reopen.recipe_of(run), Quiet())
    bits = predictions.read(run.predictions, record).students
    for k, row in enumerate(record.cohort):
        student = students.load(run, k)
        assert student.info.judged_device == row.judged_device
        assert student.info.top1_pct == row.top1_pct
        logits, labels = students.answers(student, dataset, dataset.test)
        right = (logits.argmax(1) == labels).numpy()
        differ = int((right != bits[k]).sum())
        assert differ == 0 if k == kept else differ >= 1 if wrong else differ <= 1  # one by rounding


@pytest.mark.parametrize("wrong", [0, 20])
def test_the_kept_student_is_judged_on_the_cpu_and_the_others_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    asked = watched(monkeypatch, wrong)
    run = start(*WORDS, out=Path("run"))
    assert {device for device, *_ in asked} == {"cpu", "cuda"}
    assert all(exact and dtype == "torch.float32" and not training for _, exact, dtype, training in asked)
    recorded(run, wrong)


def test_a_run_that_died_while_it_was_judged_is_judged_the_same_way_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies(*_: object) -> None:
        raise OSError("the end")

    with monkeypatch.context() as patched:
        patched.setattr(predictions, "write", dies)
        with pytest.raises(OSError, match="the end"):
            start(*WORDS, out=Path("run"))
    recorded(resume(Path("run")), 0)
