"""Where a measurement was made: what it cannot be compared without."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


def _load() -> float | None:
    """How many processes have been at work, on average over the last minute; not every system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


_LOAD = _load()  # when the program began, before it loads the machine itself


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """The device, the computer, its load, the day, the versions of Python and of `packages`, None if not installed."""
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "load": _LOAD,
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    # `platform.processor()` is empty or the architecture on Linux.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
