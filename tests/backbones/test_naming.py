"""Names of networks: blocks that are added to the last stage, MFEF's suffix, and what may share a trunk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from asking import ask
from byhand import SMALL
from harness import start, write_recipe
from safetensors.torch import load_file, save_file

from okdc import backbones
from okdc.backbones import naming
from okdc.errors import RecipeError
from okdc.runs.files import read_json

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("name", "base", "added"),
    [
        ("resnet8", "resnet8", 0),
        ("resnet8+1", "resnet8", 1),
        ("resnet32+12", "resnet32", 12),
        ("wrn16_2+999", "wrn16_2", naming.MOST_ADDED),
        *((name, name, 0) for name in ("resnet8+", "resnet8+0", "resnet8+01", "resnet8+1000", "resnet8+x", "+2")),
        *((name, name, 0) for name in ("resnet8+2.0", "resnet8+-2", "resnet8 +2 ", "resnet8+²")),
    ],
)
def test_what_stands_behind_a_plus_is_a_number_of_blocks_or_part_of_the_name(name: str, base: str, added: int) -> None:
    assert naming.split_depth(name) == (base, added)


@pytest.mark.parametrize(
    ("name", "blocks", "deeper"),
    [
        ("resnet8", 0, "resnet8"),
        ("resnet8", 2, "resnet8+2"),
        ("resnet8+2", 2, "resnet8+4"),
        ("resnet8+2", -2, "resnet8"),
        ("resnet8+msfe", 3, "resnet8+3+msfe"),
        ("resnet8+1+msfe-da", 3, "resnet8+4+msfe-da"),
        ("timm:resnet18", 1, "timm:resnet18+1"),
    ],
)
def test_a_name_is_deepened_before_the_suffix_of_an_extraction(name: str, blocks: int, deeper: str) -> None:
    assert naming.deepened(name, blocks) == deeper
    assert naming.depth_added(deeper) == naming.depth_added(name) + blocks
    assert naming.one_trunk([name, deeper])


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["resnet8"], True),
        (["resnet8", "resnet8"], True),
        (["resnet8", "resnet8+4", "resnet8+1"], True),
        (["resnet8+msfe", "resnet8+4+msfe"], True),
        (["resnet8", "resnet14"], False),
        (["resnet8+2", "resnet14+2"], False),
        (["resnet8", "resnet8+msfe"], False),
        (["resnet8+msfe", "resnet8+2+msfe-da"], False),
    ],
)
def test_one_trunk_is_what_names_have_that_differ_in_the_last_stages_depth_alone(names: list[str], alike: bool) -> None:
    assert naming.one_trunk(names) == alike


@pytest.mark.parametrize("name", ["resnet8+2", "wrn16_1+1", "resnet18+3", "resnet8+2+msfe", "resnet8+1+msfe-da"])
def test_a_deeper_network_is_okdcs_own(name: str) -> None:
    backbones.check(name)
    assert backbones.is_name(name)
    assert backbones.is_proven(name)
    assert backbones.with_output(name, "logits") == name, "it returns nothing else than logits"
    network = backbones.build(name, 7, SMALL)
    assert network.architecture == name
    assert network(torch.zeros(2, *SMALL)).shape == (2, 7)
    shapes = backbones.shapes(name, 7, SMALL)
    assert len(shapes) > len(backbones.shapes(naming.deepened(name, -naming.depth_added(name)), 7, SMALL))
    inner = (network, *network.inner)[-1].weights()
    assert {key: tensor.shape for key, tensor in inner.items()} == shapes


UNKNOWN = ("resnet8+0", "resnet8+x", "resnet8+02", "resnet8+1000", "resnet8+2+3", "resnet8+msfe+2", "resnt8+2", "+2")
REFUSED = (
    "densenet40_12+2", "densenet40_12_vanilla+1", "mobilenetv2+1", "torchvision:resnet18+2", "timm:resnet18+1",
    "mynet:small+2", "mynet:small[logits]+2", "resnet8[0]+2", "resnet8+2[0]", "densenet40_12+1+msfe",
)  # fmt: skip


@pytest.mark.parametrize("name", [*UNKNOWN, *REFUSED])
def test_what_cannot_be_deepened_is_refused_in_one_line(name: str) -> None:
    for asked in (backbones.check, lambda n: backbones.build(n, 10, SMALL), lambda n: backbones.shapes(n, 10, SMALL)):
        with pytest.raises(RecipeError) as caught:
            asked(name)
        base, _ = naming.variant(name)
        assert base in caught.value.message
        assert "\n" not in caught.value.message
        if name in UNKNOWN:
            assert "no network is called" in caught.value.message
            assert "NAME+msfe" in str(caught.value.hint)
        else:
            assert "resnet8" in str(caught.value.hint)


def test_every_network_of_okdcs_is_deepened_or_refused() -> None:
    for name in backbones.NETWORKS.own:
        if name in backbones.DEEPER:
            backbones.check(f"{name}+1")
        else:
            with pytest.raises(RecipeError):
                backbones.check(f"{name}+1")
    assert len(backbones.DEEPER) == 12


# ---------------------------------------------------------------------------------------------------------------------
# Through the commands


def test_profile_counts_a_deeper_network_and_refuses_a_mistyped_one(capsys: Captured) -> None:
    answer = ask(capsys, "profile", "resnet8", "resnet8+2", "--json")
    assert answer.code == 0, answer.err
    plain, deeper = json.loads(answer.out)["rows"]
    assert deeper["architecture"] == "resnet8+2"
    assert deeper["params"] == plain["params"] + 2 * 73_984
    for name, kind in (("resnet8+x", "usage"), ("mobilenetv2+2", "recipe"), ("torchvision:resnet18+2", "recipe")):
        answer = ask(capsys, "profile", name)
        assert answer.code == 2
        assert f"error[{kind}]: {name}" in answer.err


def test_a_recipe_with_a_mistyped_depth_is_refused_with_the_nearest(capsys: Captured) -> None:
    answer = ask(capsys, "distill", str(write_recipe()), "students=resnet8,resnet8+x")
    assert answer.code == 2
    assert answer.err.count("cohort.students: ") == 1
    assert "'resnet8+x' (did you mean 'resnet8'?)" in answer.err


def test_students_that_differ_in_depth_are_trained_kept_and_exported_under_their_names(capsys: Captured) -> None:
    run = start(
        "method.name=ffl", 'cohort.students=["resnet8+1", "resnet8"]', "cohort.keep=0", "optim.epochs=1",
        out=Path("deep"),
    )  # fmt: skip
    result = read_json(run.result)
    assert result["share"] == "low"
    assert [row["architecture"] for row in result["cohort"]] == ["resnet8+1", "resnet8"]
    assert load_file(run.weights).keys() == backbones.build("resnet8+1", 10, SMALL).weights().keys()
    assert read_json(run.student)["architecture"] == "resnet8+1"
    answer = ask(capsys, "export", str(run.path), "--onnx", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["parity"]["float32"]["passed"]
    answer = ask(capsys, "profile", str(run.path), "--json")
    assert [row["architecture"] for row in json.loads(answer.out)["rows"][:2]] == ["resnet8+1", "resnet8"]


def test_the_smallest_of_them_is_the_one_without_added_blocks() -> None:
    run = start("method.name=ffl", 'cohort.students=["resnet8+1", "resnet8"]', "cohort.keep=smallest", "optim.epochs=1")
    assert read_json(run.student)["architecture"] == "resnet8"


def test_a_deeper_network_starts_from_weights_of_its_own_depth_alone() -> None:
    save_file(backbones.build("resnet8+1", 10, SMALL).weights(), "deep.safetensors")
    save_file(backbones.build("resnet8", 10, SMALL).weights(), "plain.safetensors")
    words = ("method.name=baseline", 'cohort.students=["resnet8+1"]', "optim.epochs=1")
    run = start(*words, "cohort.weights=deep.safetensors")
    (row,) = read_json(run.result)["starts"]
    assert row["weights"] == "deep.safetensors"
    with pytest.raises(RecipeError) as caught:
        start(*words, "cohort.weights=plain.safetensors")
    assert "plain.safetensors are not the weights of resnet8+1" in "\n".join(caught.value.details)
