"""Students that start from trained weights: what they take, what stays new, what is refused, what is written down."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import signal
import zipfile
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import harness
import pytest
import torch
from asking import write_tree
from byhand import SMALL
from harness import Quiet, built, outcome, recipe, resume, signalled, start
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from okdc import backbones
from okdc.assembly import origins, weights
from okdc.assembly.beginnings import Beginnings
from okdc.assembly.origins import Origin
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.assembly.weights import Loaded
from okdc.backbones.pretrained import Facts
from okdc.cohort import Backbone
from okdc.errors import CheckFailed, Interrupted, OkdcError, RecipeError, RunError
from okdc.recipe.draft import load, read
from okdc.runs.artefacts import Provenance
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import series

ALONE = ("method.name=baseline", "cohort.students=['resnet8']", "optim.epochs=1")
DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ResNet-8. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("trained")
    with chdir(folder):
        return harness.start("cohort.share=none", "optim.epochs=2", out=folder / "before").path


@pytest.fixture
def before(trained: Path) -> Path:
    """A copy of it, the test's own, beside the test."""
    shutil.copytree(trained, "before")
    return Path("before")


def refused(*words: str) -> str:
    """All that is said of why a recipe cannot be trained, by the one error that a user sees."""
    with pytest.raises(OkdcError) as caught:
        built(recipe(*words))
    assert caught.value.exit_code == 2
    return "\n".join([caught.value.message, *caught.value.details, caught.value.hint or ""])


def network(name: str = "resnet8", classes: int = 10, seed: int = 4) -> Backbone:
    torch.manual_seed(seed)
    built = backbones.build(name, classes, SMALL)
    for tensor in built.buffers():
        if tensor.is_floating_point():
            tensor += torch.rand_like(tensor)  # statistics of a network that was trained
    return built


def as_file(tensors: Mapping[str, Tensor], name: str = "w.safetensors") -> str:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, name)
    return name


def begun(tensors: Mapping[str, Tensor], student: Backbone, facts: Facts | None = None) -> Beginnings:
    """A student that has taken weights."""
    beginnings = Beginnings([Loaded(Origin("w", facts or Facts()), "ab", tensors)])
    beginnings.put(0, student, 10, SMALL)
    return beginnings


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    """The keys whose tensors are the same."""
    return {key for key in one if key in other and torch.equal(one[key], other[key])}


# ---------------------------------------------------------------------------------------------------------------------
# What a student takes


def test_a_file_gives_its_tensors_and_the_hash_and_the_name_are_written_down() -> None:
    source = network()
    path = as_file(source.weights())
    tell = Quiet()
    run = start(*ALONE, f"cohort.weights={path}", "data.mean=[0.3, 0.3, 0.3]", tell=tell)
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert read(run.recipe)["cohort"]["weights_sha256"] == [sha256]
    facts = {
        "weights": path,
        "weights_sha256": sha256,
        "head": "kept",
        "classes": None,
        "dataset": "",
        "above": "",
        "licence": "",
    }
    assert read_json(run.info)["starts"] == [facts]
    assert read_json(run.result)["starts"] == [facts]
    assert any(f"student0 starts from {path}" in note for note in tell.notes)
    assert f"whether {path} has seen the test images is not known" in tell.notes
    student = built(recipe(*ALONE, f"cohort.weights={path}")).method.cohort.backbone(0)
    assert equal(student.weights(), source.weights()) == set(source.weights())


def test_a_run_gives_its_kept_student_or_the_one_of_a_number(before: Path) -> None:
    result = read_json(before / "result.json")
    other = 1 - result["kept"]["student"]
    kept, student = "student.safetensors", f"students/student{other}.safetensors"
    for where, file in (("", kept), (kept, kept), (f"students/{other}", student), (student, student)):
        job = built(recipe(*ALONE, f"cohort.weights={before / where}"))
        expected = load_file(before / file)
        assert equal(job.method.cohort.backbone(0).weights(), expected) == set(expected)
        sha256 = hashlib.sha256((before / file).read_bytes()).hexdigest()
        assert job.recipe.cohort.weights_sha256 == (sha256,)
        start = job.starts[0]
        assert start is not None
        assert (start.head, start.classes, start.dataset) == ("kept", 10, "digits")
        assert any("was trained on the same images" in note for note in job.notes)


