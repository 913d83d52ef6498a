"""Everything split over a mesh: the tests of `on_mesh`, in processes of their own with eight simulated devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from softjax import _mesh

FILES = sorted(Path(__file__).with_name("on_mesh").glob("test_*.py"))


def eight_devices(file):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    if "cost" not in file.stem:  # what is computed, not how: a quarter less time
        flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_eight_devices(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    done = subprocess.run(command, env=eight_devices(file), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


def test_without_axes_nothing_is_summed():
    x = jnp.arange(3.0)
    assert _mesh.total(x, ()) is x
    assert _mesh.whole((x, None), ())[0] is x
    assert _mesh.size(()) == 1
    assert _mesh.first((), 5) == 0
    jaxpr = jax.make_jaxpr(lambda x: _mesh.most(x, ()))(x)
    assert "pmax" not in str(jaxpr)
