"""Table and figure of `distil.py`."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from common.program import PICTURES, png

STUDENTS = {"sparse": "sparse labels", "hidden": "hidden states", "text": "the text alone"}
_STYLES: dict[str, dict[str, Any]] = {
    name: {"color": f"C{index}", "marker": "o", "markersize": 3.5, "linewidth": 1.1, "label": label}
    for index, (name, label) in enumerate(STUDENTS.items())
}
_TEACHER_STYLE: dict[str, Any] = {"color": "C3", "linestyle": ":", "label": "teacher"}
# The bar charts: key in a student's results, title, unit, number format.
_BARS = (
    ("kl", "KL from the teacher\n(nats)", 1, "{x:.3f}"),
    ("agreement", "top-1 agreement\nwith the teacher", 1, "{x:.1%}"),
    ("seconds", "time per step\n(s)", 1, "{x:.2f}"),
    ("temporary_bytes", "temporary memory\n(MB)", 1e6, "{x:,.0f}"),
)


def table(results: Mapping[str, Any]) -> str:
    """Quality of each student and of the teacher on the held-out files, and the cost of a training step."""
    columns = ("trained on", "loss, nats per token", "accuracy", "top-1 agreement with the teacher")
    columns += ("KL from the teacher, nats", "calibration error", "time per step", "temporary memory")
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    for name, model in {**results["students"], "teacher": results["teacher"]}.items():
        lines.append(
            f"| {STUDENTS.get(name, '(teacher)')} | {model['nats_per_token']:.3f} | {model['accuracy']:.1%} | "
            f"{model['agreement']:.1%} | {model['kl']:.3f} | {model['calibration_error']:.3f} | {_cost_cells(model)} |"
        )
    return "\n".join(lines)


def _cost_cells(model: Mapping[str, Any]) -> str:
    if "seconds" not in model:  # the teacher
        return " | "
    memory = "" if model["temporary_bytes"] is None else f"{model['temporary_bytes'] / 1e6:,.0f} MB"
    return f"{model['seconds']:.2f} s | {memory}"


def draw(results: Mapping[str, Any]) -> bytes:
    """Above: loss curves and calibration. Below: distance from the teacher, and cost of a step."""
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(8.4, 5.6), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(2, 1))
        above, below = (figure.add_subfigure(grid[row]) for row in range(2))
        curves, calibration = above.subplots(1, 2, width_ratios=(1.5, 1))
        _draw_curves(curves, results)
        _draw_calibration(calibration, results)
        for axes, bars in zip(below.subplots(1, len(_BARS), sharey=True), _BARS, strict=True):
            _draw_bars(axes, results["students"], *bars)
        return png(figure)


def _draw_curves(axes: Axes, results: Mapping[str, Any]) -> None:
    tokens = np.asarray(results["evaluated"]) * results["tokens_per_step"]
    for name, student in results["students"].items():
        axes.plot(tokens, student["curve"], **_STYLES[name])
    axes.axhline(results["teacher"]["nats_per_token"], **_TEACHER_STYLE)
    axes.set(title="Cross-entropy on the held-out files", xlabel="training tokens", ylabel="loss (nats per token)")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.legend()


def _draw_calibration(axes: Axes, results: Mapping[str, Any]) -> None:
    """Accuracy by confidence. Bins with fewer than a thousandth of the tokens are left out as noise."""
    axes.plot([0, 1], [0, 1], color="black", alpha=0.3, linewidth=0.8)
    students = ((student, _STYLES[name]) for name, student in results["students"].items())
    for model, style in ((results["teacher"], _TEACHER_STYLE), *students):
        bins = model["calibration"]
        weight, confidence, correct = (np.array(bins[key]) for key in ("weight", "confidence", "correct"))
        kept = weight > weight.sum() / 1000
        axes.plot(confidence[kept] / weight[kept], correct[kept] / weight[kept], **style)
    axes.set(title="Calibration on the held-out files", xlabel="predicted top-1 probability", ylabel="top-1 accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)


def _draw_bars(axes: Axes, students: Mapping[str, Any], key: str, title: str, unit: float, number_format: str) -> None:
    values = [(students[name][key] or 0) / unit for name in STUDENTS]
    colours = [style["color"] for style in _STYLES.values()]
    bars = axes.barh(list(STUDENTS.values()), values, color=colours, height=0.62)
    axes.bar_label(bars, [number_format.format(x=value) for value in values], label_type="center", color="white")
    axes.set(title=title, ylim=(len(values) - 0.5, -0.5), xticks=[])
    axes.tick_params(left=False)
    axes.spines["bottom"].set_visible(False)
