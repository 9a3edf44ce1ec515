"""How long one image takes, measured so that two things can be compared on a machine that is never quiet."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

WARM_UP, RUNS, SECONDS = 10, 100, 2.0


def measure(variants: dict[str, Callable[[], object]], warm_up: int = WARM_UP) -> dict[str, dict[str, float]]:
    """p50, p90 and the minimum of each variant in ms; the variants take turns, so that all see the same disturbances.

    Of two runs in each turn the second counts: the first finds the processor's caches full of another variant's data,
    which made a network of 0.04 ms one of 0.06 ms.

    Each gets 100 counted runs, fewer where all together would take longer than two seconds; at least as many as
    `warm_up`, the runs that are not counted.
    """
    for run in variants.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    deadline = time.perf_counter() + SECONDS
    for i in range(RUNS):
        if i >= warm_up and time.perf_counter() > deadline:
            break
        for name, run in variants.items():
            if len(variants) > 1:
                run()
            began = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - began))
    return {
        name: {
            "p50": round(float(np.percentile(taken, 50)), 4),
            "p90": round(float(np.percentile(taken, 90)), 4),
            "min": round(min(taken), 4),
            "runs": len(taken),
        }
        for name, taken in times.items()
    }
