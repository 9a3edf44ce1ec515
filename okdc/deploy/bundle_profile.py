"""profile.json: the costs of a bundle's network, and the times of its files on the machine that made them.

The network is counted three times: by fvcore, by torch's own counter, and in every ONNX file by its sizes alone. Times
are of one machine at one moment, so the file says which and how busy it was.

Shapes: N images, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata

import numpy as np
import onnx
import torch

from okdc.bundle import checks, layout
from okdc.bundle.artefacts import Latency, Machine, ModelCost, Profile
from okdc.bundle.macs import macs, uncounted
from okdc.bundle.session import Session
from okdc.cohort import Backbone
from okdc.deploy import latency
from okdc.deploy.count import check_graph, count, exported
from okdc.runs import provenance

BATCHES = {1: latency.WARM_UP, 64: 3}  # and how often each is run before the clock counts: a large batch takes seconds
NOISY = 2  # p90 / p50 above which a time says more about the machine than about the model


def measure(network: Backbone, size: int, models: Mapping[str, bytes], threads: int = 1) -> Profile:
    """profile.json of a network for size×size images and its ONNX files, by precision.

    Times are in ms for a whole batch, on the CPU; the files take turns, so that all see the same disturbances.

    Raises CheckFailed ("counting") where the counters disagree.
    """
    example = torch.zeros(1, 3, size, size)
    counts, expected = count(network, example), exported(network, example)
    graphs = {}
    for precision, blob in models.items():
        model = onnx.load_model_from_string(blob)
        graphs[precision] = macs(model)
        bounds = bool(expected.uncounted), bool(uncounted(model))
        check_graph(expected.macs, graphs[precision], layout.MODELS[precision], *bounds)
    load, times, processor = provenance.load_average(), _times(size, models, threads), checks.processor()
    costs = {
        precision: ModelCost(
            file=layout.MODELS[precision],
            bytes=len(blob),
            macs=graphs[precision],
            latency_ms={f"batch_{batch}": rows[precision] for batch, rows in times.items()},
        )
        for precision, blob in models.items()
    }
    machine = Machine(
        engine="onnxruntime on the CPU",
        processor=processor.name,
        flags=processor.flags,
        threads=threads,
        load_average_before=load[0] if load else None,
        noisy=any(row.noisy for rows in times.values() for row in rows.values()),
    )
    return Profile(
        schema=1,
        input=(3, size, size),
        **counts.to_json(),
        lower_bound=bool(counts.uncounted),
        models=costs,
        machine=machine,
        versions={name: metadata.version(name) for name in ("torch", "fvcore", "onnx", "onnxruntime")},
    )


def _times(size: int, models: Mapping[str, bytes], threads: int) -> dict[int, dict[str, Latency]]:
    """By batch size and precision."""
    sessions = {precision: Session(blob, threads) for precision, blob in models.items()}
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), dtype=np.uint8)
    times = {}
    for batch, warm_up in BATCHES.items():
        part = images[:batch]
        variants: dict[str, Callable[[], object]] = {
            precision: partial(session, part) for precision, session in sessions.items()
        }
        times[batch] = {
            precision: Latency.model_validate({**row, "noisy": row["p90"] > NOISY * row["p50"]})
            for precision, row in latency.measure(variants, warm_up).items()
        }
    return times
