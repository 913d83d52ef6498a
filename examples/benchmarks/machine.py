"""Describes the machine of a measurement. Times from different machines are not comparable."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


def _read_load() -> float | None:
    """Mean number of running processes in the last minute. None if the system does not report it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


_INITIAL_LOAD = _read_load()  # read at import, before the program itself adds load


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """Device, processor, load, date, and the versions of Python and of `packages` (None if not installed)."""
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "load": _INITIAL_LOAD,
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
    # On Linux, `platform.processor()` is empty or names only the architecture.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
