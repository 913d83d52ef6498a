"""Draws the figure of `max_margin.py` as a PNG file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from common.program import PICTURES, png

# Colour shows the library. A thin or dashed line on a broad line keeps both visible where two runs coincide.
_LINE_STYLES: dict[tuple[str, str], dict[str, Any]] = {
    ("softjax", "float32"): {"color": "C0", "linewidth": 3.2, "alpha": 0.45},
    ("softjax", "float64"): {"color": "C0", "linewidth": 1.3, "linestyle": (0, (4, 1.5))},
    ("optax", "float32"): {"color": "C1", "linewidth": 3.2, "alpha": 0.45},
    ("optax", "float64"): {"color": "C1", "linewidth": 1.3, "linestyle": (0, (4, 1.5))},
    ("torch", "float32"): {"color": "C2", "linewidth": 1.1},
}
# The smallest logit gap, in nats, from which float arithmetic loses a row. And the label of its vertical line.
_LIMITS = {
    24 * math.log(2): "logit gap 17:\n$1 + e^{-17} = 1$\nin float32",
    53 * math.log(2): "logit gap 37:\n$1 + e^{-37} = 1$\nin float64",
    126 * math.log(2): "logit gap 87:\n$e^{-87}$ underflows\nin float32",
}


def draw(results: Mapping[str, Any]) -> bytes:
    """The figure: margins above, loss and gradient norm below, all by step."""
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(7.6, 5.9), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6, 1)).flat
        _plot_margins(above.subplots(), results)
        loss, gradient = below.subplots(1, 2)
        _plot_log_curves(loss, results, "loss")
        loss.set(title="Loss, as each library computes it", ylabel="nats, sum over images\n(values of 0 not shown)")
        _plot_log_curves(gradient, results, "gradient_norm")
        gradient.set(title="Gradient norm, as each library computes it", ylabel="‖∂L/∂W‖ (pixel units)")
        return png(figure)


def _plot_margins(axes: Axes, results: Mapping[str, Any]) -> None:
    for run in results["runs"]:
        axes.plot(results["steps"], run["margin"], **_line_style(run))
    hard = results["hard_margin"]
    axes.axhline(hard, color="black", linewidth=0.9)
    axes.set(ylim=(0, 1.08 * hard), ylabel="margin: smallest logit gap / ‖W‖ (pixel units)")
    axes.set_title(f"Margin of a linear classifier on {results['images']} digits, normalised gradient descent")
    _format_step_axis(axes, results)
    for step, text in _limit_steps(results).items():
        # Put the text left of its line where the right side has no room.
        left = step > 0.8 * results["steps"][-1]
        offset = {"xytext": (-3 if left else 3, 4), "textcoords": "offset points", "ha": "right" if left else "left"}
        axes.annotate(text, (step, 0), **offset, color="C3", fontsize=7.5)
    line_ends = [
        (run["margin"][-1], f"{run['library']} {run['dtype']}", _line_style(run)["color"]) for run in results["runs"]
    ]
    _label_line_ends(axes, [*line_ends, (hard, "hard margin (SVM)", "black")])


def _label_line_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Puts each label beside the end of its line, or just below the previous label where the two would overlap."""
    low, high = axes.get_ylim()
    label_y = math.inf
    for y, text, colour in sorted(labels, reverse=True):
        label_y = min(max(y, low), label_y - 0.05 * (high - low))
        offset = {"xycoords": ("axes fraction", "data"), "xytext": (5, 0), "textcoords": "offset points"}
        axes.annotate(text, (1, label_y), **offset, va="center", color=colour, fontsize=8)


def _plot_log_curves(axes: Axes, results: Mapping[str, Any], key: str) -> None:
    for run in results["runs"]:
        curve = np.array(run[key])
        axes.plot(results["steps"], np.where(curve > 0, curve, np.nan), **_line_style(run))
    axes.set(yscale="log")
    _format_step_axis(axes, results)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(LogLocator(base=1e10))


def _format_step_axis(axes: Axes, results: Mapping[str, Any]) -> None:
    axes.set(xlabel="step", xlim=(0, results["steps"][-1]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    for step in _limit_steps(results):
        axes.axvline(step, color="C3", linewidth=0.9, linestyle=":")


def _limit_steps(results: Mapping[str, Any]) -> dict[int, str]:
    """The step at which the gap of the most exact run, softjax in float64, passes each limit, and its label."""
    (exact,) = (run for run in results["runs"] if (run["library"], run["dtype"]) == ("softjax", "float64"))
    passed = {limit: np.flatnonzero(np.array(exact["gap"]) > limit) for limit in _LIMITS}
    return {results["steps"][first[0]]: _LIMITS[limit] for limit, first in passed.items() if len(first)}


def _line_style(run: Mapping[str, Any]) -> dict[str, Any]:
    return _LINE_STYLES[run["library"], run["dtype"]]
