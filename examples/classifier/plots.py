"""The four plots of `train_classifier.py`, each as the content of a PNG file."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

import softjax
from common.program import PICTURES, png
from softjax import metrics

NAMES = ("training_curves.png", "weights.png", "confusion_matrix.png", "reliability.png")

BINS = 10  # of the confidences, in the calibration error too

_SIDE = 8  # pixels
_FEW = 10  # fewer images in a bin say little


def draw(
    history: Mapping[str, np.ndarray], kernel: np.ndarray, tested: softjax.Statistics, labels: np.ndarray, unit: str
) -> dict[str, bytes]:
    """The plots by file name.

    Args:
      history: `train_loss`, `test_loss`, `train_accuracy` and `test_accuracy`, one value per epoch.
      kernel: the weights, `[pixels, classes]`.
      tested: statistics of the test images, `[images]`.
      labels: the digits of the test images, `[images]`.
      unit: unit of the losses.
    """
    with matplotlib.rc_context(fname=PICTURES):
        figures = (
            _training_curves(history, unit),
            _weights(kernel),
            _confusion_matrix(np.asarray(tested.prediction), labels, kernel.shape[-1]),
            _reliability(metrics.calibration(tested, BINS)),
        )
        return {name: png(figure) for name, figure in zip(NAMES, figures, strict=True)}


def _training_curves(history: Mapping[str, np.ndarray], unit: str) -> Figure:
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    losses, errors = figure.subplots(1, 2)
    epochs = np.arange(1, len(history["train_loss"]) + 1)
    for part, colour in (("train", "C0"), ("test", "C1")):
        line: dict[str, Any] = {"color": colour, "label": part, "linewidth": 1.1, "clip_on": False, "zorder": 3}
        if len(epochs) < 30:
            line |= {"marker": "o", "markersize": 3}
        losses.plot(epochs, history[f"{part}_loss"], **line)
        errors.plot(epochs, 1 - history[f"{part}_accuracy"], **line)
    losses.set(title="Cross-entropy", ylabel=f"mean loss per image ({unit})", ylim=(0, None))
    errors.set(title="Error rate", ylabel="images misclassified", ylim=(0, None))
    errors.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    for axes in (losses, errors):
        # The curves fall mostly in the first epochs, which a linear axis would hide.
        axes.set(xlabel="epoch (logarithmic scale)", xscale="log", xlim=(0.9, max(len(epochs), 2) * 1.1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda epoch, _: f"{epoch:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.legend()
    return figure


def _weights(kernel: np.ndarray) -> Figure:
    classes = kernel.shape[1]
    columns = min(classes, 5)
    rows = math.ceil(classes / columns)
    figure = Figure(figsize=(1.5 * columns + 0.9, 1.65 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    # One scale for all, with white at 0: ink on red raises the logit of the digit, ink on blue lowers it.
    limit = float(np.max(np.abs(kernel))) or 1.0
    scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    images = [axes.imshow(w.reshape(_SIDE, _SIDE), **scale) for axes, w in zip(grid.flat, kernel.T, strict=False)]
    for digit, axes in enumerate(grid.flat):
        axes.set(xticks=[], yticks=[], title=f"Digit {digit}", visible=digit < classes)
        axes.spines[:].set(visible=True, color="#bbbbbb")
    figure.suptitle("Learned weights of each class")
    figure.colorbar(images[0], ax=grid, label="weight", shrink=0.8, aspect=15 * rows)
    return figure


def _confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Figure:
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    fractions = counts / counts.sum(axis=1, keepdims=True)
    figure = Figure(figsize=(0.55 * classes + 1.9, 0.55 * classes + 1.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (true, guess), count in np.ndenumerate(counts):
        ink = "white" if fractions[true, guess] > 0.5 else "black" if count else "#bbbbbb"
        axes.text(guess, true, str(count), ha="center", va="center", color=ink)
    axes.set(
        title=f"Confusion matrix: {np.trace(counts)} of {len(labels)} test images correct",
        xlabel="predicted digit",
        ylabel="true digit",
        xticks=range(classes),
        yticks=range(classes),
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, label="fraction of the true digit", shrink=0.9)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _reliability(measured: metrics.Calibration) -> Figure:
    confidence, accuracy, _ = map(np.asarray, measured.curve())
    counts = np.asarray(measured.weight).astype(int)
    figure = Figure(figsize=(4.9, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], ":", color="C3")
    for b in np.flatnonzero(counts):
        _reliability_point(above, confidence[b], accuracy[b], counts[b])
    _reliability_legend(figure)
    title = f"Calibration on the test images\n(expected calibration error {float(measured.expected_error()):.1%})"
    above.set(title=title, ylabel="accuracy", ylim=(-0.03, 1.03))
    bars = below.bar((np.arange(BINS) + 0.5) / BINS, counts, width=0.9 / BINS, color="C0")
    below.bar_label(bars, [str(count) if count else "" for count in counts], padding=1, fontsize=7)
    below.set(
        xlabel="probability of the predicted digit", ylabel="images", xlim=(0, 1.02), ylim=(0, 1.2 * counts.max())
    )
    for axes in (above, below):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.25)
    above.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _reliability_point(axes: Axes, confidence: float, accuracy: float, images: int) -> None:
    """One bin: its accuracy with Wilson's 95 % interval, hollow if it has few images."""
    few = images < _FEW
    axes.plot([confidence] * 2, _wilson(accuracy, images), color="C0", alpha=0.4 if few else 1, linewidth=1.2)
    axes.plot(confidence, accuracy, "o", color="C0", markerfacecolor="white" if few else "C0")


def _reliability_legend(figure: Figure) -> None:
    # Outside the axes: the points may lie anywhere in them.
    line = {"color": "C0", "linewidth": 1.2, "marker": "o"}
    entries = [
        Line2D([], [], color="C3", linestyle=":", label="perfect calibration"),
        Line2D([], [], label="bin of images, 95% interval", **line),
        Line2D([], [], label=f"fewer than {_FEW} images", markerfacecolor="white", **line),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=3, fontsize=7.5, columnspacing=1)


def _wilson(fraction: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    # The normal interval would have no width in a bin where all images are correct, as in most of these.
    spread = z * z / trials
    centre = (fraction + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(fraction * (1 - fraction) / trials + spread / (4 * trials))
    return centre - half, centre + half
