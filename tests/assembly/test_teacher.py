"""A frozen teacher: which one it was, what it must not have seen, and what is left when it is gone."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import signal
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from asking import ask, picture, write_tree
from byhand import SMALL, batch
from harness import Quiet, built, recipe, start, write_recipe
from making import seal
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from okdc import backbones, methods
from okdc.assembly import student as students
from okdc.assembly import teacher as teachers
from okdc.assembly.resolve import resolve
from okdc.assembly.teacher import Renormalised
from okdc.data.batches import Normalise
from okdc.errors import CheckFailed, Interrupted, OkdcError, RecipeError
from okdc.methods.kd import KD
from okdc.recipe.draft import load, read
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
ONCE = "optim.epochs=2"
ALONE = ("method.name=baseline", "cohort.students=['resnet14']", ONCE)


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a ResNet-14. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("school")
    with chdir(folder):
        return harness.start(*ALONE, out=folder / "teacher").path


@pytest.fixture
def teacher(school: Path) -> Path:
    """A copy of it, the test's own, beside the test."""
    shutil.copytree(school, "teacher")
    return Path("teacher")


def kd(where: Path | str, *words: str) -> tuple[str, ...]:
    return ("method.name=kd", f"method.teacher={where}", ONCE, *words)


def refused(*words: str) -> str:
    """All that is said of why a recipe cannot be trained, by the one error that a user sees."""
    with pytest.raises(OkdcError) as caught:
        built(recipe(*words))
    assert caught.value.exit_code == 2
    return "\n".join([caught.value.message, *caught.value.details, caught.value.hint or ""])


# ---------------------------------------------------------------------------------------------------------------------
# A run as teacher


def test_a_run_teaches_and_is_named_with_the_network_and_the_images_it_knows(teacher: Path) -> None:
    tell = Quiet()
    run = start(*kd(teacher), tell=tell)
    assert "the teacher is the resnet14 of teacher, trained on the same images" in tell.notes
    sha256 = hashlib.sha256((teacher / "student.safetensors").read_bytes()).hexdigest()
    assert read(run.recipe)["method"]["teacher_sha256"] == sha256
    facts = read_json(run.result)
    assert facts["teacher"] == {"architecture": "resnet14", "weights_sha256": sha256}
    assert facts["students"] == ["resnet8"]
    assert facts["variant"] == "kd", "where a teacher lies makes no row of its own"
    assert set(facts["heads_last_epoch_top1_pct"]) == {"student0", "teacher"}
    taught = read_json(teacher / "result.json")["kept"]["top1_pct"]
    assert facts["heads_last_epoch_top1_pct"]["teacher"] == taught, "it answers as it was judged"


def test_the_teachers_weights_are_those_of_its_run_and_do_not_change(teacher: Path) -> None:
    job = built(recipe(*kd(teacher)))
    assert isinstance(job.method, KD)
    harness.train(job)
    expected = load_file(teacher / "student.safetensors")
    assert job.method.teacher is not None
    found = job.method.teacher.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_neither_the_recipes_sha256_nor_its_result_depends_on_where_the_teacher_lies(teacher: Path) -> None:
    first = start(*kd(teacher), out=Path("first"))
    Path("far/away").mkdir(parents=True)
    moved = teacher.rename("far/away/moved")
    second = start(*kd(moved.absolute()), out=Path("second"))
    assert read_json(first.info)["recipe_sha256"] == read_json(second.info)["recipe_sha256"]
    assert first.weights.read_bytes() == second.weights.read_bytes()
    assert first.weights.read_bytes() != start(*kd(moved, "method.alpha=0"), out=Path("third")).weights.read_bytes()


def test_a_student_that_was_taught_teaches_the_next_smaller_one(teacher: Path) -> None:
    """A teacher assistant (Mirzadeh et al., 2020) is a chain of runs."""
    assistant = start(*kd(teacher, "cohort.students=['resnet14']"), out=Path("assistant"))
    student = start(*kd(assistant.path, "cohort.students=['resnet8']"), out=Path("student")).read_result()
    assert student.teacher is not None
    assert student.teacher.weights_sha256 == assistant.read_result().weights_sha256
    assert assistant.read_result().teacher != student.teacher


def test_another_teacher_makes_another_sha256(teacher: Path) -> None:
    first = built(recipe(*kd(teacher))).recipe
    retrain(teacher)
    second = built(recipe(*kd(teacher))).recipe
    assert first.sha256() != second.sha256()


