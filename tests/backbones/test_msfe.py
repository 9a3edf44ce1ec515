"""NAME+msfe: a network with extraction, and unless it says -da attention, at the end of its last stage."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from byhand import SMALL, array, attended, batch, make, split_hierarchically
from harness import start
from safetensors.torch import load_file
from torch import nn

from okdc import backbones
from okdc.assembly import student as students
from okdc.assembly.resolve import resolve
from okdc.backbones.msfe import with_extraction
from okdc.backbones.parts import PoolLinear
from okdc.cohort import Backbone, Cohort, count_macs, count_params
from okdc.errors import RecipeError
from okdc.recipe.draft import load
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.seeds import seeded

Captured = pytest.CaptureFixture[str]
CIFAR = torch.Size((3, 32, 32))
VARIANTS = {"+msfe": True, "+msfe-da": False}
WIDTHS = {"mobilenetv2": 320, "resnet18": 512, "resnet34": 512, "wrn16_2": 128, "wrn16_8": 512, "wrn40_2": 128}
WIDTHS |= {"densenet40_12": 132, "densenet40_12_vanilla": 448}


def extraction(channels: int) -> int:
    """Parameters of the hierarchical split in four groups: 3×3 convolutions and their BatchNorms."""
    width, inside, total = channels // 4, channels // 4, 0
    for i in range(3):
        total += 9 * inside * inside + 2 * inside
        inside = width + inside // 2 if i < 2 else 0
    return total


def attention(channels: int) -> int:
    """A perceptron C → C/16 → C with biases, a 7×7 convolution of two maps, its BatchNorm."""
    hidden = max(channels // 16, 4)
    return 2 * channels * hidden + hidden + channels + 7 * 7 * 2 + 2


def test_64_channels_take_14680_parameters_of_extraction_and_680_of_attention() -> None:
    assert (extraction(64), attention(64)) == (14_680, 680)
    sizes = {suffix: count_params(backbones.build(f"resnet8{suffix}", 10, SMALL)) for suffix in ("", *VARIANTS)}
    assert sizes == {"": 78_042, "+msfe-da": 78_042 + 14_680, "+msfe": 78_042 + 14_680 + 680}


@pytest.mark.parametrize("suffix", VARIANTS)
@pytest.mark.parametrize("name", backbones.NETWORKS.own)
def test_every_network_of_the_zoo_takes_it(name: str, suffix: str) -> None:
    with torch.device("meta"):  # sizes alone
        plain, longer = (backbones.build(n, 10, CIFAR).eval() for n in (name, name + suffix))
        channels = WIDTHS.get(name, 64)
        assert plain.channels[-1] == channels
        more = extraction(channels) + (attention(channels) if VARIANTS[suffix] else 0)
        assert count_params(longer) == count_params(plain) + more
        assert longer(torch.zeros(2, *CIFAR)).shape == (2, 10)
    assert longer.architecture == name + suffix
    assert (longer.channels, longer.strides) == (plain.channels, plain.strides)
    assert len(longer.stages) == len(plain.stages)
    assert longer.raw == (*plain.raw[:-1], False)


@pytest.mark.parametrize("suffix", VARIANTS)
def test_it_stands_between_the_last_stage_and_the_head(suffix: str) -> None:
    """And what it does there is the slow transcription's: extraction, then attention."""
    with seeded(0, "student", 0):
        network = backbones.build(f"resnet8{suffix}", 10, SMALL)
    for _ in range(3):
        network(batch(n=8).images + 0.3)
    network.eval()
    images = batch().images
    x = images
    for stage in network.stages[:-1]:
        x = stage(x)
    last = network.stages[-1]
    assert isinstance(last, nn.Sequential)
    convs = last[1].get_submodule("convs")
    assert isinstance(convs, nn.ModuleList)
    expected = split_hierarchically(array(last[0](x)), list(convs), 4)
    if VARIANTS[suffix]:
        expected = attended(expected, last[2])
    assert len(last) == 2 + VARIANTS[suffix]
    (maps,) = Cohort([network])(images)
    np.testing.assert_allclose(array(maps[-1]), expected, atol=1e-5)
    assert torch.equal(network(images), network.head(maps[-1]))


def test_a_network_from_outside_takes_it_too() -> None:
    images = torch.Size((3, 64, 64))
    plain, longer = (backbones.build(f"torchvision:resnet18{s}", 5, images) for s in ("", "+msfe"))
    assert count_params(longer) == count_params(plain) + extraction(512) + attention(512)
    assert longer.description == plain.description != ""
    assert longer.eval()(torch.zeros(1, *images)).shape == (1, 5)


