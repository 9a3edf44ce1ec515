"""okdc/backbones/README.md is a guide that works: its files are written and its commands run as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from asking import ask

from okdc import backbones, plugins
from okdc.backbones.adapters import Adapted
from okdc.cohort import Cohort
from okdc.errors import RecipeError
from okdc.runs.files import read_json

Captured = pytest.CaptureFixture[str]
GUIDE = (Path(backbones.__file__).parent / "README.md").read_text(encoding="utf-8")
DIGITS, CIFAR = torch.Size((3, 8, 8)), torch.Size((3, 32, 32))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.S)


@pytest.fixture(autouse=True)
def mynet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The guide's file in the working directory, and nothing of it left behind."""
    Path("mynet.py").write_text("\n\n".join(blocks("python")), encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mynet", None)
    plugins._entry_points.cache_clear()


def install(points: dict[str, dict[str, str]], package: str = "mynet") -> None:
    """A package with these entry points, as an installer leaves it."""
    folder = Path(f"site/{package}-1.0.dist-info")
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in points.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    if (site := str(folder.parent.absolute())) not in sys.path:
        sys.path.append(site)
    plugins._entry_points.cache_clear()


def run_commands(capsys: Captured, block: str) -> str:
    """What the commands printed."""
    printed = ""
    for line in block.splitlines():
        okdc, *words = shlex.split(line)
        assert okdc == "okdc"
        answer = ask(capsys, *words)
        assert answer.code == 0, answer.err
        printed += answer.out + answer.err
    return printed


def test_the_network_of_the_guide_is_distilled_profiled_exported_and_verified(capsys: Captured) -> None:
    printed = run_commands(capsys, blocks("sh")[0])
    for end in ("0 16×8×8", "1 32×4×4", "2 64×2×2"):
        assert end in printed, "the guide says where its stages end"
    manifest = read_json(Path("runs/digits_resnet8-1/bundle/manifest.json"))
    assert "mynet:small" in str(manifest)


def test_a_package_gives_its_network_a_name(capsys: Captured) -> None:
    assert "small" not in backbones.NETWORKS
    with pytest.raises(RecipeError, match="no network is called 'small'"):
        backbones.check("small")
    install(tomllib.loads(blocks("toml")[0])["project"]["entry-points"])
    assert backbones.NETWORKS.names() == [*backbones.NETWORKS.own, "small"]
    backbones.check("small+msfe")
    network = backbones.build("small", 10, CIFAR)
    assert isinstance(network, Adapted)
    assert (network.architecture, network.channels) == ("small", (16, 32, 64))
    assert "small" in run_commands(capsys, blocks("sh")[1])
    unknown = ask(capsys, "profile", "smal")
    assert (unknown.code, "small" in unknown.err) == (2, True)


def test_a_name_of_two_packages_is_refused_and_okdcs_own_come_first(capsys: Captured) -> None:
    install({"okdc.networks": {"small": "mynet:small", "resnet8": "mynet:small"}})
    install({"okdc.networks": {"small": "other:small"}}, "other")
    with pytest.raises(RecipeError, match="several packages") as caught:
        backbones.build("small", 10, CIFAR)
    assert "mynet:small" in caught.value.message
    assert "other:small" in caught.value.message
    assert not isinstance(backbones.build("resnet8", 10, CIFAR), Adapted)
    assert ask(capsys, "distill", 'cohort.students=["small"]', "method.name=baseline").code == 2


def test_the_backbone_of_the_guide_keeps_its_contract() -> None:
    network = backbones.build("mynet:staged", 10, DIGITS)
    assert not isinstance(network, Adapted)
    (maps,) = Cohort([network]).probe(DIGITS)
    assert tuple(size[0] for size in maps) == network.channels
    assert tuple(8 // size[1] for size in maps) == network.strides
    assert network.raw == (False, True, True)
    assert network(torch.zeros(2, *DIGITS)).shape == (2, 10)
