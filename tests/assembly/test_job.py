from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from asking import write_tree
from harness import Quiet
from PIL import Image
from safetensors.torch import save_file

from okdc.assembly import job as build
from okdc.assembly import reopen
from okdc.assembly import student as kept_student
from okdc.assembly.resolve import resolve
from okdc.data.datasets import Dataset
from okdc.errors import DataError, OkdcError, RecipeError, RunError
from okdc.recipe.schema import Draft, Recipe, load, read
from okdc.runs.files import write_json
from okdc.runs.run import Run


def resolved(*words: str) -> Recipe:
    return resolve(load(words))[0]


def of_folder(*words: str) -> Recipe:
    """A small recipe for the images below ./root."""
    small = ["cohort.students=['resnet8', 'resnet8']", "optim.batch_size=4", "data.image_size=8", "data.root=root"]
    return resolved("folder_resnet20", *small, *words)


@pytest.fixture
def root() -> Path:
    return write_tree(Path("root"), {"train": {"a": 10, "b": 10}})


# --- images that cannot carry the recipe


@pytest.mark.usefixtures("root")
def test_fewer_images_than_a_batch_is_an_error_with_a_batch_that_fits() -> None:
    with pytest.raises(DataError, match=r"optim\.batch_size is 19, there are 18 training images") as caught:
        build.dataset(of_folder("optim.batch_size=19"))
    assert caught.value.hint == "for example: optim.batch_size=2"
    assert len(build.dataset(of_folder("optim.batch_size=18")).train) == 18


@pytest.mark.usefixtures("root")
def test_to_keep_the_best_needs_images_to_choose_on() -> None:
    for fraction in ("0", "0.001"):
        with pytest.raises(RecipeError, match=rf"data\.val_fraction={fraction}.* of 20 images leaves none") as caught:
            build.dataset(of_folder(f"data.val_fraction={fraction}"))
        assert "cohort.keep=0" in caught.value.hint


def test_something_has_to_be_left_to_measure_on(root: Path) -> None:
    with pytest.raises(DataError, match="neither validation nor test images"):
        build.dataset(of_folder("data.val_fraction=0", "cohort.keep=0"))
    write_tree(root, {"test": {"a": 1, "b": 1}})
    assert build.dataset(of_folder("data.val_fraction=0", "cohort.keep=0")).final_split[0] == "test"


@pytest.mark.usefixtures("root")
def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert len(build.dataset(of_folder("data.root=~/root")).images) == 20


# --- the resolved recipe


@pytest.mark.usefixtures("root")
def test_mean_and_std_default_to_those_of_the_training_images_and_can_be_given() -> None:
    recipe = of_folder()
    found = build.dataset(recipe)
    filled = build.with_moments(recipe, found).data
    assert (filled.mean, filled.std) == found.moments()
    given = of_folder("data.mean=[0.5, 0.5, 0.5]")
    half = build.with_moments(given, found).data
    assert (half.mean, half.std) == ((0.5, 0.5, 0.5), found.moments()[1])


def test_the_moments_are_a_function_of_the_training_images_alone(root: Path) -> None:
    before = build.with_moments(of_folder(), build.dataset(of_folder()))
    write_tree(root, {"test": {"a": 5, "b": 5}})
    after = build.with_moments(of_folder(), build.dataset(of_folder()))
    assert before.sha256() == after.sha256()


def test_one_student_kept_by_a_number_has_to_exist() -> None:
    students = "cohort.students=['resnet8', 'resnet8', 'resnet8']"
    assert resolved(students, "cohort.keep=2").cohort.keep == 2
    for words, below in (([students, "cohort.keep=3"], 3), (["method.name=baseline", "cohort.keep=1"], 1)):
        with pytest.raises(RecipeError) as caught:
            resolved(*words)
        assert caught.value.details[0].startswith(f"cohort.keep: expected an index below {below}, found ")


# --- the cohort


def test_what_is_shared_follows_from_the_method_the_students_and_the_recipe_and_is_said() -> None:
    def said(*words: str) -> tuple[int, bool, str]:
        built, sentence = build.cohort(resolved(*words), torch.Size((3, 8, 8)), 10)
        students = list(built.students)
        stems = {id(student.stages[0]) for student in students}  # type: ignore[index]
        return len(students), len(stems) < len(students), sentence

    assert said("cohort.share=none") == (2, False, "the students share nothing")
    assert said("cohort.share=low") == (2, True, "the students share all stages but the last")
    assert said("cohort.share=stem1") == (2, True, "the students share the stem and the first stage")
    unlike = "cohort.students=['resnet8', 'resnet14']"
    assert said(unlike, "cohort.share=low") == (2, False, "the students share nothing: they differ")
    alone = said("method.name=baseline", "cohort.share=low")
    assert alone == (1, False, "baseline trains the first student alone: resnet8")


def test_a_student_starts_from_the_same_weights_whatever_its_peers_and_its_method_are() -> None:
    def first(*words: str) -> torch.Tensor:
        return next(build.method(resolved(*words), torch.Size((3, 8, 8)), 10)[0].cohort.backbone(0).parameters())

    start = first()
    assert torch.equal(start, first("cohort.students=['resnet8', 'resnet14', 'resnet8']"))
    assert torch.equal(start, first("method.name=baseline"))
    assert not torch.equal(start, first("seed=1"))


