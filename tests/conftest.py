"""Everything runs under JAX's strict promotion rules; warnings are errors (pyproject.toml)."""

import jax
import pytest

from softjax import _placement

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["one CPU", "elsewhere"])
def route(request, monkeypatch):
    """The two ways that rows are summed and labels picked: on one CPU device, and wherever else."""
    monkeypatch.setattr(_placement, "on_one_cpu", lambda: request.param == "one CPU")
    jax.clear_caches()
    yield request.param
    monkeypatch.undo()
    jax.clear_caches()


@pytest.fixture
def x64():
    """64-bit types, for one test."""
    with jax.enable_x64(True):
        yield
