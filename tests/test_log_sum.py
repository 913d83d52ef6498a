"""The pair (peak, mass), taken of all rows at once or of a few rows at a time."""

import cases
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest

from softjax import _placement
from softjax._log_sum import _of_blocks, log_sum

INF = jnp.inf


@pytest.mark.parametrize(
    ("row", "peak", "mass", "log"),
    [
        ([0.0, 0.0], 0, 2, np.log(2)),
        ([1e4, 1e4], 1e4, 2, 1e4 + np.log(2)),
        ([-INF, 3.0], 3, 1, 3),
        ([-INF, -INF], -INF, 0, -INF),
        ([INF, 3.0], INF, 1, INF),
        ([INF, INF], INF, 1, INF),
    ],
)
def test_edges(row, peak, mass, log):
    pair = log_sum(jnp.array([row]), None, -1, (), False)
    np.testing.assert_array_equal(np.asarray([*pair]).ravel(), [peak, mass])
    np.testing.assert_allclose(pair.log[0, 0], log, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 5, 7, 11])
def test_blocks_of_any_size(rows, dtype):
    x = cases.logits(129, 3.0, dtype=dtype).at[3, 5].set(-jnp.inf).at[4].set(jnp.nan)
    expected = log_sum(x, None, -1, (), False)
    for a, b in zip(_of_blocks(x, rows), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_blocks_of_a_batch_with_several_axes():
    x = cases.logits(129, samples=12).reshape(3, 4, 129)
    np.testing.assert_allclose(_of_blocks(x, 5).log, jax.nn.logsumexp(x, -1, keepdims=True), rtol=1e-6)


def _large(function, x):
    """The type and number of the arrays as large as x that the compiled function makes for itself."""
    return jax.jit(function).lower(x).compile().memory_analysis().temp_size_in_bytes / x.size


@pytest.mark.parametrize(("dtype", "most"), [(jnp.float32, 0.2), (jnp.float16, 0.2), (jnp.bfloat16, 2.2)])
def test_temporary_memory_on_one_cpu(dtype, most, monkeypatch):
    # float16 would be copied to float32 as a whole, 4 bytes a logit; bfloat16 has its bits copied, 2 bytes.
    monkeypatch.setattr(_placement, "on_one_cpu", lambda x: True)
    x = jax.ShapeDtypeStruct((1024, 131072), dtype)
    assert _large(lambda x: log_sum(x, None, -1, (), False).log, x) < most


@pytest.mark.parametrize("kept", [False, True])
def test_the_derivative_goes_through_no_loop(kept, route):
    x = jnp.zeros((512, 2048), jnp.bfloat16)

    def f(x):
        return log_sum(x, None, -1, (), kept).log.sum()

    tangent = jax.make_jaxpr(lambda x: jax.jvp(f, (x,), (x,))[1])(x)
    loops = [e for e in jaxprs.equations(tangent) if any(v.aval.size >= x.size * 2 for v in e.outvars)]
    assert not loops
    ones = jnp.full(x.shape, 1 / 2048)
    np.testing.assert_allclose(jax.grad(f)(x).astype(jnp.float32), ones, rtol=1e-2)
    np.testing.assert_allclose(jax.jvp(f, (x,), (jnp.ones_like(x),))[1], 512, rtol=1e-4)
