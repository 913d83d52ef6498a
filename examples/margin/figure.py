"""The picture of `max_margin.py`, as the bytes of a PNG file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from common.program import PICTURES, png

# The colour is the library. Runs that lie on each other are both seen: a thin line or dashes upon a broad one.
_LINES: dict[tuple[str, str], dict[str, Any]] = {
    ("softjax", "float32"): {"color": "C0", "linewidth": 3.2, "alpha": 0.45},
    ("softjax", "float64"): {"color": "C0", "linewidth": 1.3, "linestyle": (0, (4, 1.5))},
    ("optax", "float32"): {"color": "C1", "linewidth": 3.2, "alpha": 0.45},
    ("optax", "float64"): {"color": "C1", "linewidth": 1.3, "linestyle": (0, (4, 1.5))},
    ("torch", "float32"): {"color": "C2", "linewidth": 1.1},
}
# The gap of the nearest sample, in nats, at which its row comes to lose digits.
_LIMITS = {
    24 * math.log(2): "gap 17:\n$1 + e^{-17} = 1$\nin float32",
    53 * math.log(2): "gap 37:\n$1 + e^{-37} = 1$\nin float64",
    126 * math.log(2): "gap 87:\n$e^{-87}$ underflows\nin float32",
}


def draw(results: Mapping[str, Any]) -> bytes:
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6, 1)).flat
        _margins(above.subplots(), results)
        loss, gradient = below.subplots(1, 2)
        _logarithmic(loss, results, "loss")
        loss.set(title="Loss, as computed (0 is not shown)", ylabel="sum over the images (nats)")
        _logarithmic(gradient, results, "gradient_norm")
        gradient.set(title="Norm of the gradient, as computed", ylabel="units of ink")
        return png(figure)


def _margins(axes: Axes, results: Mapping[str, Any]) -> None:
    for run in results["runs"]:
        axes.plot(results["steps"], run["margin"], **_line(run))
    hard = results["hard_margin"]
    axes.axhline(hard, color="black", linewidth=0.9)
    axes.set(ylim=(0, 1.08 * hard), ylabel="smallest logit gap / ‖W‖ (units of ink)")
    axes.set_title(f"Margin of a linear classifier of {results['images']} digits, by normalised gradient descent")
    _along_steps(axes, results)
    for step, text in _limits(results).items():
        # To the left of its line where there is no room to the right.
        left = step > 0.8 * results["steps"][-1]
        place = {"xytext": (-3 if left else 3, 4), "textcoords": "offset points", "ha": "right" if left else "left"}
        axes.annotate(text, (step, 0), **place, color="C3", fontsize=7.5)
    ends = [(run["margin"][-1], f"{run['library']} {run['dtype']}", _line(run)["color"]) for run in results["runs"]]
    _at_the_right(axes, [*ends, (hard, "hard margin (SVM)", "black")])


def _at_the_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Each label beside the end of its line, or as near as the label above it leaves room."""
    low, high = axes.get_ylim()
    below = math.inf
    for y, text, colour in sorted(labels, reverse=True):
        below = min(max(y, low), below - 0.05 * (high - low))
        place = {"xycoords": ("axes fraction", "data"), "xytext": (5, 0), "textcoords": "offset points"}
        axes.annotate(text, (1, below), **place, va="center", color=colour, fontsize=8)


def _logarithmic(axes: Axes, results: Mapping[str, Any], key: str) -> None:
    for run in results["runs"]:
        curve = np.array(run[key])
        axes.plot(results["steps"], np.where(curve > 0, curve, np.nan), **_line(run))
    axes.set(yscale="log")
    _along_steps(axes, results)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(LogLocator(base=1e10))


def _along_steps(axes: Axes, results: Mapping[str, Any]) -> None:
    axes.set(xlabel="step", xlim=(0, results["steps"][-1]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    for step in _limits(results):
        axes.axvline(step, color="C3", linewidth=0.9, linestyle=":")


def _limits(results: Mapping[str, Any]) -> dict[int, str]:
    """The steps at which the gap passes each limit, in the run whose gradients are right throughout."""
    (exact,) = (run for run in results["runs"] if (run["library"], run["dtype"]) == ("softjax", "float64"))
    passed = {limit: np.flatnonzero(np.array(exact["gap"]) > limit) for limit in _LIMITS}
    return {results["steps"][first[0]]: _LIMITS[limit] for limit, first in passed.items() if len(first)}


def _line(run: Mapping[str, Any]) -> dict[str, Any]:
    return _LINES[run["library"], run["dtype"]]
