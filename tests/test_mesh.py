"""Runs the tests of sharded calls, in the folder `on_mesh`, in a subprocess with eight simulated devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from softjax._mesh import axes

FOLDER = Path(__file__).with_name("on_mesh")


@pytest.mark.parametrize("sizes", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_eight_devices(sizes):
    """All tests run in one subprocess, which reads conftest.py and so compiles as this process does."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", sizes, str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-1000:]


def test_without_axis_names_nothing_is_summed_over_devices():
    x = jnp.arange(3.0)
    classes = axes.ClassAxis(-1)
    assert axes.psum(x, ()) is x
    assert classes.psum_cotangents((x, None))[0] is x
    assert classes.num_classes(x) == 3
    assert classes.first_id(x) is None
    jaxpr = str(jax.make_jaxpr(lambda x: (classes.max(x), classes.sum_keepdims(x), classes.any(x > 1)))(x))
    assert "pmax" not in jaxpr
    assert "psum" not in jaxpr
