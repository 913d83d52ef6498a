"""The results of `mesh_cost.py` as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.core_report import heading as table_heading
from benchmarks.core_report import line as table_line

_COLUMNS = {  # bytes
    "gradients_summed": "gradients summed",
    "statistics_summed": "statistics summed",
    "arrays_held": "arrays held",
    "temporaries": "temporaries",
    "temporaries_of_the_plain_way": "of the plain way",
}


def caption(settings: Mapping[str, Any]) -> str:
    dtype = "bfloat16" if settings.get("topology") else "float32"
    return f"{settings['samples']:,} samples of {settings['features']} features, {dtype}; per device and step:\n"


def heading() -> Iterator[str]:
    return table_heading("classes", "devices", "data × classes", "blocks", *_COLUMNS.values(), "products", words=0)


def line(row: Mapping[str, Any]) -> str:
    shares = " × ".join(map(str, row["shares"]))
    bytes_, products = (_size(row[key]) for key in _COLUMNS), f"{row['products']:.2f}"
    return table_line(f"{row['classes']:,}", str(row["devices"]), shares, str(row["blocks"]), *bytes_, products)


def table(results: Mapping[str, Any]) -> str:
    return "\n".join([caption(results["settings"]), *heading(), *map(line, results["rows"])])


def _size(number: float | None) -> str:
    if number is None:
        return "does not fit"
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
