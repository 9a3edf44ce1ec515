"""The picture of a confusion matrix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from okdc.runs.mistakes import Counts

NAMED, COUNTED = 40, 15  # classes up to which each has its name, and each cell its number
INCHES, DPI = 6.4, 100


def drawn(counts: Counts, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """HWC pixels of K×K `counts`, [label, answer]: a cell is as dark as its share of the label's images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, INCHES), dpi=DPI, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # a name may hold a dollar
        axes.set_yticks(range(len(names)), names, parse_math=False)
    if len(names) <= COUNTED:
        for label, answer in np.argwhere(counts):
            colour = "white" if shares[label, answer] > 0.5 else "black"
            axes.text(answer, label, f"{counts[label, answer]}", ha="center", va="center", color=colour)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about letters that the font lacks, and names too long for the figure
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