def test_the_recipe_of_a_run_repeats_it(teacher: Path) -> None:
    run = start(*kd(teacher))
    again = resolve(load([str(run.recipe)]))
    assert built(again).recipe.sha256() == read_json(run.info)["recipe_sha256"]


def test_an_unfinished_run_teaches_nobody() -> None:
    with pytest.raises(Interrupted):
        start(*ALONE, tell=harness.signalled(1, signal.SIGINT), out=Path("half"))
    said = refused(*kd("half"))
    assert "method.teacher: half is resumable, not complete" in said


@pytest.mark.parametrize("name", ["student.safetensors", "student.json"])
def test_a_damaged_run_teaches_nobody(name: str, teacher: Path) -> None:
    path = teacher / name
    path.write_bytes(path.read_bytes()[:40])
    assert name in refused(*kd(teacher))


def test_a_run_brings_its_own_weights(teacher: Path) -> None:
    said = refused(*kd(teacher, "method.weights=teacher/student.safetensors"))
    assert "method.weights: a run brings its own" in said


def test_what_is_neither_a_run_nor_a_network_is_refused_with_the_nearest() -> None:
    assert "method.teacher: resnet111 is no run, and no network is called 'resnet111'" in refused(*kd("resnet111"))
    assert "did you mean 'resnet110'" in refused(*kd("resnet111"))
    assert "method.teacher: there is no run at" in refused(*kd("runs/x-1"))


def test_a_teacher_has_to_be_named() -> None:
    assert "method.teacher: missing" in refused("method.name=kd")


# --- what it may have seen


def test_a_teacher_of_another_validation_split_is_refused(teacher: Path) -> None:
    """It may have trained on images that judge the student."""
    said = refused(*kd(teacher, "data.val_fraction=0.3"))
    assert "teacher was trained with data.val_fraction=0.05, this recipe has 0.3" in said
    assert "validation images" in said


def test_a_teacher_of_fewer_or_other_training_images_of_the_same_split_is_taken(teacher: Path) -> None:
    for words in (["data.train_images=100"], ["seed=5"]):
        assert built(recipe(*kd(teacher, *words))).method


@pytest.fixture
def images() -> Path:
    """Two folders of pictures, and a finished teacher of the first."""
    for root, classes in (("one", ("cat", "dog")), ("two", ("cat", "dog")), ("three", ("cat", "cow"))):
        write_tree(Path(root), {"train": dict.fromkeys(classes, 30), "test": dict.fromkeys(classes, 5)})
    Image.fromarray(picture(999)).save("two/train/cat/000.png")
    return start(*ALONE, *folder("one"), out=Path("teacher")).path


def folder(root: str) -> tuple[str, ...]:
    return ("data.name=folder", f"data.root={root}", "data.train_images=40", "data.val_fraction=0.1")


def test_a_teacher_of_other_images_classes_or_sizes_is_refused(images: Path) -> None:
    assert built(recipe(*kd(images), *folder("one"))).method
    for words, parts in (
        (folder("two"), ["teacher was trained on other images", "may have seen the ones that judge"]),
        (folder("three"), ["classes"]),
        ((*folder("one"), "data.image_size=12"), ["was trained on 8×8 images, data.image_size is 12"]),
        (("data.train_images=50",), ["teacher was trained on 2 classes"]),  # the digits
    ):
        said = refused(*kd(images), *words)
        assert all(part in said for part in parts), said


# --- another mean and deviation


OWN, GIVEN = ((0.2, 0.4, 0.6), (0.5, 0.25, 0.3)), ((0.5, 0.45, 0.4), (0.2, 0.3, 0.4))


def test_a_teacher_in_another_normalisation_answers_as_in_its_own() -> None:
    torch.manual_seed(0)
    network = backbones.build("resnet14", 10, SMALL)
    pixels = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    for _ in range(3):
        network.train()(Normalise(*OWN)(pixels))
    network.eval()
    with torch.no_grad():
        expected = network(Normalise(*OWN)(pixels))
        found = Renormalised(network, OWN, GIVEN).eval()(Normalise(*GIVEN)(pixels))
        assert not torch.allclose(network(Normalise(*GIVEN)(pixels)), expected, atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_renormalised_teacher_has_no_weights_of_its_own() -> None:
    """What the normalisation differs by is of no checkpoint and no optimiser."""
    network = backbones.build("resnet8", 10, SMALL)
    wrapped = Renormalised(network, OWN, GIVEN)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in network.parameters()}
    assert set(wrapped.state_dict()) == {f"network.{name}" for name in network.state_dict()}


