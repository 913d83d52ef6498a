"""Everything runs under JAX's strict promotion rules; warnings are errors (pyproject.toml)."""

import jax
import pytest

from softjax import _placement

# These need eight devices; test_mesh.py runs them in processes that simulate as many.
collect_ignore = [] if jax.device_count() >= 8 else ["on_mesh"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["one CPU", "elsewhere"])
def route(request, monkeypatch):
    """The two ways that rows are summed and labels picked: on one CPU device, and wherever else."""
    here = request.param == "one CPU"
    monkeypatch.setattr(_placement, "on_one_cpu", lambda x: here)
    # What JAX has traced for one route must not serve the other. A setting that nothing here depends on (there is no
    # matrix product) tells its caches apart, and so leaves each route what it has compiled.
    with jax.default_matmul_precision("default" if here else "highest"):
        yield request.param


@pytest.fixture
def x64():
    """64-bit types, for one test."""
    with jax.enable_x64(True):
        yield
