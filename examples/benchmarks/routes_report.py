"""Table and figure of `compare_lm_routes.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from common.program import PICTURES, png

# One style per route, in the order of the results file. All curves coincide, so each line is thinner than the last.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "C0", "linewidth": 4.0, "alpha": 0.45},
    {"color": "C2", "linewidth": 2.4, "alpha": 0.8, "linestyle": "-."},
    {"color": "C1", "linewidth": 1.4, "linestyle": "--"},
    {"color": "black", "linewidth": 1.2, "linestyle": ":"},
)
# What the figure calls each route.
_LABELS = {
    "fused": "fused,\nwith\nmetrics",
    "unlogged": "fused,\nno\nmetrics",
    "logits": "softjax\non\nlogits",
    "optax": "optax\non\nlogits",
}


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| tokens × vocabulary | route | time per step | fused ÷ route | temporary memory | loss at the last step |"
    ]
    lines.append("|---|---|--:|--:|--:|--:|")
    for case in cases:
        for name, route in case["routes"].items():
            memory = "" if route["temporary_bytes"] is None else f"{route['temporary_bytes'] / 1e6:,.0f} MB"
            ratio = f"{route['fused_ratio']['median_ratio']:.2f}" if name != "fused" else ""
            cells = describe_case(case), name, f"{route['seconds']:.2f} s", ratio, memory, f"{route['losses'][-1]:.5f}"
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_case(case: Mapping[str, Any]) -> str:
    prompt = f", {case['prompt_fraction']:.0%} prompt" if case.get("prompt_fraction") else ""
    return f"{case['tokens']:,} × {case['vocabulary']:,}{prompt}"


def largest_difference(case: Mapping[str, Any]) -> float:
    """Largest relative difference between the loss curve of a route and that of the fused route."""
    curves = {name: np.asarray(route["losses"]) for name, route in case["routes"].items()}
    return max(float(np.max(np.abs(curve / curves["fused"] - 1))) for curve in curves.values())


def draw(cases: Sequence[Mapping[str, Any]]) -> bytes:
    """One row of panels per configuration: loss curves, time per step, temporary memory."""
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(9.6, 0.4 + 2.75 * len(cases)), layout="constrained")
        grid = figure.subplots(len(cases), 3, squeeze=False, width_ratios=(1.3, 1, 1))
        for case, (curves, time, memory) in zip(cases, grid, strict=True):
            _draw_curves(curves, case)
            _draw_bars(time, case["routes"], "seconds", 1, "time per step (s)", ".2f")
            _draw_bars(memory, case["routes"], "temporary_bytes", 1e6, "temporary memory (MB)", ",.0f")
        grid[0, 1].set_title("Time per step: median and quartiles")
        grid[0, 2].set_title("Temporary memory")
        return png(figure)


def _draw_curves(axes: Axes, case: Mapping[str, Any]) -> None:
    for style, (name, route) in zip(_STYLES, case["routes"].items(), strict=True):
        axes.plot(
            np.arange(1, len(route["losses"]) + 1), route["losses"], label=_label(name).replace("\n", " "), **style
        )
    axes.set(xlabel="training step", ylabel="loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"Tokens × vocabulary: {describe_case(case)}", loc="left")
    axes.grid(alpha=0.25)
    axes.legend()


def _draw_bars(
    axes: Axes, routes: Mapping[str, Any], quantity: str, unit: float, label: str, number_format: str
) -> None:
    values = [(route[quantity] or 0) / unit for route in routes.values()]
    colours = [style["color"] for style in _STYLES]
    labels = list(map(_label, routes))
    bars = axes.bar(labels, values, color=colours, alpha=0.75, width=0.75)
    axes.bar_label(
        bars, [format(value, number_format) for value in values], label_type="center", color="white", fontsize=8
    )
    axes.tick_params(axis="x", labelsize=8)
    if quantity == "seconds":
        spread = np.array([np.abs(np.array(route["quartiles"]) - route[quantity]) for route in routes.values()]).T
        axes.errorbar(labels, values, yerr=spread, fmt="none", ecolor="C3", elinewidth=1.2, capsize=3)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set(ylabel=label)


def _label(route: str) -> str:
    return _LABELS.get(route, route)