def test_the_students_of_random_weights_are_those_of_a_recipe_without_any(before: Path) -> None:
    plain = built(recipe("cohort.share=none")).method
    mixed = built(recipe("cohort.share=none", f"cohort.weights=['none', '{before}']")).method
    expected, found = plain.state_dict(), mixed.state_dict()
    other = {key for key in expected if key.startswith("cohort.students.1.")}
    assert equal(expected, found) >= set(expected) - other
    assert not equal(expected, found) >= other
    for nothing in ("none", "''", "['none', '']"):
        assert recipe(f"cohort.weights={nothing}").recipe == recipe().recipe
    assert equal(expected, built(recipe("cohort.share=none", "cohort.weights=none")).method.state_dict()) == set(
        expected
    )


def test_a_head_for_another_number_of_classes_is_new_and_drawn_as_without_the_weights() -> None:
    source, student = network(classes=7), network(seed=5)
    fresh = {key: tensor.clone() for key, tensor in student.weights().items()}
    beginnings = begun(source.weights(), student)
    taken = equal(student.weights(), source.weights())
    assert set(student.weights()) - taken == {"head.fc.weight", "head.fc.bias"}
    assert equal(student.weights(), fresh) >= {"head.fc.weight", "head.fc.bias"}
    start = beginnings.recorded()[0]
    assert start is not None
    assert start.head == "new"
    assert "7×64 there, 10×64 here" in beginnings.settle(DIGITS)[0]


@pytest.mark.parametrize("labels", [DIGITS[::-1], tuple("abcdefghij")])
def test_a_head_for_as_many_other_classes_is_given_back(labels: tuple[str, ...]) -> None:
    source, student = network(), network(seed=5)
    fresh = {key: tensor.clone() for key, tensor in student.weights().items()}
    beginnings = begun(source.weights(), student, facts=Facts(classes=10, labels=labels))
    assert "its classes are others" in beginnings.settle(DIGITS)[0]
    assert set(student.weights()) - equal(student.weights(), source.weights()) == {"head.fc.weight", "head.fc.bias"}
    assert equal(student.weights(), fresh) >= {"head.fc.weight", "head.fc.bias"}
    start = beginnings.recorded()[0]
    assert start is not None
    assert start.head == "new"


def test_a_head_of_the_same_classes_is_kept() -> None:
    source, student = network(), network(seed=5)
    beginnings = begun(source.weights(), student, facts=Facts(classes=10, labels=DIGITS))
    assert "the head is kept: the classes are the same" in beginnings.settle(DIGITS)[0]
    assert equal(student.weights(), source.weights()) == set(source.weights())


def test_the_classes_of_a_run_are_compared_by_name(before: Path) -> None:
    """Ten classes of pictures are no digits."""
    write_tree(Path("images"), {"train": dict.fromkeys("abcdefghij", 6), "test": dict.fromkeys("abcdefghij", 1)})
    words = ("data.name=folder", "data.root=images", "data.val_fraction=0.1", f"cohort.weights={before}")
    job = built(recipe(*ALONE, *words))
    start = job.starts[0]
    assert start is not None
    assert start.head == "new"
    assert any(f"whether {before} has seen the test images is not known" in note for note in job.notes)


# ---------------------------------------------------------------------------------------------------------------------
# Keys