def test_a_run_that_was_normalised_otherwise_is_renormalised_and_one_that_was_not_is_left_alone(teacher: Path) -> None:
    same = built(recipe(*kd(teacher)))
    other = built(recipe(*kd(teacher, "data.mean=[0.5, 0.5, 0.5]", "data.std=[0.2, 0.2, 0.2]")))
    assert isinstance(same.method, KD)
    assert isinstance(other.method, KD)
    assert not isinstance(same.method.teacher, Renormalised)
    assert isinstance(other.method.teacher, Renormalised)
    pixels = same.dataset.pixels(same.dataset.test[:20])
    answers = []
    for job in (same, other):
        assert job.method.teacher is not None
        with torch.no_grad():
            answers.append(job.method.teacher(Normalise(*job.normalisation)(pixels)))
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)


class Keeper(nn.Module):
    """A method that keeps its teacher in two places, or in none."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)


def test_a_teacher_is_renormalised_wherever_its_method_keeps_it(teacher: Path) -> None:
    known = teachers.load(str(teacher), None, 10, SMALL)
    keeper = Keeper(known.network, known.network)
    teachers.renormalise(keeper, known, *GIVEN)
    first, second = keeper.networks
    assert isinstance(first, Renormalised)
    assert first is second
    assert not first.training
    with pytest.raises(RecipeError, match=r"method\.teacher: .* does not keep its network as a module"):
        teachers.renormalise(Keeper(), known, *GIVEN)


# ---------------------------------------------------------------------------------------------------------------------
# A network by name with a file of weights


def weights(name: str = "resnet14", classes: int = 10) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return dict(backbones.build(name, classes, SMALL).state_dict())


def as_safetensors(tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, "w.safetensors")
    return Path("w.safetensors")


def as_torch(tensors: dict[str, torch.Tensor]) -> Path:
    torch.save(tensors, "w.pt")
    return Path("w.pt")


@pytest.mark.parametrize("write", [as_safetensors, as_torch])
def test_a_file_of_weights_teaches_and_what_it_knows_is_said_to_be_unknown(
    write: Callable[[dict[str, torch.Tensor]], Path],
) -> None:
    tensors = weights()
    path = write(tensors)
    tell = Quiet()
    run = start(*kd("resnet14", f"method.weights={path}"), tell=tell)
    assert f"the teacher is resnet14 with {path}: whether it has seen the test images is not known" in tell.notes
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read(run.recipe)["method"]["teacher_sha256"] == sha256
    assert read_json(run.result)["teacher"] == {"architecture": "resnet14", "weights_sha256": sha256}
    known = teachers.load("resnet14", str(path), 10, SMALL)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in known.network.state_dict().items())


def test_a_students_own_file_teaches_by_its_networks_name(teacher: Path) -> None:
    """The way out for whoever answers for what it has seen."""
    known = teachers.load("resnet14", str(teacher / "student.safetensors"), 10, SMALL)
    images = batch().images
    alone = students.load(RunDir.open(teacher)).network
    assert torch.equal(known.network.eval()(images), alone(images))


def test_a_name_needs_a_file_and_the_file_has_to_be_there() -> None:
    assert "method.weights: missing; a teacher by name (resnet14) needs a file" in refused(*kd("resnet14"))
    assert "no such file: nowhere.pt" in refused(*kd("resnet14", "method.weights=nowhere.pt"))
    Path("folder").mkdir()
    assert "method.weights: " in refused(*kd("resnet14", "method.weights=folder"))


def other_network() -> Path:
    return as_safetensors(weights("resnet8"))


def other_classes() -> Path:
    return as_torch(weights(classes=7))


def one_too_few() -> Path:
    return as_safetensors(dict(list(weights().items())[1:]))


def inside_a_checkpoint() -> Path:
    torch.save({"epoch": 3, "state_dict": weights()}, "w.pt")
    return Path("w.pt")


def a_list() -> Path:
    torch.save([1, 2, 3], "w.pt")
    return Path("w.pt")


def cut() -> Path:
    path = as_safetensors(weights())
    path.write_bytes(path.read_bytes()[:100])
    return path


def cut_torch() -> Path:
    path = as_torch(weights())
    path.write_bytes(path.read_bytes()[:1000])
    return path


def empty() -> Path:
    Path("w.pt").touch()
    return Path("w.pt")


def prose() -> Path:
    Path("w.pth").write_text("weights, as it were", encoding="utf-8")
    return Path("w.pth")


WRONG = [other_network, other_classes, one_too_few, inside_a_checkpoint, a_list, cut, cut_torch, empty, prose]


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_wrong_weights_are_refused_in_words(make: Callable[[], Path]) -> None:
    path = make()
    said = refused(*kd("resnet14", f"method.weights={path}"))
    assert said.startswith(f"method.weights: {path}: not the weights of a resnet14 for 10 classes: ")
    assert "\t" not in said
    assert len(said) < 600
    assert refused(*kd("resnet14", f"method.weights={path}")) == said  # torch names tensors in any order


class Evil:
    """What unpickles by running code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("ran").touch, ()


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(write: Callable[..., None]) -> None:
    with Path("w.pt").open("wb") as file:
        write({"stages.0.weight": Evil()}, file)
    refused(*kd("resnet14", "method.weights=w.pt"))
    assert not Path("ran").exists()


