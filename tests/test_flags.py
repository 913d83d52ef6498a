"""Results stay the same under flags of JAX that turn on new rules of differentiation."""

import os
import subprocess
import sys

import flag_calls
import jax
import numpy as np
import pytest

# The same laws hold without the flags, quickly.
pytestmark = pytest.mark.slow
FLAGS = ["JAX_CUSTOM_VJP3", "JAX_CUSTOM_JVP3"]  # a JAX that does not know one of them ignores it


@pytest.fixture(scope="module")
def under_flags(tmp_path_factory):
    """A function that gives the results of a process with the flags. The process runs beside this one."""
    file = tmp_path_factory.mktemp("flags") / "results.npz"
    environment = dict(os.environ, **dict.fromkeys(FLAGS, "1"))
    command = [sys.executable, flag_calls.__file__, str(file), *flag_calls.QUICK]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def results():
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr[-3000:]
        return dict(np.load(file))

    yield results
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def without_flags(under_flags):
    return flag_calls.all_results(flag_calls.QUICK)


def test_custom_derivatives(without_flags, under_flags):
    results = under_flags()
    assert results.keys() == without_flags.keys()
    assert_close(results, without_flags)


def test_custom_derivatives_of_the_other_calls(tmp_path):
    others = [name for name in flag_calls.CALLS if name not in flag_calls.QUICK]
    file, environment = tmp_path / "results.npz", dict(os.environ, **dict.fromkeys(FLAGS, "1"))
    subprocess.run([sys.executable, flag_calls.__file__, str(file), *others], env=environment, check=True, timeout=300)
    results, expected = dict(np.load(file)), flag_calls.all_results(others)
    assert results.keys() == expected.keys()
    assert_close(results, expected)


def assert_close(actual, expected):
    for key, result in actual.items():
        np.testing.assert_allclose(result, expected[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.fixture
def remat3(without_flags):
    if not hasattr(jax.config, "jax_remat3"):
        pytest.skip("this JAX has no such flag")
    before = jax.config.jax_remat3
    jax.config.update("jax_remat3", True)
    yield
    jax.config.update("jax_remat3", before)


@pytest.mark.parametrize("name", ["cross_entropy", "linear_loss"])
def test_checkpoint(name, without_flags, remat3):
    assert_close(flag_calls.results(name, flag_calls.forward), without_flags)
    if _jax_transposes_a_checkpoint():
        assert_close(flag_calls.results(name, flag_calls.derivatives), without_flags)
    else:  # a bug in JAX: under this flag, a checkpoint around a linear map has no transpose
        with pytest.raises(NotImplementedError, match="transpose"):
            flag_calls.results(name, flag_calls.derivatives)


def _jax_transposes_a_checkpoint():
    try:
        jax.linear_transpose(jax.checkpoint(lambda x: 2 * x), 1.0)(1.0)
    except NotImplementedError:
        return False
    return True
