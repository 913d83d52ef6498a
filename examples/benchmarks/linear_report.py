"""Tables and figure of `benchmark.py --part linear`, `growth` and `chunks`."""

from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.core_report import (
    describe_machine,
    describe_run,
    format_bytes,
    format_duration,
    format_spread,
    table_head,
    table_row,
)
from benchmarks.linear_cases import ARGUMENTS
from benchmarks.linear_contenders import (
    CHUNKED,
    JAX_CCE,
    LINEAR_TORCH,
    MATMULS,
    MATMULS_TORCH,
    SOFTJAX,
    TOKAMAX,
    UNFUSED,
    UNFUSED_TORCH,
    UNREDUCED,
)
from common.program import PICTURES, png

_MARKERS = {
    SOFTJAX: {"color": "C0", "marker": "o", "markersize": 5, "zorder": 4},
    UNFUSED: {"color": "#444444", "marker": "D", "markersize": 4, "zorder": 3},
    MATMULS: {"color": "C2", "marker": "|", "markersize": 10, "linestyle": "--", "zorder": 2},
}


def describe_shape(case: dict[str, Any]) -> str:
    return f"{case['samples']} × {case['features']} × {case['classes']}"


def timings_by_name(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {timing["name"]: timing for timing in case["timings"]}


def markdown(results: dict[str, Any]) -> str:
    """The tables of `compare`, then one table per problem with all measurements."""
    return "\n\n".join([compare(results), *("\n".join(_case_table(case)) for case in results["cases"])])


def compare(results: dict[str, Any]) -> str:
    """Method and machine; for `--part linear` also the tables that compare softjax with the other contenders."""
    paragraphs = [f"Time of the loss and the gradients of hidden states and kernel. {describe_run(results)}"]
    if results["part"] == "linear":
        paragraphs += ["\n".join(_jax_table(results["cases"])), "\n".join(_torch_table(results["cases"]))]
    if results.get("peak_resident_bytes"):
        shape = describe_shape(results["cases"][0])
        paragraphs.append(
            f"Peak memory of a fresh process at {shape} (in brackets: without arguments): {_describe_peaks(results)}."
        )
    return "\n\n".join(paragraphs)


def _jax_table(cases: list[dict[str, Any]]) -> Iterator[str]:
    columns = {
        MATMULS: "÷ three matmuls",
        UNFUSED: "÷ unfused baseline",
        CHUNKED: "÷ hand-written chunked loss",
        JAX_CCE: "÷ jax-cce",
        TOKAMAX: "÷ tokamax",
    }
    yield from table_head(
        "samples × features × classes", "dtype", "softjax", *columns.values(), "`none` ÷ unfused baseline",
        "temporary memory, softjax", "temporary memory, unfused baseline", text_columns=2,
    )  # fmt: skip
    for case in cases:
        timings = timings_by_name(case)
        yield table_row(
            describe_shape(case),
            case["dtype"],
            format_duration(timings[SOFTJAX]["median"]),
            *(ratio_cell(timings, SOFTJAX, name) for name in columns),
            ratio_cell(timings, UNREDUCED, UNFUSED),
            *(format_bytes(timings[name]["temporary_bytes"]) for name in (SOFTJAX, UNFUSED)),
        )


def _torch_table(cases: list[dict[str, Any]]) -> Iterator[str]:
    """torch's matmuls run at another speed than XLA's, so each library is also compared with its own matmuls."""
    pairs = [(SOFTJAX, UNFUSED_TORCH), (SOFTJAX, LINEAR_TORCH), (SOFTJAX, MATMULS)]
    pairs += [(UNFUSED_TORCH, MATMULS_TORCH), (LINEAR_TORCH, MATMULS_TORCH)]
    yield from table_head(
        "samples × features × classes", "dtype", "softjax ÷ unfused baseline (torch)",
        "softjax ÷ torch linear_cross_entropy", "softjax ÷ three matmuls (XLA)",
        "unfused baseline (torch) ÷ three matmuls (torch)", "torch linear_cross_entropy ÷ three matmuls (torch)",
        text_columns=2,
    )  # fmt: skip
    for case in cases:
        cells = (ratio_cell(timings_by_name(case), *pair) for pair in pairs)
        yield table_row(describe_shape(case), case["dtype"], *cells)


def ratio_cell(timings: dict[str, dict[str, Any]], name: str, reference: str) -> str:
    """Median of `name` divided by the median of `reference`. Empty if one of them was not measured."""
    if name not in timings or reference not in timings:
        return ""
    return f"{timings[name]['median'] / timings[reference]['median']:.2f}"


def _case_table(case: dict[str, Any]) -> Iterator[str]:
    timings = timings_by_name(case)
    yield from table_head(
        f"{describe_shape(case)}, {case['dtype']}", "time", "spread", "÷ three matmuls", "÷ unfused baseline",
        "temporary memory", "compile time", text_columns=1,
    )  # fmt: skip
    for name, timing in timings.items():
        yield table_row(
            name,
            format_duration(timing["median"]),
            format_spread(timing),
            ratio_cell(timings, name, MATMULS),
            ratio_cell(timings, name, UNFUSED),
            "" if timing["temporary_bytes"] is None else format_bytes(timing["temporary_bytes"]),
            "" if timing["compile_seconds"] is None else f"{timing['compile_seconds']:.2f} s",
        )


def _describe_peaks(results: dict[str, Any]) -> str:
    peaks = results["peak_resident_bytes"]
    base = peaks[ARGUMENTS]
    return "; ".join(
        f"{name} {format_bytes(peak)} ({format_bytes(max(peak - base, 0))})" for name, peak in peaks.items()
    )


def draw(results: dict[str, Any]) -> bytes:
    """The figure of `--part growth`: time and temporary memory by samples and by classes, on log axes."""
    cases = results["cases"]
    # Most problems share the fixed number of classes (samples).
    classes, samples = (max({c[k] for c in cases}, key=lambda n, k=k: sum(c[k] == n for c in cases))
                        for k in ("classes", "samples"))  # fmt: skip
    growing = {
        "samples": [c for c in cases if c["classes"] == classes],
        "classes": [c for c in cases if c["samples"] == samples],
    }
    fixed = {"samples": f"{classes:,} classes", "classes": f"{samples:,} samples"}
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        grid = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (size, column_cases) in enumerate(growing.items()):
            column_cases = sorted(column_cases, key=lambda c: c[size])
            _draw_panel(grid[0][column], column_cases, size, "median", 1)
            _draw_panel(grid[1][column], column_cases, size, "temporary_bytes", 1e-6)
            grid[0][column].set_title(f"{fixed[size]}, {cases[0]['features']} features, {cases[0]['dtype']}")
            grid[1][column].set_xlabel(f"{size} (1k = 1,024)")
        grid[0][0].set_ylabel("time of loss and gradients (s)")
        grid[1][0].set_ylabel("temporary memory (MB)")
        grid[0][0].legend()
        machine = describe_machine(results).replace("; ", "\n", 1)
        figure.supxlabel(machine, fontsize=7.5, color="#444444")
        return png(figure)


def _draw_panel(axes: Axes, cases: list[dict[str, Any]], size: str, quantity: str, unit: float) -> None:
    for name, marker in _MARKERS.items():
        points = [(c[size], timings_by_name(c)[name][quantity] * unit) for c in cases]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.3, **marker)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([c[size] for c in cases])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