def test_the_user_sees_one_error_and_no_traceback(capsys: Captured) -> None:
    path = other_classes()
    answer = ask(capsys, "distill", str(write_recipe()), *kd("resnet14", f"method.weights={path}"))
    assert answer.code == 2
    assert "not the weights of a resnet14 for 10 classes" in answer.err
    assert "Traceback" not in answer.err
    assert not Path("runs").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Afterwards


def retrain(path: Path) -> None:
    """The run's student with other weights, as another training would have left it."""
    tensors = {
        name: t + 0.01 if t.is_floating_point() else t for name, t in load_file(path / "student.safetensors").items()
    }
    save_file(tensors, path / "student.safetensors")
    seal(RunDir(path))


def interrupted(*words: str) -> RunDir:
    with pytest.raises(Interrupted):
        start(*words, tell=harness.signalled(2, signal.SIGINT), out=Path("half"))
    run = RunDir.open(Path("half"))
    assert run.state() == "resumable"
    return run


def test_a_training_that_was_interrupted_continues_with_its_teacher_to_the_bit(teacher: Path) -> None:
    whole = harness.outcome(start(*kd(teacher), out=Path("whole")))
    run = harness.resume(interrupted(*kd(teacher)).path)
    assert harness.outcome(run) == whole


def test_it_does_not_continue_with_a_teacher_that_was_retrained(teacher: Path) -> None:
    run = interrupted(*kd(teacher))
    before = read(run.recipe)["method"]["teacher_sha256"]
    retrain(teacher)
    after = read_json(teacher / "student.json")["weights_sha256"]
    with pytest.raises(OkdcError, match="teacher is not the one of the recipe") as caught:
        harness.resume(run.path)
    assert before[:12] in caught.value.message
    assert after[:12] in caught.value.message
    assert run.state() == "resumable", "with the right teacher it can still go on"


def test_nor_with_other_weights_in_the_file_that_it_was_given() -> None:
    path = as_safetensors(weights())
    run = interrupted(*kd("resnet14", f"method.weights={path}"))
    save_file({name: t + 1 for name, t in weights().items()}, path)
    with pytest.raises(OkdcError, match="is not the one of the recipe"):
        harness.resume(run.path)


def test_without_its_teacher_it_says_what_is_missing_and_stays_resumable(teacher: Path) -> None:
    run = interrupted(*kd(teacher))
    teacher.rename("elsewhere")
    with pytest.raises(OkdcError, match=r"method\.teacher: teacher is no run"):
        harness.resume(run.path)
    Path("elsewhere").rename("teacher")
    assert harness.resume(run.path).state() == "complete"


