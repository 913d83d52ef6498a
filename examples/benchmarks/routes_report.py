"""The results of `compare_lm_routes.py` as a table and as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from common.program import PICTURES, png

_ROUTES = {
    "fused": {"color": "C0", "linewidth": 4.0, "alpha": 0.45},
    "unlogged": {"color": "C2", "linewidth": 2.4, "alpha": 0.8, "linestyle": "-."},
    "logits": {"color": "C1", "linewidth": 1.4, "linestyle": "--"},
    "optax": {"color": "black", "linewidth": 1.2, "linestyle": ":"},
}


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| tokens × vocabulary | route | a step | fused takes | temporary memory | loss at the last step |"]
    rows.append("|---|---|--:|--:|--:|--:|")
    for case in cases:
        for name, route in case["routes"].items():
            memory = "" if route["temporary_bytes"] is None else f"{route['temporary_bytes'] / 1e6:,.0f} MB"
            share = f"{route['fused_as_a_share']['of_medians']:.2f}" if name != "fused" else ""
            shape = f"{case['tokens']:,} × {case['vocabulary']:,}"
            rows.append(
                f"| {shape} | {name} | {route['seconds']:.2f} s | {share} | {memory} | {route['losses'][-1]:.5f} |"
            )
    return "\n".join(rows)


def largest_difference(case: Mapping[str, Any]) -> float:
    """Of the curves, relative to the fused one."""
    curves = {name: np.asarray(route["losses"]) for name, route in case["routes"].items()}
    return max(float(np.max(np.abs(curve / curves["fused"] - 1))) for curve in curves.values())


def draw(cases: Sequence[Mapping[str, Any]]) -> bytes:
    """For each configuration the curves, and a step's time and memory."""
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(9.6, 0.4 + 2.4 * len(cases)), layout="constrained")
        grid = figure.subplots(len(cases), 3, squeeze=False, width_ratios=(1.3, 1, 1))
        for case, (curve, time, memory) in zip(cases, grid, strict=True):
            for name, route in case["routes"].items():
                steps = np.arange(1, len(route["losses"]) + 1)
                curve.plot(steps, route["losses"], label=name, **_ROUTES[name])
            curve.set(xlabel="step", ylabel="nats a token")
            curve.xaxis.set_major_locator(MaxNLocator(integer=True))
            curve.set_title(f"{case['tokens']:,} tokens a step, {case['vocabulary']:,} entries", loc="left")
            curve.grid(alpha=0.25)
            curve.legend()
            _bars(time, case["routes"], "seconds", 1, "seconds", ".2f")
            _bars(memory, case["routes"], "temporary_bytes", 1e6, "MB", ",.0f")
        grid[0, 1].set_title("Time of a step")
        grid[0, 2].set_title("Temporary memory")
        return png(figure)


def _bars(axes: Axes, routes: Mapping[str, Any], key: str, unit: float, label: str, form: str) -> None:
    values = [(route[key] or 0) / unit for route in routes.values()]
    bars = axes.bar(list(routes), values, color=[_ROUTES[name]["color"] for name in routes], alpha=0.75, width=0.75)
    axes.bar_label(bars, [format(value, form) for value in values], label_type="center", color="white", fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    if key == "seconds":
        spread = np.array([np.abs(np.array(route["quartiles"]) - route[key]) for route in routes.values()]).T
        axes.errorbar(list(routes), values, yerr=spread, fmt="none", ecolor="C3", elinewidth=1.2)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set(ylabel=label)
