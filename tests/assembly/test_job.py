from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from asking import write_tree
from harness import Quiet
from making import run_info
from PIL import Image

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly import reopen
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.cohort import Backbone
from okdc.data.datasets import Dataset
from okdc.errors import DataError, RecipeError, RunError
from okdc.methods.base import Batch
from okdc.progress import WARNING
from okdc.recipe.draft import load, read
from okdc.recipe.schema import Recipe
from okdc.runs.run import RunDir


def resolved(*words: str) -> ResolvedRecipe:
    return resolve(load(words))


def of_folder(*words: str) -> ResolvedRecipe:
    """A small recipe for the images below ./root."""
    small = ["cohort.students=['resnet8', 'resnet8']", "optim.batch_size=4", "data.image_size=8", "data.root=root"]
    return resolved("folder_resnet20", *small, *words)


@pytest.fixture
def root() -> Path:
    return write_tree(Path("root"), {"train": {"a": 10, "b": 10}})


def filled(resolved: ResolvedRecipe) -> Recipe:
    """A recipe with the mean and std of its images."""
    recipe = resolved.recipe
    return assembly.with_normalisation(recipe, assembly.normalisation_of(recipe, assembly.dataset(resolved)))


def unread() -> Dataset:
    raise AssertionError("the images were read before the method was built")


# --- images that cannot carry the recipe


@pytest.mark.usefixtures("root")
def test_fewer_images_than_a_batch_is_an_error_with_a_batch_that_fits() -> None:
    with pytest.raises(DataError, match=r"optim\.batch_size is 19, there are 18 training images") as caught:
        assembly.dataset(of_folder("optim.batch_size=19"))
    assert caught.value.hint == "for example: optim.batch_size=2"
    assert len(assembly.dataset(of_folder("optim.batch_size=18")).train) == 18


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (("method.name=okddip", "cohort.keep=0"), ["cohort.keep=2"]),
        (("method.name=okddip", "cohort.keep=2"), []),
        (("method.name=okddip",), []),
        (("cohort.keep=0",), []),
        (("cohort.keep=0", "data.val_fraction=0", "cohort.keep_metric=balanced"), ["cohort.keep_metric"]),
    ],
)
def test_what_keeping_does_not_do_although_it_seems_to_is_a_warning(
    root: Path, words: tuple[str, ...], warned: list[str]
) -> None:
    write_tree(root, {"test": {"a": 2, "b": 2}})
    recipe = of_folder("cohort.students=['resnet8','resnet8','resnet8']", *words)
    notes = assembly.job(recipe, lambda: assembly.dataset(recipe)).notes
    warnings = [note for note in notes if note.startswith(WARNING)]
    assert len(warnings) == len(warned)
    assert all(key in line for key, line in zip(warned, warnings, strict=True))
    assert ("no validation images: the last epoch is kept" in notes) == ("data.val_fraction=0" in words)


@pytest.mark.usefixtures("root")
def test_to_keep_the_best_needs_images_to_choose_on() -> None:
    for fraction in ("0", "0.001"):
        with pytest.raises(RecipeError, match=rf"data\.val_fraction={fraction}.* of 20 images leaves none") as caught:
            assembly.dataset(of_folder(f"data.val_fraction={fraction}"))
        assert "cohort.keep=0" in caught.value.hint


def test_something_has_to_be_left_to_measure_on(root: Path) -> None:
    with pytest.raises(DataError, match="neither validation nor test images"):
        assembly.dataset(of_folder("data.val_fraction=0", "cohort.keep=0"))
    write_tree(root, {"test": {"a": 1, "b": 1}})
    assert assembly.dataset(of_folder("data.val_fraction=0", "cohort.keep=0")).final_split[0] == "test"


@pytest.mark.usefixtures("root")
def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert len(assembly.dataset(of_folder("data.root=~/root")).images) == 20


# --- the resolved recipe


