"""Draws the figure of `benchmark.py --part core` as a PNG file: each library's time divided by optax's."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.core_report import PASS, QUANTITIES, Case, describe_machine, format_three_digits
from common.program import PICTURES, png

# The markers distinguish the libraries in grey print.
_MARKERS = {
    "softjax": {"color": "C0", "marker": "o", "markersize": 6.5, "zorder": 4},
    "torch": {"color": "C1", "marker": "s", "markersize": 5, "zorder": 3},
    "optax": {"color": "#444444", "marker": "D", "markersize": 4, "zorder": 2},
}
_PASS_MARKER = {
    "color": "C2", "marker": "|", "markersize": 13, "markeredgewidth": 2, "linestyle": "none", "zorder": 1,
}  # fmt: skip
_OFFSETS = {"softjax": -0.2, "optax": 0.0, "torch": 0.2}  # downwards, so that the quartile lines do not overlap
_TITLES = {
    "value": "value, jitted",
    "value and gradient": "value and gradient, jitted",
    "eager value": "value, eager",
    "eager gradient": "gradient, eager",
}


def draw(results: dict[str, Any]) -> bytes:
    """The figure: one row of panels per dtype, one column per quantity."""
    by_dtype: dict[str, list[Case]] = {}
    for case in map(Case, results["cases"]):
        by_dtype.setdefault(case.dtype, []).append(case)
    with matplotlib.rc_context({"axes.spines.left": False}, PICTURES):
        height = 1.5 + sum(0.5 + 0.42 * len(cases) for cases in by_dtype.values())
        figure = Figure(figsize=(11, height), layout="constrained")
        grid = figure.subplots(len(by_dtype), len(QUANTITIES), sharex="col", squeeze=False)
        for row, (dtype, cases) in zip(grid, by_dtype.items(), strict=True):
            for axes, quantity in zip(row, QUANTITIES, strict=True):
                _draw_panel(axes, cases, quantity)
            row[0].set_yticks(range(len(cases)), [case.shape for case in cases])
            row[0].set_ylabel(f"{dtype}\nrows × classes")
        for axes, quantity in zip(grid[0], QUANTITIES, strict=True):
            axes.set_title(_TITLES[quantity])
        _draw_legend(figure)
        label = "time ÷ optax's time (log scale); horizontal lines show the quartiles"
        machine = describe_machine(results).replace("; ", "\n", 1)
        figure.supxlabel(f"{label}\n{machine}", fontsize=8)
        return png(figure)


def _draw_panel(axes: Axes, cases: Sequence[Case], quantity: str) -> None:
    axes.axvline(1, color="#444444", linewidth=0.8, zorder=0)
    for y, case in enumerate(cases):
        optax = case.timing("optax", quantity)
        assert optax is not None
        for library, marker in _MARKERS.items():
            _draw_point(axes, case.timing(library, quantity), optax["median"], y + _OFFSETS[library], marker)
        if quantity == "value and gradient":  # the value alone writes no array of that size
            _draw_point(axes, case.timing(*PASS), optax["median"], y, _PASS_MARKER)
        axes.annotate(
            f"{format_three_digits(1e3 * optax['median'])} ms", (1, y), (1.02, y), ("axes fraction", "data"),
            fontsize=7.5, color="#444444", va="center",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(left=False)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.grid(axis="x", alpha=0.25)
    for y in range(1, len(cases)):
        axes.axhline(y - 0.5, color="#DDDDDD", linewidth=0.6, zorder=0)


def _draw_point(axes: Axes, timing: dict[str, Any] | None, unit: float, y: float, marker: dict[str, Any]) -> None:
    if timing is not None:
        line = {"color": marker["color"], "zorder": marker["zorder"]}
        axes.plot(np.divide(timing["quartiles"], unit), [y, y], linewidth=1.3, **line)
        axes.plot(timing["median"] / unit, y, **marker)


def _draw_legend(figure: Figure) -> None:
    handles = [Line2D([], [], label=library, linewidth=1.3, **marker) for library, marker in _MARKERS.items()]
    handles[-1].set_label("optax (its time is on the right)")
    handles.append(Line2D([], [], label="one read and write of the logits", **_PASS_MARKER))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
