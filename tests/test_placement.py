"""Sharded logits, in a process of its own with eight simulated devices: under Explicit axes, Auto axes and by hand."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from softjax import _placement

CASES = Path(__file__).with_name("sharded.py")


def test_on_one_cpu_here():
    assert _placement.on_one_cpu() == (jax.default_backend() == "cpu" and jax.device_count() == 1)


def test_class_ids():
    assert (_placement.class_ids(jnp.zeros((2, 3)), -1) == jnp.array([[0, 1, 2]] * 2)).all()
    assert (_placement.class_ids(jnp.zeros((2, 3)), -2) == jnp.array([[0] * 3, [1] * 3])).all()


@pytest.mark.parametrize("mesh", ["2x4", "1x8", "8x1"])
def test_sharded(mesh):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, str(CASES), mesh], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