def test_what_comes_out_of_it_is_no_sum_that_waits_for_its_normalisation() -> None:
    stages = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    raw = Backbone(stages, PoolLinear(8, 10), (8, 8), (1, 1), (True, True))
    assert with_extraction(raw, attention=False).raw == (True, False)


@pytest.mark.parametrize(
    "name", ["resnet8+mfse", "resnet8+", "resnet8+msfe-", "resnet8+msfe+msfe", "resnet8+da", "resnt8+msfe", "+msfe"]
)
def test_an_unknown_suffix_or_network_is_refused_and_what_there_is_is_said(name: str) -> None:
    with pytest.raises(RecipeError, match="no network is called") as caught:
        backbones.check(name)
    assert "NAME+msfe" in str(caught.value.hint)
    with pytest.raises(RecipeError, match="no network is called"):
        backbones.build(name, 10, SMALL)


@pytest.mark.parametrize("suffix", VARIANTS)
def test_it_is_a_student_for_every_method(suffix: str) -> None:
    """A baseline of the same network is what an in_path student has to be compared with."""
    for name in ("baseline", "dml", "fefr", "ffl"):
        method = make(name, [f"resnet8{suffix}"] * (1 if name == "baseline" else 2), "low" if name == "ffl" else "none")
        step = method(batch(), torch.tensor(0.5))
        torch.stack(list(step.losses.values())).sum().backward()
        assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_in_path_goes_into_a_recipes_own_names_once() -> None:
    words = ["digits_resnet8", "method.name=mfef", "method.in_path=true", "cohort.students=['resnet8', 'resnet8']"]
    recipe = resolve(load(words))
    assert recipe.recipe.cohort.students == ("resnet8", "resnet8"), "the recipe keeps the plain names"
    assert recipe.architectures == ("resnet8+msfe", "resnet8+msfe")


# ---------------------------------------------------------------------------------------------------------------------
# From a recipe to a bundle


def trained(folder: Path, *words: str) -> RunDir:
    """A finished run of MFEF with the extraction in the students' path."""
    with chdir(folder):
        return start("method.name=mfef", "method.in_path=true", "optim.epochs=2", *words, out=folder / "run")


@pytest.fixture(scope="module")
def in_path(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """With attention; nobody writes into it."""
    return trained(tmp_path_factory.mktemp("in_path"))


def test_a_run_keeps_the_network_with_its_extraction(in_path: RunDir) -> None:
    facts = read_json(in_path.student)
    assert facts["architecture"] == "resnet8+msfe"
    assert read_json(in_path.result)["students"] == ["resnet8+msfe"] * 2
    assert read_json(in_path.result)["kept"]["params"] == 78_042 + 14_680 + 680
    network: Backbone = backbones.build("resnet8+msfe", 10, SMALL)
    network.load_weights(load_file(in_path.weights))
    again = students.load(in_path).network
    images = batch().images
    assert torch.equal(network.eval()(images), again(images))


def test_profile_counts_what_the_extraction_costs(in_path: RunDir, capsys: Captured) -> None:
    answer = ask(capsys, "profile", str(in_path.path), "resnet8", "--json")
    assert answer.code == 0, answer.err
    rows = {row["name"]: row for row in json.loads(answer.out)["rows"]}
    (kept_row,) = [row for row in rows.values() if row["kept"]]
    assert kept_row["architecture"] == rows["student0"]["architecture"] == "resnet8+msfe"
    assert kept_row["params"] == rows["resnet8"]["params"] + 14_680 + 680
    # at 2×2 pixels: three convolutions, the perceptron for mean and maximum, a 7×7 convolution
    plain = count_macs(backbones.build("resnet8", 10, SMALL).eval(), torch.zeros(1, *SMALL))
    assert kept_row["macs"] - plain == 9 * (16**2 + 24**2 + 28**2) * 4 + 2 * 2 * 64 * 4 + 7 * 7 * 2 * 4


def test_extraction_with_attention_is_exported_and_proven_equal(tmp_path: Path, capsys: Captured) -> None:
    run = trained(tmp_path)
    answer = ask(capsys, "export", str(run.path), "--onnx", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["parity"]["float32"]["passed"]


def test_extraction_alone_is_exported_and_proven_equal(tmp_path: Path, capsys: Captured) -> None:
    run = trained(tmp_path, "method.attention=false")
    answer = ask(capsys, "export", str(run.path), "--onnx", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["parity"]["float32"]["passed"]
    assert "resnet8+msfe-da" in json.dumps(read_json(Path(told["bundle"]) / "manifest.json"))
