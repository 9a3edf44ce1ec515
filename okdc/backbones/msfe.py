"""NAME+msfe: a network with MFEF's multi-scale feature extraction behind its last stage: one reading of that paper."""

from __future__ import annotations

from torch import nn

from okdc.blocks import DualAttention, HierarchicalSplit
from okdc.cohort import Backbone

GROUPS = 4


def with_extraction(network: Backbone, attention: bool) -> Backbone:
    """The network with its last stage continued by the hierarchical split, and by dual attention (MFEF section 3).

    Maps keep their sizes. The other reading has the extraction in a side path that training alone uses; this one ships
    it. It adds parameters and MACs, so a comparison with the plain network has to print both.
    """
    *stages, last = network.stages
    channels = network.channels[-1]
    extraction: list[nn.Module] = [HierarchicalSplit(channels, GROUPS)]
    if attention:
        extraction.append(DualAttention(channels))
    longer = nn.Sequential(last, *extraction)
    raw = (*network.raw[:-1], False)
    longer_network = Backbone([*stages, longer], network.head, network.channels, network.strides, raw)
    longer_network.description = network.description
    longer_network.inner = (network,)
    return longer_network
