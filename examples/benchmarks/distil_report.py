"""The results of `distil.py` as a table and as a picture."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from common.program import PICTURES, png

STUDENTS = {"sparse": "sparse labels", "hidden": "hidden vectors", "text": "the text alone"}
_STYLES: dict[str, dict[str, Any]] = {
    name: {"color": f"C{number}", "marker": "o", "markersize": 3.5, "linewidth": 1.1, "label": learns_from}
    for number, (name, learns_from) in enumerate(STUDENTS.items())
}
_TEACHER: dict[str, Any] = {"color": "C3", "linestyle": ":", "label": "the teacher"}
# What the bars show: of a student's numbers the name, a title, the unit, and how it is written.
_BARS = (
    ("kl", "KL from the teacher", 1, "{x:.3f}"),
    ("agreement", "agreement with it", 1, "{x:.1%}"),
    ("seconds", "seconds a step", 1, "{x:.2f}"),
    ("temporary_bytes", "temporary MB a step", 1e6, "{x:,.0f}"),
)


def table(results: Mapping[str, Any]) -> str:
    columns = ("learns from", "nats a token", "right", "as the teacher", "KL", "calibration error", "a step", "memory")
    rows = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    for name, of in {**results["students"], "teacher": results["teacher"]}.items():
        rows.append(
            f"| {STUDENTS.get(name, '(the teacher)')} | {of['nats_per_token']:.3f} | {of['accuracy']:.1%} | "
            f"{of['agreement']:.1%} | {of['kl']:.3f} | {of['calibration_error']:.3f} | {_cost(of)} |"
        )
    return "\n".join(rows)


def _cost(of: Mapping[str, Any]) -> str:
    if "seconds" not in of:
        return " | "
    memory = "" if of["temporary_bytes"] is None else f"{of['temporary_bytes'] / 1e6:,.0f} MB"
    return f"{of['seconds']:.2f} s | {memory}"


def draw(results: Mapping[str, Any]) -> bytes:
    """Above the loss as they learn and how rightly they are sure, below what they came to and what a step costs."""
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(8.4, 5.2), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(2, 1))
        above, below = (figure.add_subfigure(grid[row]) for row in range(2))
        curves, calibration = above.subplots(1, 2, width_ratios=(1.5, 1))
        _curves(curves, results)
        _calibration(calibration, results)
        for axes, bars in zip(below.subplots(1, len(_BARS), sharey=True), _BARS, strict=True):
            _bars(axes, results["students"], *bars)
        return png(figure)


def _curves(axes: Axes, results: Mapping[str, Any]) -> None:
    tokens = np.asarray(results["evaluated"]) * results["tokens_per_step"]
    for name, of in results["students"].items():
        axes.plot(tokens, of["curve"], **_STYLES[name])
    axes.axhline(results["teacher"]["nats_per_token"], **_TEACHER)
    axes.set(title="Cross-entropy on the held-out files", xlabel="tokens of training", ylabel="nats a token")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.legend()


def _calibration(axes: Axes, results: Mapping[str, Any]) -> None:
    """Without the bins of fewer than a thousandth of the tokens: chance is all that they show."""
    axes.plot([0, 1], [0, 1], color="black", alpha=0.3, linewidth=0.8)
    models = [(results["teacher"], _TEACHER), *((of, _STYLES[name]) for name, of in results["students"].items())]
    for of, style in models:
        weight, confidence, correct = (np.array(of["calibration"][key]) for key in ("weight", "confidence", "correct"))
        some = weight > weight.sum() / 1000
        axes.plot(confidence[some] / weight[some], correct[some] / weight[some], **style)
    axes.set(title="Calibration there", xlabel="probability of the likeliest token", ylabel="share that is right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)


def _bars(axes: Axes, students: Mapping[str, Any], key: str, title: str, unit: float, form: str) -> None:
    values = [(students[name][key] or 0) / unit for name in STUDENTS]
    colours = [style["color"] for style in _STYLES.values()]
    bars = axes.barh(list(STUDENTS.values()), values, color=colours, height=0.62)
    axes.bar_label(bars, [form.format(x=value) for value in values], label_type="center", color="white")
    axes.set(title=title, ylim=(len(values) - 0.5, -0.5), xticks=[])
    axes.spines["bottom"].set_visible(False)
