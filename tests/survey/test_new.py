"""`okdc new`: every recipe that it writes resolves and can be trained; what it cannot do it says in a line."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torchvision
from asking import Answer, ask, picture, write_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.recipe.draft import load
from okdc.survey import networks, plan
from okdc.survey.folder import look
from okdc.survey.plan import SCRATCH, TUNED, directed

MEAN = [0.485, 0.456, 0.406]  # ImageNet's
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No pretrained weights are on this machine, unless a test writes some there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def with_weights(folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in networks.PRETRAINED.values():
        (folder / file).write_bytes(b"weights")


def photographs(root: Path, classes: int = 2, count: int = 3, side: int = 300) -> Path:
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(picture(10 * c + i, side, side + 60)).save(root / f"class{c}" / f"{i}.jpg")
    return root


def planned(root: Path, flip: bool | None = None, pretrained: bool | None = None) -> plan.Plan:
    from okdc.progress import Silent

    folder = look(str(root))
    return plan.plan(folder, networks.choose(folder, pretrained, (), Silent()), flip)


def written(answer: Answer, name: str) -> tuple[ResolvedRecipe, dict[str, Any]]:
    """The recipe that was written: it resolves, and nothing about it is noted."""
    assert answer.code == 0, answer.err
    resolved = resolve(load([name]))
    pretrained = [f"data.mean {MEAN}"] if resolved.recipe.cohort.weights else []
    assert [note.partition(", data.std")[0] for note in resolved.notes] == pretrained
    return resolved, tomllib.loads(Path(name).read_text(encoding="utf-8"))


# --- the recipe


def test_a_recipe_is_written_that_trains_and_names_the_next_command(capsys: Captured) -> None:
    write_tree(Path("my pets"), {"cat": 40, "dog": 60}, size=8)
    answer = ask(capsys, "new", "my pets")
    resolved, tables = written(answer, "my_pets.toml")
    assert "next: okdc distill my_pets.toml" in answer.err
    assert "100 images in 2 classes" in answer.out
    assert 'students = ["resnet20", "resnet20"]: ' in answer.err
    assert tables["data"]["root"] == "my pets"
    assert tables["data"]["image_size"] == 8
    distilled = ask(capsys, "distill", "my_pets.toml", "optim.epochs=1", "cohort.students=['resnet8','resnet8']")
    assert distilled.code == 0, distilled.err
    assert resolved.recipe.optim.batch_size * SCRATCH.steps <= 80


@given(
    counts=st.lists(st.integers(1, 90), min_size=2, max_size=5),
    splits=st.sampled_from(["all", "train", "train test", "train val", "train val test"]),
    side=st.integers(1, 60),
    flip=st.sampled_from([None, True, False]),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_recipe_resolves_and_has_enough_steps_where_the_images_allow(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], splits: str, side: int, flip: bool | None
) -> None:
    from okdc.errors import DataError
    from okdc.survey import writing

    root = tmp_path_factory.mktemp("any") / "root"
    tree = {f"c{i}": count for i, count in enumerate(counts)}
    write_tree(root, tree if splits == "all" else dict.fromkeys(splits.split(), tree), size=side)
    try:
        made = planned(root, flip)
    except DataError:
        assert max(counts) < 4  # only where images are too few to set some aside
        return
    path = root.parent / "r.toml"
    writing.save(path, writing.text(made, path))
    resolved = resolve(load([str(path)]))
    dataset = assembly.dataset(resolved)
    assert not resolved.notes
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [
        sum(part) for part in made.division.counts().values()
    ]
    steps = len(dataset.train) // resolved.recipe.optim.batch_size
    assert steps == made.steps
    assert steps >= SCRATCH.steps or resolved.recipe.optim.batch_size == 2


def test_a_reason_stands_beside_every_line(capsys: Captured) -> None:
    write_tree(Path("root"), {"cat": 10, "dog": 10})
    assert ask(capsys, "new", "root").code == 0
    lines = Path("root.toml").read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if " = " in line.partition("#")[0]]
    assert len(keys) >= 12
    without = [line for line in keys if not line.partition(" # ")[2].strip()]
    assert [line.split()[0] for line in without] == ["title"]


@pytest.mark.parametrize(
    ("start", "counts", "batches"),
    [
        (SCRATCH, (2, 23, 35, 36, 383, 384, 10_000, 10_001), [2, 2, 2, 3, 24, 32, 32, 64]),
        (TUNED, (2, 39, 59, 60, 319, 320, 2_000, 2_001, 10**6), [2, 2, 2, 3, 12, 16, 16, 32, 32]),
    ],
)
def test_the_batch_is_the_largest_that_leaves_enough_steps(
    start: plan.Start, counts: Sequence[int], batches: list[int]
) -> None:
    assert [plan._batch(images, start)[0] for images in counts] == batches


@pytest.mark.parametrize(
    ("start", "rates"), [(SCRATCH, [0.05, 0.05, 0.03, 0.01, 0.006]), (TUNED, [0.002, 0.002, 0.002, 0.001, 0.001])]
)
def test_smaller_batches_take_smaller_rates(start: plan.Start, rates: list[float]) -> None:
    assert [plan._rate(start, batch) for batch in (64, 32, 16, 8, 4)] == rates


@pytest.mark.parametrize("start", [SCRATCH, TUNED])
def test_fewer_images_are_seen_more_often(start: plan.Start) -> None:
    epochs = [plan._up_to(images, start.epochs, start.epochs_of_many) for images in (10, 1_000, 4_000, 10_000, 10**6)]
    assert epochs == sorted(epochs, reverse=True)


def test_each_time_another_image_unless_the_angle_may_be_the_class_or_the_weights_are_there(tmp_path: Path) -> None:
    pets = write_tree(tmp_path / "pets", {"cat": 40, "dog": 40}, size=32)
    turns = write_tree(tmp_path / "turns", {"turn_left": 40, "turn_right": 40}, size=32)
    keys = [{line.key for line in made.lines} for made in (planned(pets), planned(turns), planned(pets, None, True))]
    assert ["augment.policy" in each for each in keys] == [True, False, False]
    assert ["augment.rotation" in each for each in keys] == [False, True, True]
    assert planned(pets).value("augment.padding") == 4  # as in the papers' recipes


def test_classes_that_may_be_mirrored_into_each_other() -> None:
    names = ("0", "17", "a", "Z", "turn_left", "Right", "ARROW-up", "cat", "dogs", "ä", "ab", "狗")
    assert directed(names) == ["0", "17", "a", "Z", "turn_left", "Right", "ARROW-up"]


@pytest.mark.parametrize(("words", "flip"), [((), False), (("--flip",), True), (("--no-flip",), False)])
def test_images_are_mirrored_only_where_somebody_says_so(capsys: Captured, words: tuple[str, ...], flip: bool) -> None:
    write_tree(Path("root"), {"cat": 10, "dog": 10})
    answer = ask(capsys, "new", "root", *words)
    assert written(answer, "root.toml")[0].recipe.augment.flip is flip
    assert ("nobody said" in answer.err) == (not words)


@pytest.mark.parametrize(
    ("typed", "flip", "code"),
    [
        ([b"y\n"], True, 0),
        ([b"what\n", b"no\n"], False, 0),
        ([b"\n"], False, 0),
        ([b"\x04"], False, 0),  # Ctrl-D
        ([b"\x03"], None, 130),  # Ctrl-C
    ],
)
def test_on_a_terminal_it_asks(typed: list[bytes], flip: bool | None, code: int) -> None:
    write_tree(Path("root"), {"left": 10, "right": 10})
    child, near = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "okdc", "new", "root"])
    said, asked = b"", 0
    while select.select([near], [], [], 60)[0]:
        try:
            said += os.read(near, 4096)
        except OSError:  # the other end is closed
            break
        if said.count(b"[y/N] ") > asked and typed[asked : asked + 1]:
            os.write(near, typed[asked])
            asked += 1
    else:
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    os.close(near)
    assert asked == len(typed)
    assert b"left, right?" in said
    assert Path("root.toml").exists() == (flip is not None)
    if flip is not None:
        assert tomllib.loads(Path("root.toml").read_text(encoding="utf-8"))["augment"]["flip"] is flip


# --- what the folder makes of the recipe


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("my/photso", "my/photos"), ("my/photso/", "my/photos"), ("photso", ""), ("my/elsewhere", ""), ("no/photos", "")],
)
def test_a_misspelt_folder_names_the_one_beside_it(capsys: Captured, typed: str, meant: str) -> None:
    Path("my/photos").mkdir(parents=True)
    answer = ask(capsys, "new", typed)
    assert answer.code == 2
    assert f"{typed}: expected a folder of images, found nothing" in answer.err
    assert ("hint" in answer.err) is bool(meant)
    assert not meant or answer.err.endswith(f"hint: okdc new {meant}\n")


def test_damaged_files_are_left_out_by_the_recipe_and_named(capsys: Captured) -> None:
    write_tree(Path("root"), {"cat": 10, "dog": 10})
    Path("root/cat/\x1b[31mx.jpg").write_bytes(b"no image")
    answer = ask(capsys, "new", "root")
    resolved, _ = written(answer, "root.toml")
    assert resolved.recipe.data.skip_damaged
    assert "\x1b[31m" not in answer.err + Path("root.toml").read_text(encoding="utf-8")
    assert len(assembly.dataset(resolved).images) == 20


def test_names_of_any_kind_are_written_and_read_again(capsys: Captured) -> None:
    root = Path('o\'dd =\x1b[1m # "ü"\n狗')
    write_tree(root, {"chât # 1": 10, "狗\n= 2": 10})
    resolved, _ = written(ask(capsys, "new", str(root), "-o", "r.toml"), "r.toml")
    assert resolved.recipe.data.root == str(root)
    assert assembly.dataset(resolved).classes == ("chât # 1", "狗\n= 2")
    assert ask(capsys, "new", str(root)).code == 0
    (path,) = set(Path().glob("*.toml")) - {Path("r.toml")}
    assert resolve(load([str(path)])).recipe == resolved.recipe


@pytest.mark.parametrize(("side", "size"), [(8, 8), (28, 28), (32, 32), (100, 32), (200, 64)])
def test_the_size_of_small_networks_follows_the_images(tmp_path: Path, side: int, size: int) -> None:
    root = write_tree(tmp_path / "root", {"cat": 4, "dog": 4}, size=side)
    assert planned(root).value("data.image_size") == size


def test_where_the_folder_has_validation_images_none_are_held_out(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {split: {"cat": 9, "dog": 9} for split in ("train", "val", "test")})
    assert [sum(part) for part in planned(root).division.counts().values()] == [18, 18, 18]


def test_without_images_to_choose_by_the_first_student_is_kept(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {split: {"cat": 1, "dog": 1} for split in ("train", "test")})
    made = planned(root)
    assert made.value("cohort.keep") == 0
    assert made.value("data.val_fraction") == 0
    assert {"cohort.keep", "data.val_fraction"} <= {line.key for line in made.printed}
    held_out = planned(write_tree(tmp_path / "other", {"cat": 640, "dog": 640}, size=8))
    assert {line.key for line in held_out.printed} == {*plan.PRINTED}


@pytest.mark.parametrize(
    ("trees", "worth", "val"),
    [
        ({"train": 50, "test": 9}, 11, 0),
        ({"train": 50, "test": 9}, 10, 10),
        ({"train": 50}, 11, 10),
        ({"train": 50, "val": 2}, 11, 4),
        ({"all": 50}, 9, 0),
        ({"all": 50}, 8, 8),
    ],
)
def test_few_images_are_held_out_only_where_no_others_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trees: dict[str, int], worth: int, val: int
) -> None:
    monkeypatch.setattr(plan, "WORTH", worth)
    counts = {split: {"cat": n, "dog": n} for split, n in trees.items()}
    made = planned(write_tree(tmp_path / "root", counts.get("all", counts), size=4))
    assert sum(made.division.val) == val
    assert (made.value("data.val_fraction") == 0) == (val == 0)
    assert made.value("cohort.keep") == ("best" if val else 0)


@pytest.mark.parametrize(("dogs", "balanced"), [(40, False), (59, False), (90, True)])
def test_unequal_classes_count_as_much(tmp_path: Path, dogs: int, balanced: bool) -> None:
    root = write_tree(tmp_path / "root", {"train": {"cat": 40, "dog": dogs}, "val": {"cat": 9, "dog": 9}}, size=4)
    keys = {line.key: line.value for line in planned(root).lines}
    expected = {"cohort.keep_metric": "balanced", "optim.class_weights": "balanced"} if balanced else {}
    assert {key: keys[key] for key in ("cohort.keep_metric", "optim.class_weights") if key in keys} == expected


def test_the_best_epoch_is_kept_where_many_images_choose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "root", {"train": {"cat": 40, "dog": 40}, "val": {"cat": 3, "dog": 3}}, size=4)
    assert planned(root).value("cohort.keep_epoch") == "last"
    monkeypatch.setattr(plan, "FEW", 6)
    assert "cohort.keep_epoch" not in [line.key for line in planned(root).lines]


# --- networks


def test_pretrained_networks_are_taken_where_their_weights_are(tmp_path: Path, no_weights: Path) -> None:
    root = photographs(tmp_path / "root")
    assert planned(root).value("cohort.students") == ["resnet20", "resnet20"]
    assert planned(root, pretrained=True).value("cohort.students") == list(networks.PRETRAINED)
    with_weights(no_weights)
    made = planned(root)
    assert made.value("cohort.students") == list(networks.PRETRAINED)
    assert made.value("data.image_size") == 224
    assert planned(root, pretrained=False).value("cohort.students") == ["resnet20", "resnet20"]


def test_small_images_are_not_enlarged_for_pretrained_networks(tmp_path: Path, no_weights: Path) -> None:
    root = write_tree(tmp_path / "root", {"cat": 4, "dog": 4}, size=32)
    with_weights(no_weights)
    assert planned(root).value("cohort.students") == ["resnet20", "resnet20"]


def test_the_files_of_the_weights_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name, file in networks.PRETRAINED.items():
        weights = torchvision.models.get_model_weights(name.partition(":")[2]).DEFAULT
        assert weights.url.rpartition("/")[2] == file
        assert weights.transforms().crop_size == [networks.PRETRAINED_SIZE]
        if name == next(iter(networks.PRETRAINED)):
            assert weights.transforms().resize_size == [networks.PRETRAINED_SIDE]
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        assert networks.weights_folder() == Path(torch.hub.get_dir()) / "checkpoints"
        monkeypatch.delenv(variable, raising=False)
    assert networks.weights_folder() == Path(torch.hub.get_dir()) / "checkpoints"


@pytest.mark.parametrize(
    ("budget", "student"), [("params<300k", "resnet20"), ("params<200k", "resnet14"), ("macs<1M", "resnet8")]
)
def test_a_budget_chooses_the_network(capsys: Captured, budget: str, student: str) -> None:
    write_tree(Path("root"), {"cat": 10, "dog": 10})
    resolved, _ = written(ask(capsys, "new", "root", "--budget", budget), "root.toml")
    assert resolved.recipe.cohort.students == (student, student)


def test_a_budget_of_two_limits_holds_for_both(capsys: Captured) -> None:
    write_tree(Path("root"), {"cat": 10, "dog": 10})
    resolved, _ = written(ask(capsys, "new", "root", "--budget", "params<200k,macs<1M"), "root.toml")
    assert resolved.recipe.cohort.students == ("resnet8", "resnet8")


def test_a_budget_for_the_small_pretrained_network_keeps_it(capsys: Captured, no_weights: Path) -> None:
    photographs(Path("root"))
    with_weights(no_weights)
    resolved, _ = written(ask(capsys, "new", "root", "--budget", "params<2M"), "root.toml")
    assert resolved.recipe.cohort.students == tuple(networks.PRETRAINED)
    assert resolved.recipe.cohort.keep == 1


def test_a_budget_that_nothing_fits_is_answered_with_what_each_costs(capsys: Captured) -> None:
    write_tree(Path("root"), {"cat": 10, "dog": 10})
    answer = ask(capsys, "new", "root", "--budget", "params<1k")
    assert answer.code == 2
    assert all(f"{name}: params " in answer.err for name in networks.SCRATCH)
    assert not Path("root.toml").exists()


# --- what cannot be done


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["nowhere"], "data"),
        (["a file"], "data"),
        (["root", "-o", "there.toml"], "usage"),
        (["root", "-o", "root"], "usage"),
        (["root", "-o", "a=b.toml"], "usage"),
        (["root", "-o", "no/such/folder/r.toml"], "usage"),
        (["root", "--budget", "weight<3"], "usage"),
        ([], "usage"),
        (["one"], "data"),
    ],
)
def test_what_it_cannot_do_is_one_line_and_nothing_is_written(capsys: Captured, words: list[str], kind: str) -> None:
    write_tree(Path("root"), {"cat": 3, "dog": 3})
    write_tree(Path("one"), {"cat": 3})
    Path("a file").write_text("x")
    Path("there.toml").write_text("kept")
    before = sorted(Path().rglob("*"))
    answer = ask(capsys, "new", *words)
    assert answer.code == 2
    assert f"error[{kind}]: " in answer.err
    assert "Traceback" not in answer.err
    assert sorted(Path().rglob("*")) == before
    assert Path("there.toml").read_text() == "kept"


def test_the_default_file_does_not_replace_one_either(capsys: Captured) -> None:
    write_tree(Path("root"), {"cat": 3, "dog": 3})
    assert ask(capsys, "new", "root").code == 0
    before = Path("root.toml").read_bytes()
    assert ask(capsys, "new", "root", "--flip").code == 2
    assert Path("root.toml").read_bytes() == before


def test_json_has_what_was_seen_and_each_key_with_its_reason(capsys: Captured) -> None:
    write_tree(Path("root"), {"cat": 10, "dog": 20})
    answer = ask(capsys, "new", "root", "--json")
    facts = json.loads(answer.out)
    assert facts["recipe"] == "root.toml"
    assert facts["folder"]["counts"] == {"all": [10, 20]}
    assert facts["folder"]["shorter_side_px"] == {"smallest": 8, "median": 8, "largest": 8}
    assert {row["key"]: row["value"] for row in facts["keys"]}["data.image_size"] == 8
    assert sum(map(sum, facts["division"].values())) == 30


def test_torch_is_not_imported_without_a_budget() -> None:
    write_tree(Path("root"), {"cat": 3, "dog": 3})
    code = """
import json, sys
from okdc.__main__ import main
code = main(["new", "root", "--no-flip"])
print()
print(json.dumps([code, [name for name in ("torch", "torchvision", "onnxruntime", "sklearn") if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
