"""Twenty networks that nobody wrote for okdc: the whole way, or refused before the first step.

`python tests/any_network.py --timm` takes all of them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import networks
import pytest
from any_network import carry, chosen
from asking import case
from networks.table import FACTORIES, TIMM, Network

# Every module of networks/, and of each the kinds that touch most of okdc.
SAMPLE = [
    "activations:prelu", "operators:many_operators", "norms:instancenorm_running", "attention:bottleneck_transformer",
    "pooling:gem", "resizing:transposed", "resizing:images_larger", "resizing:pad_same", "mixing:einsum",
    "heads:cosine", "weights:spectral_norm", "modes:frozen_front", "dtypes:double_buffer", "shapes:view_of_images",
    "shapes:python_keywords", "outputs:auxiliary_head", "wrong:coupled_by_mean", "wrong:scripted",
]  # fmt: skip
OF_TIMM = ["timm:test_convnext", "timm:test_resnet"]
LONG = (
    *("networks.resizing:pad_same", "networks.resizing:images_larger", "networks.attention:bottleneck_transformer"),
    *("networks.pooling:gem", "networks.mixing:einsum"),  # test_other_operators.py exports these
    "networks.operators:many_operators",  # the clients' tests train and export it, in three precisions
)
NETWORKS = chosen([f"networks.{name}" for name in SAMPLE] + OF_TIMM, timm=False)


@pytest.mark.parametrize(
    "network",
    [case(network, long=network in TIMM or network.name in LONG, id=network.name) for network in NETWORKS],
)
def test_a_network_goes_the_whole_way_or_is_refused_before_the_first_step(network: Network, tmp_path: Path) -> None:
    if network in TIMM:
        pytest.importorskip("timm", reason="timm is an extra: pip install 'okdc[timm]'")
    row = carry(network, tmp_path)
    assert row.outcome == network.expected, str(row)


def test_the_sample_is_of_twenty_and_of_every_module() -> None:
    assert len(NETWORKS) == len(SAMPLE) + len(OF_TIMM) == 20
    modules = {network.name.partition(":")[0] for network in FACTORIES} - {"networks.trunk"}
    assert {network.name.partition(":")[0] for network in NETWORKS} == modules | {"timm"}


def test_every_factory_stands_once_in_the_table() -> None:
    names = [network.name for network in (*FACTORIES, *TIMM)]
    assert len(names) == len(set(names))
    assert len(TIMM) == 60
    written = set[str]()
    for _, name, _ in pkgutil.iter_modules(networks.__path__, "networks."):
        public = {key: value for key, value in vars(importlib.import_module(name)).items() if not key.startswith("_")}
        own = [key for key, value in public.items() if inspect.isfunction(value) and value.__module__ == name]
        written |= {f"{name}:{key}" for key in own}
    assert written - {"networks.trunk:block", "networks.images:few_digits"} == {n.name for n in FACTORIES}
