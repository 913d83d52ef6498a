"""The results of `benchmark.py` as a table of the terminal and as the tables of results/README.md."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

PASS = ("read and write", "pass")
QUANTITIES = ("value", "value and gradient", "eager value", "eager gradient")
_CAPTION = (
    "Median of a call in ms ± half the distance of its quartiles; softjax's as a share of the others'; temporary "
    "memory of the compiled call, softjax's and optax's."
)


class Case:
    """One problem of a results file, its timings by library and quantity."""

    def __init__(self, case: dict[str, Any]):
        self.shape = f"{case['rows']} × {case['classes']}"
        self.classes = case["classes"]
        self.dtype = case["dtype"]
        self._timings = {(t["library"], t["quantity"]): t for t in case["timings"]}
        self._ratios = {(r["to"], r["quantity"]): r for r in case["softjax_ratios"]}

    def timing(self, library: str, quantity: str) -> dict[str, Any] | None:
        return self._timings.get((library, quantity))

    def milliseconds(self, library: str, quantity: str) -> str:
        found = self.timing(library, quantity)
        return significant(1e3 * found["median"]) if found else ""

    def spread(self, library: str, quantity: str) -> str:
        """Half the distance of the quartiles, as a share of the median."""
        found = self.timing(library, quantity)
        return f"±{(found['quartiles'][1] - found['quartiles'][0]) / found['median'] / 2:.0%}" if found else ""

    def ratio(self, library: str, quantity: str) -> str:
        return f"{self.share(library, quantity):.2f}" if (library, quantity) in self._ratios else ""

    def share(self, library: str, quantity: str) -> float:
        return self._ratios[library, quantity]["of_medians"]

    def temporary(self, library: str, quantity: str) -> str:
        found = self.timing(library, quantity)
        number = found["temporary_bytes"] if found else None
        return "" if number is None else size(number)

    @property
    def one_pass(self) -> str:
        return self.milliseconds(*PASS)


def size(number: int) -> str:
    power, unit = next(((p, u) for p, u in ((9, "GB"), (6, "MB"), (3, "kB")) if number >= 10**p), (0, "B"))
    return f"{number / 10**power:.0f} {unit}"


def duration(seconds: float) -> str:
    return f"{significant(seconds)} s" if seconds >= 0.1 else f"{significant(1e3 * seconds)} ms"


def significant(number: float) -> str:
    """Three digits or the whole number, and no exponent."""
    if number == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(float(f"{number:.3g}")))
    return f"{number:.{max(0, decimals)}f}"


def table(results: dict[str, Any]) -> Table:
    """It fits a terminal of 80 columns."""
    built = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, caption=_CAPTION, caption_justify="left")
    built.add_column("", no_wrap=True)
    for name in ("softjax", "optax", "torch", "÷ optax", "÷ torch", "memory", "optax's"):
        built.add_column(name, justify="right", no_wrap=True)
    for case in map(Case, results["cases"]):
        built.add_row(case.shape, case.dtype, style="bold")
        built.add_row(PASS[0], _with_spread(case, *PASS))
        for quantity in QUANTITIES:
            times = (_with_spread(case, library, quantity) for library in ("softjax", "optax", "torch"))
            ratios = (case.ratio(library, quantity) for library in ("optax", "torch"))
            sizes = (case.temporary(library, quantity) for library in ("softjax", "optax"))
            built.add_row(quantity.replace(" and", ","), *times, *ratios, *sizes)
        built.add_section()
    return built


def _with_spread(case: Case, library: str, quantity: str) -> str:
    return case.milliseconds(library, quantity) + case.spread(library, quantity)


def markdown(results: dict[str, Any]) -> str:
    """The tables of results/README.md: compiled, then eager."""
    cases = [Case(case) for case in results["cases"]]
    return "\n".join([_caption(results), "", *_compiled(cases), "", "Without `jax.jit`:", "", *_eager(cases)])


def _caption(results: dict[str, Any]) -> str:
    return (
        f"Medians of {results['settings']['rounds']} interleaved rounds in ms, and softjax's time as a share of "
        f"the others' (below 1: softjax is faster). {where(results)}."
    )


def where(results: dict[str, Any]) -> str:
    machine = results["machine"]
    device = machine["device"] if machine["platform"] != "cpu" else machine["processor"] or "CPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    load = f"; load {machine['load']:g} when it began" if machine.get("load") is not None else ""
    return f"{device}, {machine['cpu_count']} CPU cores{load}; {versions}; {machine['date']}"


def _compiled(cases: Sequence[Case]) -> Iterator[str]:
    quantities = QUANTITIES[:2]
    yield from heading(
        "rows × classes", "dtype", "value", "÷ optax", "÷ torch", "value and gradient", "÷ optax", "÷ torch",
        "one read and write", "temporary memory", "optax's", words=2,
    )  # fmt: skip
    for case in cases:
        yield line(
            case.shape,
            case.dtype,
            *(cell for quantity in quantities for cell in _against(case, quantity, ("optax", "torch"))),
            case.one_pass,
            *(case.temporary(library, quantities[1]) for library in ("softjax", "optax")),
        )


def _eager(cases: Sequence[Case]) -> Iterator[str]:
    yield from heading("rows × classes", "dtype", "value", "÷ optax", "gradient", "÷ optax", words=2)
    for case in cases:
        yield line(case.shape, case.dtype, *(cell for q in QUANTITIES[2:] for cell in _against(case, q, ("optax",))))


def _against(case: Case, quantity: str, others: Sequence[str]) -> Iterator[str]:
    yield case.milliseconds("softjax", quantity)
    for library in others:
        yield case.ratio(library, quantity)


def heading(*names: str, words: int) -> Iterator[str]:
    """The first rows of a table whose first columns hold words and whose others hold numbers."""
    yield line(*names)
    yield line(*("---" if i < words else "---:" for i in range(len(names))))


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