@pytest.mark.usefixtures("root")
def test_mean_and_std_default_to_those_of_the_training_images_and_can_be_given() -> None:
    recipe = of_folder()
    found = assembly.dataset(recipe)
    assert assembly.normalisation_of(recipe.recipe, found) == found.moments()
    given = of_folder("data.mean=[0.5, 0.5, 0.5]").recipe
    assert assembly.normalisation_of(given, found) == ((0.5, 0.5, 0.5), found.moments()[1])


def test_the_moments_are_a_function_of_the_training_images_alone(root: Path) -> None:
    before = filled(of_folder())
    write_tree(root, {"test": {"a": 5, "b": 5}})
    after = filled(of_folder())
    assert before.sha256() == after.sha256()


def test_one_student_kept_by_a_number_has_to_exist() -> None:
    students = "cohort.students=['resnet8', 'resnet8', 'resnet8']"
    assert resolved(students, "cohort.keep=2").recipe.cohort.keep == 2
    for words, below in (([students, "cohort.keep=3"], 3), (["method.name=baseline", "cohort.keep=1"], 1)):
        with pytest.raises(RecipeError) as caught:
            resolved(*words)
        assert caught.value.details[0].startswith(f"cohort.keep: expected an index below {below}, found ")


# --- the cohort


def test_what_is_shared_follows_from_the_method_the_students_and_the_recipe_and_is_said() -> None:
    def said(*words: str) -> tuple[int, bool, str]:
        built, sentence = assembly.cohort(resolved(*words), torch.Size((3, 8, 8)), 10)
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
        return next(assembly.method(resolved(*words), torch.Size((3, 8, 8)), 10)[0].cohort.backbone(0).parameters())

    start = first()
    assert torch.equal(start, first("cohort.students=['resnet8', 'resnet14', 'resnet8']"))
    assert torch.equal(start, first("method.name=baseline"))
    assert not torch.equal(start, first("seed=1"))


def test_no_two_students_start_from_the_same_weights() -> None:
    cohort = assembly.method(resolved("cohort.share=none"), torch.Size((3, 8, 8)), 10)[0].cohort
    first, second = (next(student.parameters()) for student in cohort.backbones())
    assert not torch.equal(first, second)


def test_a_method_that_cannot_be_built_is_a_recipe_error() -> None:
    for words, said in (
        (["cohort.students=['resnet8']"], "at least 2 students"),
        (["method.taps=[9, 10, 11]"], "outside the 4 maps"),
    ):
        with pytest.raises(RecipeError) as caught:
            assembly.job(resolved(*words), unread)
        (problem,) = caught.value.details
        assert problem.startswith("[method] fefr: ")
        assert said in problem


# --- once, and before the images


def test_each_network_is_built_once_and_before_the_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    build_network = backbones.build

    def counted(name: str, classes: int, images: torch.Size) -> Backbone:
        events.append(f"{name} for {classes} classes")
        return build_network(name, classes, images)

    def read() -> Dataset:
        events.append("images")
        return assembly.dataset(recipe)

    monkeypatch.setattr(backbones, "build", counted)
    recipe = resolved("cohort.students=['resnet8', 'resnet14']", "cohort.share=none")
    assembly.job(recipe, read)
    assert events == ["resnet8 for 10 classes", "resnet14 for 10 classes", "images"]


def test_where_only_the_images_tell_the_number_of_classes_they_are_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(
        "import numpy as np\n"
        "def load(*, root, image_size):\n"
        "    images = np.zeros((60, image_size, image_size, 3), np.uint8)\n"
        "    return {'classes': ['a', 'b', 'c'], 'train': (images, np.arange(60) % 3)}\n",
        encoding="utf-8",
    )
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    recipe = resolved("data.name=mine:load", "optim.batch_size=8")
    job = assembly.job(recipe, lambda: assembly.dataset(recipe))
    assert job.method.cohort.backbone(0)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    wrong = resolved("data.name=mine:load", "optim.batch_size=8", "cohort.students=['resnet8']")
    with pytest.raises(RecipeError) as caught:
        assembly.job(wrong, lambda: assembly.dataset(wrong))
    assert len(caught.value.details) == 1