def test_a_method_that_cannot_be_built_is_a_recipe_error() -> None:
    for words, said in (
        (["cohort.students=['resnet8']"], "at least 2 students"),
        (["method.taps=[9, 10, 11]"], "outside the 4 maps"),
    ):
        with pytest.raises(RecipeError) as caught:
            resolved(*words)
        (problem,) = caught.value.details  # before any image is read
        assert problem.startswith("[method] fefr: ")
        assert said in problem


# --- from a run


def made(recipe: Recipe, found: Dataset) -> Run:
    facts: dict[str, object] = {"classes": list(found.classes), "data_sha256": found.fingerprint}
    return Run.create("made", build.with_moments(recipe, found).text(), facts)


@pytest.mark.usefixtures("root")
def test_the_recipe_of_a_run_is_the_one_it_was_started_with_wherever_its_images_are_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = build.with_moments(of_folder(), build.dataset(of_folder()))
    run = made(recipe, build.dataset(recipe))
    assert reopen.recipe_of(run)[0] == recipe
    moved, _ = reopen.recipe_of(run, "elsewhere")
    assert moved.data.root == "elsewhere"
    assert moved.sha256() == recipe.sha256()
    monkeypatch.setenv("OKDC_DATA_ROOT", "other")
    assert reopen.recipe_of(run, "elsewhere")[0].data.root == "elsewhere"


def add_class(root: Path) -> None:
    write_tree(root / "train", {"c": 10})


def rename_class(root: Path) -> None:
    (root / "train/a").rename(root / "train/z")


def change_image(root: Path) -> None:
    Image.new("RGB", (8, 8)).save(root / "train/a/000.png")


def remove_image(root: Path) -> None:
    (root / "train/a/000.png").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_class, "made-1 was trained on 2 classes, the data has 3"),
        (rename_class, "made-1 was trained on 2 classes"),
        (change_image, "the images are not those of runs/made-1"),
        (remove_image, "the images are not those of runs/made-1"),
    ],
)
def test_images_that_changed_since_a_run_was_started_are_noticed(root: Path, change: object, said: str) -> None:
    recipe = of_folder()
    run = made(recipe, build.dataset(recipe))
    reopen.data_of(run, reopen.recipe_of(run)[0], Quiet())
    assert callable(change)
    change(root)
    with pytest.raises(DataError, match=said):
        reopen.data_of(run, reopen.recipe_of(run)[0], Quiet())


def test_images_that_only_moved_are_those_of_the_run(root: Path) -> None:
    recipe = of_folder()
    run = made(recipe, build.dataset(recipe))
    shutil.move(root, "elsewhere")
    reopen.data_of(run, reopen.recipe_of(run, "elsewhere")[0], Quiet())


@pytest.fixture
def kept() -> Run:
    """A run that kept a student."""
    run = Run.create("kept", resolved().text(), {})
    facts: dict[str, object] = {"architecture": "resnet8", "classes": ["a", "b", "c"], "preprocessing": {"size": 8}}
    facts |= {"student": 0, "epoch": 1} | dict.fromkeys(("method", "dataset", "recipe_sha256", "weights_sha256"), "x")
    write_json(run.student, facts)
    save_file(kept_student.empty(facts).state_dict(), run.weights)
    return run


def test_a_kept_student_is_read_back_in_eval_mode_with_its_weights(kept: Run) -> None:
    network, facts = kept_student.load(kept)
    assert facts["classes"] == ["a", "b", "c"]
    assert not network.training
    fresh = kept_student.empty(facts)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name])
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def cut(run: Run) -> None:
    run.weights.write_bytes(run.weights.read_bytes()[:-100])


def empty(run: Run) -> None:
    run.weights.write_bytes(b"")


def missing(run: Run) -> None:
    run.weights.unlink()


def another(run: Run) -> None:
    save_file(
        kept_student.empty({"architecture": "resnet14", "classes": ["a"], "preprocessing": {"size": 8}}).state_dict(),
        run.weights,
    )


def lacking(run: Run) -> None:
    state = kept_student.empty(
        {"architecture": "resnet8", "classes": ["a", "b", "c"], "preprocessing": {"size": 8}}
    ).state_dict()
    save_file(dict(list(state.items())[1:]), run.weights)


@pytest.mark.parametrize("damage", [cut, empty, missing, another, lacking])
def test_weights_that_are_not_the_students_are_named(kept: Run, damage: object) -> None:
    assert callable(damage)
    damage(kept)
    with pytest.raises(RunError, match=r"student\.safetensors: not the weights of a resnet8"):
        kept_student.load(kept)


def test_a_run_whose_recipe_was_spoilt_is_an_error_with_its_path(kept: Run) -> None:
    kept.recipe.write_text("[optim]\nepoch = 3", encoding="utf-8")
    with pytest.raises(OkdcError, match=r"kept-1/recipe\.toml: \d problems"):
        reopen.recipe_of(kept)


def test_resolving_leaves_the_draft_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKDC_DATA_ROOT", "/x")
    draft = load(["cifar10_resnet20", "method.name=baseline"])
    before = Draft(draft.path, read(draft.path), draft.overridden, draft.problems, draft.notes)
    before.tables["method"]["name"] = "baseline"
    resolve(draft)
    assert draft == before


def test_rules_between_keys_are_reported_with_the_keys_that_are_wrong_alone() -> None:
    with pytest.raises(RecipeError) as caught:
        resolved("optim.epochs=0", "cohort.keep=2", "data.crop_padding=9", "method.groups=3", "optim.epoch=1")
    told = " ".join(caught.value.details)
    for key in ("optim.epochs", "cohort.keep", "data.crop_padding", "method: reconstruct", "optim.epoch:"):
        assert key in told
    assert len(caught.value.details) == 5
