"""The results of `mesh_cost.py` as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.core_report import heading as table_heading
from benchmarks.core_report import line as table_line

_COLUMNS = {
    "gradients_summed": "gradients summed",
    "statistics_summed": "statistics summed",
    "arrays_held": "arrays held",
    "temporaries": "temporaries",
    "temporaries_of_the_plain_way": "of the plain way",
}


def caption(settings: Mapping[str, Any]) -> str:
    return f"{settings['samples']:,} samples of {settings['features']} features, float32; per device and step:\n"


def heading() -> Iterator[str]:
    return table_heading("classes", "devices", "data × classes", *_COLUMNS.values(), words=0)


def line(row: Mapping[str, Any]) -> str:
    shares = " × ".join(map(str, row["shares"]))
    return table_line(f"{row['classes']:,}", str(row["devices"]), shares, *(_size(row[key]) for key in _COLUMNS))


def table(results: Mapping[str, Any]) -> str:
    return "\n".join([caption(results["settings"]), *heading(), *map(line, results["rows"])])


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