def test_another_number_of_classes_than_the_source_announced_is_an_error() -> None:
    recipe = resolved()
    images = assembly.dataset(recipe)
    with pytest.raises(DataError, match="expected 10 classes of digits, found 11"):
        assembly.job(recipe, lambda: replace(images, classes=(*images.classes, "another")))


# --- from a run


def made(recipe: Recipe, found: Dataset) -> RunDir:
    written = assembly.with_normalisation(recipe, assembly.normalisation_of(recipe, found))
    info = run_info(recipe=written.tables(), classes=found.classes, data_sha256=found.fingerprint)
    return RunDir.create("made", info)


@pytest.mark.usefixtures("root")
def test_the_recipe_of_a_run_is_the_one_it_was_started_with_wherever_its_images_are_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = filled(of_folder())
    run = made(recipe, assembly.dataset(of_folder()))
    assert reopen.recipe_of(run).recipe == recipe
    moved = reopen.recipe_of(run, "elsewhere").recipe
    assert moved.data.root == "elsewhere"
    assert moved.sha256() == recipe.sha256()
    monkeypatch.setenv("OKDC_DATA_ROOT", "other")
    assert reopen.recipe_of(run, "elsewhere").recipe.data.root == "elsewhere"


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
    run = made(of_folder().recipe, assembly.dataset(of_folder()))
    reopen.data_of(run, reopen.recipe_of(run), Quiet())
    assert callable(change)
    change(root)
    with pytest.raises(DataError, match=said):
        reopen.data_of(run, reopen.recipe_of(run), Quiet())


def test_images_that_only_moved_are_those_of_the_run(root: Path) -> None:
    run = made(of_folder().recipe, assembly.dataset(of_folder()))
    shutil.move(root, "elsewhere")
    reopen.data_of(run, reopen.recipe_of(run, "elsewhere"), Quiet())


def test_a_run_whose_recipe_was_spoilt_is_an_error_with_its_path() -> None:
    kept = RunDir.create("kept", run_info(recipe=resolved().recipe.tables()))
    kept.recipe.write_text("[optim]\nepoch = 3", encoding="utf-8")
    with pytest.raises(RunError, match=r"kept-1/recipe\.toml was edited") as caught:
        reopen.recipe_of(kept)
    assert any(line.startswith("optim.epoch: nothing when it began, 3 now") for line in caught.value.details)


def test_resolving_leaves_the_draft_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKDC_DATA_ROOT", "/x")
    draft = load(["cifar10_resnet20", "method.name=baseline"])
    before = replace(draft, tables=read(draft.path))
    before.tables["method"]["name"] = "baseline"
    resolve(draft)
    assert draft == before


def test_rules_between_keys_are_reported_with_the_keys_that_are_wrong_alone() -> None:
    with pytest.raises(RecipeError) as caught:
        resolved("optim.epochs=0", "cohort.keep=2", "augment.padding=9", "method.groups=3", "optim.epoch=1")
    told = " ".join(caught.value.details)
    for key in ("optim.epochs", "cohort.keep", "augment.padding", "method: reconstruct", "optim.epoch:"):
        assert key in told
    assert len(caught.value.details) == 5


# --- the optimiser's keys


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_recipe_smooths_the_labels_of_its_method(smoothing: float) -> None:
    method, _ = assembly.method(resolved(f"optim.label_smoothing={smoothing}"), torch.Size((3, 8, 8)), 10)
    batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([3, 4]))
    z = torch.randn(2, 10)
    expected = F.cross_entropy(z, batch.labels, label_smoothing=smoothing)
    assert torch.equal(method.cross_entropy(z, batch), expected)


@pytest.mark.parametrize(
    ("optimizer", "word", "default"),
    [
        ("adamw", "optim.momentum=0.8", "optim.momentum=0.9"),
        ("sgd", "optim.betas=[0.8,0.99]", "optim.betas=[0.9,0.999]"),
    ],
)
def test_a_key_of_the_other_optimiser_is_refused_unless_it_is_the_default(
    optimizer: str, word: str, default: str
) -> None:
    words = (f"optim.optimizer={optimizer}", "optim.lr=0.001")
    with pytest.raises(RecipeError) as caught:
        resolved(*words, word)
    (problem,) = caught.value.details
    assert problem.startswith(word.partition("=")[0] + ":")
    assert optimizer in problem
    assert resolved(*words, default).recipe.optim.optimizer == optimizer  # as a run's recipe.toml has it