def test_what_a_teacher_left_behind_needs_it_no_more(teacher: Path, capsys: Captured) -> None:
    run = start(*kd(teacher), out=Path("taught"))
    shutil.rmtree(teacher)
    answer = ask(capsys, "resume", "taught")
    assert answer.code == 0
    assert "complete: nothing to do" in answer.err

    answer = ask(capsys, "profile", "taught", "--json")
    assert answer.code == 0, answer.err
    assert "the training as a whole is not counted: method.teacher: teacher is no run" in answer.err
    rows = json.loads(answer.out)["rows"]
    assert {row["kind"] for row in rows} == {"student"}
    assert {row["params"] for row in rows} == {78_042}

    answer = ask(capsys, "export", "taught", "--onnx", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["parity"]["float32"]["passed"]
    manifest = json.dumps(read_json(run.path / "bundle/manifest.json"))
    assert read(run.recipe)["method"]["teacher_sha256"] in manifest
    assert str(Path.cwd()) not in manifest


def test_profile_counts_the_teacher_with_the_training(teacher: Path, capsys: Captured) -> None:
    start(*kd(teacher), out=Path("taught"))
    answer = ask(capsys, "profile", "taught", "--json")
    assert answer.code == 0, answer.err
    (whole,) = [row for row in json.loads(answer.out)["rows"] if row["kind"] == "training"]
    assert whole["params"] == 78_042 + 175_258
    assert whole["params_trainable"] == 78_042


# ---------------------------------------------------------------------------------------------------------------------
# Who has one


def test_only_a_method_with_a_table_for_it_has_a_teacher() -> None:
    for name in methods.METHODS.own:
        if name == "kd":
            continue
        made = recipe(f"method.name={name}")
        assert not made.has_teacher
        with pytest.raises(RecipeError) as caught:
            recipe(f"method.name={name}", "method.teacher=resnet14")
        assert "method.teacher: unknown key" in caught.value.details[0]


def test_weights_that_are_not_those_that_the_run_describes_teach_nobody(teacher: Path) -> None:
    run = interrupted(*kd(teacher))
    path = teacher / "student.safetensors"
    save_file({name: t + 0.5 if t.is_floating_point() else t for name, t in load_file(path).items()}, path)
    for train in (lambda: harness.resume(run.path), lambda: built(recipe(*kd(teacher)))):
        with pytest.raises(CheckFailed) as caught:
            train()
        assert caught.value.kind == "accuracy"
        assert caught.value.message.startswith("method.teacher: teacher/student.safetensors")


def test_a_kd_bundle_is_evaluated_although_it_does_not_say_where_its_teacher_lay(
    teacher: Path, capsys: Captured
) -> None:
    run = start(*kd(teacher))
    assert ask(capsys, "export", str(run.path), "--onnx").code == 0
    shutil.rmtree(teacher)
    answer = ask(capsys, "evaluate", str(run.path / "bundle"), "--json")
    assert answer.code == 0, answer.err


def test_every_seed_of_a_series_has_the_same_teacher(teacher: Path, capsys: Captured) -> None:
    """A file that another takes the place of between two seeds would be told by nothing else."""
    weights = Path("t.safetensors")
    shutil.copy(teacher / "student.safetensors", weights)
    words = [*kd("resnet14", "method.weights=t.safetensors"), "--seeds", "0,1", "-o", "series"]
    assert ask(capsys, "distill", str(write_recipe()), *words).code == 0
    shutil.rmtree("series/seed1")
    save_file({name: tensor.clone() + 1 for name, tensor in load_file(weights).items()}, weights)
    answer = ask(capsys, "resume", "series")
    assert answer.code == 2
    assert "is not the one of the recipe" in answer.err


def test_a_teacher_that_was_taught_by_who_knows_what_is_not_passed_off_as_clean(teacher: Path) -> None:
    weights = Path("t.safetensors")
    shutil.copy(teacher / "student.safetensors", weights)
    first = start(*kd("resnet14", "method.weights=t.safetensors"), out=Path("first"))
    tell = Quiet()
    second = start(*kd(first.path), tell=tell, out=Path("second"))
    assert any("learned from t.safetensors, which may know the test images" in note for note in tell.notes)
    tell = Quiet()
    start(*kd(second.path), tell=tell, out=Path("third"))
    assert any("learned from t.safetensors" in note for note in tell.notes)


def test_a_teacher_is_no_way_to_make_one(teacher: Path) -> None:
    """kd's `teacher` does not stay behind when another method takes its place."""
    run = start(*kd(teacher))
    resolved = resolve(load([str(run.recipe), "method.name=kdcl", "cohort.students=['resnet8', 'resnet8']"]))
    assert "teacher" not in resolved.recipe.method
    assert any("teacher" in note for note in resolved.notes)
