"""JAX's coming rules of differentiation, today behind flags, change no number."""

import os
import subprocess
import sys

import flag_calls
import jax
import numpy as np
import pytest

FLAGS = ["JAX_CUSTOM_VJP3", "JAX_CUSTOM_JVP3"]  # a JAX that does not know one of them ignores it


@pytest.fixture(scope="module")
def under_flags(tmp_path_factory):
    """The numbers from a process that has the flags. It runs at the same time as this one."""
    file = tmp_path_factory.mktemp("flags") / "numbers.npz"
    environment = dict(os.environ, **dict.fromkeys(FLAGS, "1"))
    command = [sys.executable, flag_calls.__file__, str(file), *flag_calls.QUICK]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def numbers():
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
        return dict(np.load(file))

    yield numbers
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def plain(under_flags):
    return flag_calls.every_number(flag_calls.QUICK)


def test_custom_derivatives(plain, under_flags):
    numbers = under_flags()
    assert numbers.keys() == plain.keys()
    same(numbers, plain)


@pytest.mark.slow
def test_custom_derivatives_of_the_other_calls(tmp_path):
    others = [name for name in flag_calls.CALLS if name not in flag_calls.QUICK]
    file, environment = tmp_path / "numbers.npz", dict(os.environ, **dict.fromkeys(FLAGS, "1"))
    subprocess.run([sys.executable, flag_calls.__file__, str(file), *others], env=environment, check=True, timeout=300)
    numbers, expected = dict(np.load(file)), flag_calls.every_number(others)
    assert numbers.keys() == expected.keys()
    same(numbers, expected)


def same(numbers, plain):
    for key, number in numbers.items():
        np.testing.assert_allclose(number, plain[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.fixture
def remat3(plain):
    if not hasattr(jax.config, "jax_remat3"):
        pytest.skip("this JAX has no such flag")
    before = jax.config.jax_remat3
    jax.config.update("jax_remat3", True)
    yield
    jax.config.update("jax_remat3", before)


@pytest.mark.parametrize("name", ["cross_entropy", "linear_loss"])
def test_checkpoint(name, plain, remat3):
    same(flag_calls.numbers(name, flag_calls.forward), plain)
    if _transposed_by_jax():
        same(flag_calls.numbers(name, flag_calls.derivatives), plain)
    else:  # a fault of JAX: under this flag, a checkpoint around a linear map has no transpose
        with pytest.raises(NotImplementedError, match="transpose"):
            flag_calls.numbers(name, flag_calls.derivatives)


def _transposed_by_jax():
    try:
        jax.linear_transpose(jax.checkpoint(lambda x: 2 * x), 1.0)(1.0)
    except NotImplementedError:
        return False
    return True