@pytest.mark.parametrize(("optimizer", "lr", "warned"), [("adamw", 0.1, 1), ("adamw", 0.001, 0), ("sgd", 0.1, 0)])
def test_a_rate_that_ruins_adamw_is_warned_of(optimizer: str, lr: float, warned: int) -> None:
    notes = resolved("digits_resnet8", f"optim.optimizer={optimizer}", f"optim.lr={lr}").notes
    assert sum(note.startswith(WARNING) and "optim.lr" in note for note in notes) == warned


def test_the_rate_of_the_backbones_is_said_since_its_key_is_a_factor(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    start = ["cohort.share=none", f"cohort.weights={tmp_path / 'w.safetensors'}", "optim.lr=0.2"]
    (note,) = (note for note in resolved("digits_resnet8", *start, "optim.backbone_lr=0.1").notes if "factor" in note)
    assert "0.02" in note
    assert not any("factor" in note for note in resolved("digits_resnet8", *start).notes)


def test_rare_classes_weigh_more_where_the_recipe_says_so() -> None:
    write_tree(Path("root"), {"train": {"a": 30, "b": 10}})
    plain, weighted = (
        assembly.job(made, lambda made=made: assembly.dataset(made))  # type: ignore[misc]
        for made in (of_folder(), of_folder("optim.class_weights=balanced"))
    )
    assert plain.method.class_weights is None
    weights = weighted.method.class_weights
    assert weights is not None
    labels = weighted.dataset.labels[weighted.dataset.train]
    counts = torch.bincount(labels)
    assert weights.tolist() == pytest.approx([len(labels) / (2 * n) for n in counts.tolist()])
    assert weights[1] > 2 * weights[0]
    assert "class_weights" not in weighted.method.state_dict()


@pytest.mark.parametrize("key", ["augment.mixup", "augment.cutmix"])
def test_images_are_not_mixed_in_an_order_that_knows_the_classes(key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved(f"{key}=0.2", "optim.sampler=balanced")
    assert [problem.partition(":")[0] for problem in caught.value.details] == ["optim.sampler"]
    resolved(f"{key}=0.2", "optim.class_weights=balanced")


@pytest.mark.parametrize("other", ["padding=0", "rotation=5.0", "policy=trivial", "translate=0.1"])
def test_only_a_crop_by_whole_pixels_pads_by_reflection(other: str) -> None:
    resolved("augment.padding_mode=reflect", "augment.hue=0.1")
    with pytest.raises(RecipeError) as caught:
        resolved("augment.padding_mode=reflect", f"augment.{other}")
    assert [problem.partition(":")[0] for problem in caught.value.details] == ["augment.padding_mode"]


def test_milestones_that_no_schedule_reads_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        resolved("optim.schedule=onecycle", "optim.milestones=[0.3]")
    assert [problem.partition(":")[0] for problem in caught.value.details] == ["optim.milestones"]


def test_a_method_of_ones_own_is_told_how_labels_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_my_own.py").write_text("from okdc.methods.baseline import Baseline as Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def remarks(*words: str) -> list[str]:
        return [note for note in resolved(*words).notes if "batch.labels" in note]

    own = "method.name=of_my_own:Mine"
    assert not remarks(own)
    (note,) = remarks(own, "optim.label_smoothing=0.1", "augment.mixup=0.2")
    assert note.startswith("optim.label_smoothing, augment.mixup: method.name=of_my_own:Mine ")
    assert not remarks("method.name=baseline", "optim.label_smoothing=0.1")


def test_rare_classes_are_not_made_up_for_twice() -> None:
    with pytest.raises(RecipeError) as caught:
        resolved("optim.class_weights=balanced", "optim.sampler=balanced")
    assert [problem.partition(":")[0] for problem in caught.value.details] == ["optim.class_weights"]
