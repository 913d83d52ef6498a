"""Tables of `benchmark.py --part core`, for the terminal and for results/README.md; and how all tables write values."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

PASS = ("read and write", "pass")
QUANTITIES = ("value", "value and gradient", "eager value", "eager gradient")
_CAPTION = (
    "Median time per call ± half the interquartile range. ÷: softjax's time divided by the other's. "
    "Memory: temporary memory of the compiled call."
)


class Case:
    """One problem of a results file, with its timings by library and quantity."""

    def __init__(self, case: dict[str, Any]):
        self.shape = f"{case['rows']} × {case['classes']}"
        self.classes = case["classes"]
        self.dtype = case["dtype"]
        self._timings = {(t["library"], t["quantity"]): t for t in case["timings"]}
        self._ratios = {(r["library"], r["quantity"]): r for r in case["softjax_ratios"]}

    def timing(self, library: str, quantity: str) -> dict[str, Any] | None:
        return self._timings.get((library, quantity))

    def milliseconds(self, library: str, quantity: str) -> str:
        timing = self.timing(library, quantity)
        return format_three_digits(1e3 * timing["median"]) if timing else ""

    def spread(self, library: str, quantity: str) -> str:
        """Half the interquartile range, relative to the median."""
        timing = self.timing(library, quantity)
        return format_spread(timing) if timing else ""

    def ratio(self, library: str, quantity: str) -> float:
        """softjax's time divided by the library's."""
        return self._ratios[library, quantity]["median_ratio"]

    def ratio_cell(self, library: str, quantity: str) -> str:
        return f"{self.ratio(library, quantity):.2f}" if (library, quantity) in self._ratios else ""

    def temporary_memory(self, library: str, quantity: str) -> str:
        timing = self.timing(library, quantity)
        size = timing["temporary_bytes"] if timing else None
        return "" if size is None else format_bytes(size)

    @property
    def pass_milliseconds(self) -> str:
        """Time of one read and write of the logits."""
        return self.milliseconds(*PASS)


def format_bytes(size: int) -> str:
    power, unit = next(((p, u) for p, u in ((9, "GB"), (6, "MB"), (3, "kB")) if size >= 10**p), (0, "B"))
    return f"{size / 10**power:.0f} {unit}"


def format_duration(seconds: float) -> str:
    return f"{format_three_digits(seconds)} s" if seconds >= 0.1 else f"{format_three_digits(1e3 * seconds)} ms"


def format_three_digits(value: float) -> str:
    """Three significant digits, or all digits before the point. Never an exponent."""
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(float(f"{value:.3g}")))
    return f"{value:.{max(0, decimals)}f}"


def format_spread(timing: dict[str, Any]) -> str:
    """Half the interquartile range, relative to the median."""
    low, high = timing["quartiles"]
    return f"±{(high - low) / timing['median'] / 2:.0%}"


def terminal_table(results: dict[str, Any]) -> Table:
    """All timings, in at most 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, caption=_CAPTION, caption_justify="left")
    table.add_column("", no_wrap=True)
    times, memory = (f"{name}\nms" for name in ("softjax", "optax", "torch")), ("softjax\nmemory", "optax\nmemory")
    for name in (*times, "÷ optax", "÷ torch", *memory):
        table.add_column(name, justify="right", no_wrap=True)
    for case in map(Case, results["cases"]):
        table.add_row(case.shape, case.dtype, style="bold")
        table.add_row(PASS[0], _time_with_spread(case, *PASS))
        for quantity in QUANTITIES:
            times = (_time_with_spread(case, library, quantity) for library in ("softjax", "optax", "torch"))
            ratios = (case.ratio_cell(library, quantity) for library in ("optax", "torch"))
            memory = (case.temporary_memory(library, quantity) for library in ("softjax", "optax"))
            table.add_row(quantity.replace(" and", ","), *times, *ratios, *memory)
        table.add_section()
    return table


def _time_with_spread(case: Case, library: str, quantity: str) -> str:
    return case.milliseconds(library, quantity) + case.spread(library, quantity)


def markdown(results: dict[str, Any]) -> str:
    """Caption and tables of results/README.md: compiled calls, then eager calls."""
    cases = [Case(case) for case in results["cases"]]
    caption = f"{describe_run(results)}\n\n÷: softjax's time divided by the other's. Below 1, softjax is faster."
    return "\n".join([caption, "", *_compiled_table(cases), "", "Without `jax.jit`:", "", *_eager_table(cases)])


def describe_run(results: dict[str, Any]) -> str:
    """One sentence on the method, and one on the machine."""
    return f"Median of {results['settings']['rounds']} interleaved rounds. Machine: {describe_machine(results)}."


def describe_machine(results: dict[str, Any]) -> str:
    """Device, cores, load, versions and date of a results file."""
    machine = results["machine"]
    device = machine["device"] if machine["platform"] != "cpu" else machine["processor"] or "CPU"
    load = f"load {machine['load']:g} at the start" if machine.get("load") is not None else "load not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return f"{device}, {machine['cpu_count']} CPU cores, {load}; {versions}; {machine['date']}"


def _compiled_table(cases: Sequence[Case]) -> Iterator[str]:
    quantities = QUANTITIES[:2]
    yield from table_head(
        "rows × classes", "dtype", "value, ms", "÷ optax", "÷ torch", "value and gradient, ms", "÷ optax", "÷ torch",
        "one read and write, ms", "temporary memory, softjax", "temporary memory, optax", text_columns=2,
    )  # fmt: skip
    for case in cases:
        yield table_row(
            case.shape,
            case.dtype,
            *(cell for quantity in quantities for cell in _time_and_ratios(case, quantity, ("optax", "torch"))),
            case.pass_milliseconds,
            *(case.temporary_memory(library, quantities[1]) for library in ("softjax", "optax")),
        )


def _eager_table(cases: Sequence[Case]) -> Iterator[str]:
    yield from table_head("rows × classes", "dtype", "value, ms", "÷ optax", "gradient, ms", "÷ optax", text_columns=2)
    for case in cases:
        cells = (cell for quantity in QUANTITIES[2:] for cell in _time_and_ratios(case, quantity, ("optax",)))
        yield table_row(case.shape, case.dtype, *cells)


def _time_and_ratios(case: Case, quantity: str, libraries: Sequence[str]) -> Iterator[str]:
    yield case.milliseconds("softjax", quantity)
    for library in libraries:
        yield case.ratio_cell(library, quantity)


def table_head(*names: str, text_columns: int) -> Iterator[str]:
    """The first two lines of a Markdown table. The first `text_columns` align left, the others right."""
    yield table_row(*names)
    yield table_row(*("---" if i < text_columns else "---:" for i in range(len(names))))


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