class Two(nn.Module):
    """Two heads, of which the stages take one, and a scale that no class has a part in."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.fc, self.aux = nn.Conv2d(8, classes, 1), nn.Linear(8, classes)
        self.prior = nn.Parameter(torch.randn(classes))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.body(images)
        logits: Tensor = self.fc(maps).mean((2, 3)) * self.scale + self.prior
        return (logits, self.aux(maps.mean((2, 3)))) if self.training else logits


def lazy(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("wrn16_1", {"head.fc.weight", "head.fc.bias"}),
        (f"{__name__}:Two", {"fc.weight", "fc.bias", "prior"}),
        (f"{__name__}:lazy", {"5.weight", "5.bias"}),
        ("torchvision:squeezenet1_1", {"classifier.1.weight", "classifier.1.bias"}),
    ],
)
def test_the_head_is_what_depends_on_the_number_of_classes(name: str, head: set[str]) -> None:
    """Wherever it stands, and whatever it is called."""
    images = torch.Size((3, 64, 64)) if "squeeze" in name else SMALL
    source, student = (backbones.build(name, classes, images) for classes in (4, 3))
    beginnings = Beginnings([Loaded(Origin("w", Facts()), "ab", source.weights())])
    beginnings.put(0, student, 3, images)
    assert set(student.weights()) - equal(student.weights(), source.weights()) <= head
    assert f"({', '.join(key for key in student.weights() if key in head)})" in beginnings.settle("abc")[0]


def test_outputs_that_the_stages_leave_out_have_no_place_and_are_no_mistake() -> None:
    student = backbones.build(f"{__name__}:Two", 10, SMALL)
    tensors = Two(10).state_dict()
    assert "aux.weight" not in student.weights()
    begun(tensors, student)
    assert equal(student.weights(), tensors) == set(student.weights())


def test_keys_that_do_not_fit_are_listed_and_nothing_is_taken() -> None:
    student = network()
    tensors = {key: tensor.clone() for key, tensor in network(seed=5).weights().items()}
    before = {key: tensor.clone() for key, tensor in student.weights().items()}
    missing, wide, *_ = (key for key in tensors if key.endswith("conv1.weight"))
    del tensors[missing]
    tensors[wide] = torch.zeros(3, 3)
    tensors["more"] = torch.zeros(2)
    with pytest.raises(
        RecipeError, match=r"cohort\.weights: w are not the weights of resnet8: 2 of its .* and 1 of the"
    ) as caught:
        begun(tensors, student)
    assert [line.partition(":")[0] for line in caught.value.details] == [missing, wide, "more"]
    assert equal(student.weights(), before) == set(before)


def test_the_weights_of_another_network_are_one_problem_with_true_counts() -> None:
    """And few of their many keys."""
    own, other = network().weights(), network("resnet14").weights()
    with pytest.raises(RecipeError) as caught:
        built(recipe(*ALONE, f"cohort.weights={as_file(other)}"))
    assert caught.value.message.endswith(": 1 problem")
    what, *lines, last = caught.value.details
    assert (len(lines), last[:4]) == (10, "and ")
    foreign = len(other.keys() - own.keys())
    assert what.endswith(f"are not the weights of resnet8: {foreign} of the {len(other)} there are not of this network")
    with pytest.raises(RecipeError) as caught:
        built(recipe(*ALONE, f"cohort.weights={as_file({'mine.' + key: own[key] for key in own})}"))
    head = {"head.fc.weight", "head.fc.bias"}
    missing = sum(key not in head and "num_batches_tracked" not in key for key in own)
    assert f": {missing} of its {len(own)} tensors are missing or of another shape" in caught.value.details[0]
    assert caught.value.details[0].endswith(f", and {len(own)} of the {len(own)} there are not of this network")


def test_counts_of_batches_may_be_missing_and_numbers_that_are_none_are_refused() -> None:
    tensors = {key: value for key, value in network().weights().items() if "num_batches_tracked" not in key}
    begun(tensors, network(seed=5))
    bad = tensors | {"stages.0.0.weight": torch.full_like(tensors["stages.0.0.weight"], torch.nan)}
    with pytest.raises(RecipeError, match=r"not finite: stages\.0\.0\.weight"):
        begun(bad, network(seed=5))


class Anything(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, classes, 3), nn.ReLU(), nn.Conv2d(classes, classes, 3, 2), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images).mean((2, 3))
        return logits


def test_a_network_that_is_all_head_cannot_start() -> None:
    student = backbones.build(f"{__name__}:Anything", 10, SMALL)
    with pytest.raises(RecipeError, match=r"every tensor of .* depends on the number of classes"):
        begun(student.weights(), student)


@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
def test_a_file_of_torch_is_read_as_training_scripts_write_it(inside: str | None) -> None:
    tensors = {f"module.{key}": tensor for key, tensor in network().weights().items()}
    torch.save({inside: tensors, "epoch": 3} if inside else tensors, "w.pt")
    found = weights.read_tensors(Path("w.pt"), Path("w.pt").read_bytes())
    assert equal(found, network().weights()) == set(network().weights())
    torch.save(tensors, "old.pt", _use_new_zipfile_serialization=False)
    assert built(recipe(*ALONE, "cohort.weights=old.pt")).starts[0] is not None


class Wicked:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("owned"),)


def test_a_file_of_anything_else_is_refused_and_none_of_its_code_runs() -> None:
    for name, content in (("list.pt", [1, 2]), ("text.pt", {"epoch": 3})):
        torch.save(content, name)
        assert f"cohort.weights: {name}: holds no weights" in refused(*ALONE, f"cohort.weights={name}")
    torch.save({"a": Wicked()}, "code.pt")
    assert "cohort.weights: code.pt holds more than weights: " in refused(*ALONE, "cohort.weights=code.pt")
    assert not Path("owned").exists()
    torch.save(nn.Linear(2, 2), "whole.pt", _use_new_zipfile_serialization=False)
    said = refused(*ALONE, "cohort.weights=whole.pt")
    assert "torch.nn.modules.linear.Linear" in said
    assert "state_dict()" in said
    Path("cut.safetensors").write_bytes(Path(as_file(network().weights())).read_bytes()[:200])
    assert "holds no weights" in refused(*ALONE, "cohort.weights=cut.safetensors")
    assert "there is no such file and no such run" in refused(*ALONE, "cohort.weights=nowhere.pt")


@pytest.mark.parametrize("content", [b"[data]\nroot = 1\n", b"", b"if this were a pickle", pickle.dumps({"a": 1})])
def test_a_file_of_another_kind_is_one_problem_of_the_recipe(content: bytes) -> None:
    """Before anything else is said of it."""
    Path("photos.toml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        recipe(*ALONE, "cohort.weights=photos.toml")
    (problem,) = caught.value.details
    assert problem.startswith(f"cohort.weights: photos.toml {origins.NO_WEIGHTS}; pretrained, none, ")


def test_an_archive_that_is_none_of_torch_or_cut_short_says_so_in_one_sentence() -> None:
    torch.save(network().weights(), "cut.pt")
    Path("cut.pt").write_bytes(Path("cut.pt").read_bytes()[:500])
    with zipfile.ZipFile("some.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    for name in ("cut.pt", "some.zip"):
        said = refused(*ALONE, f"cohort.weights={name}")
        assert f"cohort.weights: {name} {origins.NO_WEIGHTS} (" in said
        assert "checkpoint" not in said


# --- an extraction


@pytest.mark.parametrize("name", ["resnet8", "resnet8+msfe"])
def test_a_network_with_an_extraction_starts_from_weights_with_one_or_without(name: str) -> None:
    source, student = network(name), network("resnet8+msfe", seed=5)
    fresh = {key: tensor.clone() for key, tensor in student.weights().items()}
    begun(source.weights(), student)
    if name == "resnet8":
        extraction = {key for key in fresh if key.startswith("stages.3.") and not key.startswith("stages.3.0.")}
        assert extraction
        assert equal(student.weights(), fresh) >= extraction
        inner = student.inner[0].weights()
        assert equal(inner, source.weights()) == set(inner)
    else:
        assert equal(student.weights(), source.weights()) == set(fresh)


# ---------------------------------------------------------------------------------------------------------------------
# A shared trunk


def test_students_that_share_a_trunk_start_from_the_same_weights(before: Path) -> None:
    job = built(recipe(f"cohort.weights={before}"))
    assert job.method.cohort.share == "low"
    expected = load_file(before / "student.safetensors")
    for student in job.method.cohort.backbones():
        assert equal(student.weights(), expected) == set(expected)
    assert any("warning: student0 and student1 start as the same network" in note for note in job.notes)
    said = refused(f"cohort.weights=['{before}', 'none']")
    assert "share their first stages, and start from different weights" in said
    assert "cohort.share=none" in said
    assert built(recipe(f"cohort.weights=['{before}', 'none']", "cohort.share=none"))


def test_a_list_has_one_value_a_student_and_a_method_that_trains_one_takes_the_first(before: Path) -> None:
    assert "cohort.weights: expected one value, or 2" in refused(f"cohort.weights=['{before}']")
    words = ("method.name=baseline", "cohort.students=['resnet8', 'resnet14']", "optim.epochs=1")
    job = built(recipe(*words, f"cohort.weights=['{before}', 'nowhere.pt']"))
    assert [start is not None for start in job.starts] == [True]


# ---------------------------------------------------------------------------------------------------------------------
# Size, mean and deviation


def folder(*words: str) -> tuple[str, ...]:
    """A recipe without a word on the size of its images."""
    if not Path("images").exists():
        write_tree(Path("images"), {"train": {"cat": 10, "dog": 10}, "test": {"cat": 2, "dog": 2}}, size=40)
    text = '[data]\nname = "folder"\nroot = "images"\n[cohort]\nstudents = ["resnet8", "resnet8"]\nshare = "none"\n'
    text += '[method]\nname = "dml"\n[optim]\nbatch_size = 8\nepochs = 1\n[engine]\ndevice = "cpu"\ndtype = "float32"\n'
    Path("folder.toml").write_text(text, encoding="utf-8")
    return ("folder.toml", *words)


def described(name: str, facts: Facts) -> str:
    Path(name).write_bytes(weights.to_safetensors(network().weights(), facts))
    return name


FACTS = Facts(24, 0.75, (0.5, 0.5, 0.5), (0.25, 0.5, 0.25), "bicubic", 10, DIGITS)


def resolved(*words: str) -> ResolvedRecipe:
    return resolve(load(list(folder(*words))))


def test_the_pixels_of_the_weights_are_written_into_a_recipe_that_has_none() -> None:
    found = resolved(f"cohort.weights={described('w.safetensors', FACTS)}")
    data = found.recipe.data
    assert (data.image_size, data.shorter_side, data.mean, data.std) == (24, 32, FACTS.mean, FACTS.std)
    notes = "\n".join(found.notes)
    assert "data.image_size 24" in notes
    assert "bicubic" in notes


@pytest.mark.parametrize(
    ("mode", "word"), [("squash", "squeezed"), ("border", "border"), ("other", "'other'"), ("center", ""), ("", "")]
)
def test_weights_that_saw_whole_images_are_named(mode: str, word: str) -> None:
    notes = resolved(f"cohort.weights={described('w.safetensors', replace(FACTS, crop_mode=mode))}").notes
    assert ["cut out the middle" in note and word in note for note in notes].count(True) == bool(word)
    plain = recipe(*ALONE, "cohort.weights=w.safetensors").notes
    assert not any("cut out the middle" in note for note in plain), "the digits are not cut"


def test_what_a_recipe_says_of_its_images_stands() -> None:
    words = ("data.image_size=12", "data.mean=[0.1, 0.1, 0.1]", "data.shorter_side=13")
    found = resolved(f"cohort.weights={described('w.safetensors', FACTS)}", *words)
    data = found.recipe.data
    assert (data.image_size, data.shorter_side, data.mean, data.std) == (12, 13, (0.1, 0.1, 0.1), FACTS.std)
    assert "was trained on 24×24 images, these are 12×12" in "\n".join(found.notes)


def test_weights_that_were_trained_with_different_pixels_are_refused_with_the_line_to_write() -> None:
    one = described("one.safetensors", FACTS)
    other = described("other.safetensors", Facts(32, 0.75, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 10, DIGITS))
    with pytest.raises(RecipeError) as caught:
        resolved(f"cohort.weights=['{one}', '{other}']")
    lines = "\n".join(caught.value.details)
    assert "data.std=[0.25, 0.5, 0.25] takes the first" in lines
    assert "data.image_size=24 takes the first" in lines
    found = resolved(f"cohort.weights=['{one}', '{other}']", "data.std=[0.5, 0.5, 0.5]", "data.image_size=24")
    assert found.recipe.data.shorter_side == 32


def test_a_run_and_a_file_beside_its_description_say_how_they_were_trained(before: Path) -> None:
    info = read_json(before / "student.json")
    Path("elsewhere").mkdir()
    for suffix in (".json", ".safetensors"):
        shutil.copy(before / f"student{suffix}", "elsewhere")
    for where in (before, before / "student.safetensors", "elsewhere/student.safetensors"):
        data = resolved(f"cohort.weights={where}").recipe.data
        assert (data.image_size, list(data.mean or ())) == (8, info["preprocessing"]["mean"])
    shutil.copy(as_file(network().weights()), "elsewhere/student.safetensors")
    assert resolved("cohort.weights=elsewhere/student.safetensors").recipe.data.mean is None, "another file's"


def test_a_file_that_says_nothing_leaves_the_recipe_and_says_that() -> None:
    found = resolved(f"cohort.weights={as_file(network().weights())}")
    assert (found.recipe.data.image_size, found.recipe.data.mean) == (32, None)
    assert "does not say which mean and deviation" in "\n".join(found.notes)


# ---------------------------------------------------------------------------------------------------------------------
# Which weights they were


def test_neither_the_recipes_sha256_nor_the_result_depends_on_where_the_file_lies(before: Path) -> None:
    path = as_file(network().weights())
    Path("far").mkdir()
    shutil.copy(path, "far/w.safetensors")
    here, there = (built(recipe(*ALONE, f"cohort.weights={where}")).recipe for where in (path, "far/w.safetensors"))
    assert here.cohort.weights != there.cohort.weights
    assert here.sha256() == there.sha256()
    assert here.sha256() != built(recipe(*ALONE, f"cohort.weights={before}")).recipe.sha256()


def test_a_recipe_that_has_run_refuses_other_weights() -> None:
    path = as_file(network().weights())
    run = start(*ALONE, f"cohort.weights={path}")
    assert built(resolve(load([str(run.recipe)])))
    as_file(network(seed=5).weights())
    with pytest.raises(
        RunError, match=r"cohort\.weights: w.safetensors has not the weights .* \(cohort.weights_sha256"
    ):
        built(resolve(load([str(run.recipe)])))


@pytest.mark.parametrize("call", [1, 5])
def test_a_stopped_run_continues_to_the_bit_without_the_file(call: int) -> None:
    """Its checkpoint has the weights, whatever has become of the file."""
    words = ("cohort.share=none", f"cohort.weights=['{as_file(network().weights())}', 'none']")
    whole = outcome(start(*words, out=Path("whole")))
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(call, signal.SIGINT), out=Path("run"))
    Path("w.safetensors").unlink()
    assert outcome(resume(Path("run"))) == whole


def test_a_run_that_was_killed_before_its_first_checkpoint_wants_the_very_file() -> None:
    words = (*ALONE, f"cohort.weights={as_file(network().weights())}")
    whole = outcome(start(*words, out=Path("whole")))
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(1, signal.SIGINT), out=Path("run"))
    run = RunDir.open(Path("run"))
    run.checkpoint.unlink()
    run.previous_checkpoint.unlink(missing_ok=True)
    Path("w.safetensors").unlink()
    with pytest.raises(RecipeError, match="there is no such file") as caught:
        resume(run.path)
    assert f"restore {Path('w.safetensors').absolute()}, then resume" in caught.value.hint
    assert "pretrained" not in caught.value.hint, "nobody can name others"
    as_file(network(seed=5).weights())
    with pytest.raises(RunError, match="has not the weights that the recipe began with") as other:
        resume(run.path)
    assert other.value.hint == caught.value.hint
    as_file(network().weights(), "moved.safetensors")
    text = run.recipe.read_text(encoding="utf-8").replace("w.safetensors", "moved.safetensors")
    run.recipe.write_text(text, encoding="utf-8")
    assert outcome(resume(run.path)) == whole


def test_the_seeds_of_a_series_start_from_the_same_weights() -> None:
    """Another file in its place, between two seeds, would make them two experiments."""
    words = (*ALONE, f"cohort.weights={as_file(network().weights())}")
    whole = series.start(recipe(*words), (0, 1), Path("whole"), Provenance(), Quiet())
    hashes = [whole.run(seed).read_recipe()["cohort"]["weights_sha256"] for seed in (0, 1)]
    assert hashes[0] == hashes[1]
    shutil.rmtree(whole.run(1).path)
    content = as_file(network(seed=5).weights())
    with pytest.raises(RunError, match="has not the weights that the recipe began with"):
        series.resume(whole, Provenance(), Quiet())
    assert content == as_file(network().weights())
    series.resume(whole, Provenance(), Quiet())
    assert whole.run(1).read_recipe()["cohort"]["weights_sha256"] == hashes[0]


def test_without_the_weights_their_hash_has_no_meaning() -> None:
    run = start(*ALONE, f"cohort.weights={as_file(network().weights())}")
    words = [str(run.recipe), "cohort.weights=none"]
    assert resolve(load(words)).recipe.cohort == recipe(*ALONE).recipe.cohort


def test_a_damaged_run_is_no_start(before: Path) -> None:
    content = (before / "student.safetensors").read_bytes()
    (before / "student.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for where in (before, before / "student.safetensors"):
        with pytest.raises(CheckFailed) as caught:
            built(recipe(*ALONE, f"cohort.weights={where}"))
        assert caught.value.message.startswith("cohort.weights: before/student.safetensors is not the file")
    (before / "result.json").unlink()
    assert "not complete" in refused(*ALONE, f"cohort.weights={before}")


def test_a_run_that_held_out_other_images_is_refused(before: Path) -> None:
    for where in (before, before / "student.safetensors"):
        said = refused(*ALONE, f"cohort.weights={where}", "data.val_fraction=0.3")
        assert f"{where} was trained with data.val_fraction=0.05, this recipe has 0.3" in said


def test_a_start_from_a_run_that_had_one_itself_names_both() -> None:
    """However many runs lie between."""
    described("w.safetensors", Facts(8, None, (0.3,) * 3, (0.3,) * 3, "", 10, DIGITS, "mit", "timm:x.y"))
    where = "w.safetensors"
    for k in range(3):
        run = start(*ALONE, f"cohort.weights={where}", out=Path(f"run{k}"))
        where = str(run.path)
        ((begun,), above) = read_json(run.result)["starts"], "timm:x.y" if k else ""
        assert (begun["weights"], begun["above"], begun["licence"]) == (
            f"run{k - 1}" if k else "timm:x.y",
            above,
            "mit",
        )


def test_a_teacher_that_started_from_weights_of_unknown_origin_is_said_to_have() -> None:
    path = as_file(network().weights())
    teacher = start(*ALONE, f"cohort.weights={path}", out=Path("teacher"))
    tell = Quiet()
    start("method.name=kd", f"method.teacher={teacher.path}", "optim.epochs=1", tell=tell)
    assert any(f"it has learned from {path}, which may know the test images" in note for note in tell.notes)


def test_a_file_of_ones_own_is_not_called_by_the_librarys_name(tmp_path: Path) -> None:
    name, images, file = "torchvision:squeezenet1_1", torch.Size((3, 64, 64)), tmp_path / "own.pt"
    student = backbones.build(name, 10, images)
    torch.save(student.weights(), file)
    origin = origins._origin(name, str(file))
    assert origin is not None
    beginnings = Beginnings([weights._load(origin)])
    beginnings.put(0, student, 10, images)
    (recorded,) = beginnings.recorded()
    assert recorded is not None
    assert recorded.weights == str(file)
