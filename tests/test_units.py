"""nats, bits, hartleys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._units import from_nats


@pytest.mark.parametrize(("base", "expected"), [(math.e, 3.0), (2.0, 3 / math.log(2)), (10.0, 3 / math.log(10))])
def test_divides_by_ln_b(base, expected):
    np.testing.assert_allclose(from_nats(jnp.float32(3), base), expected, rtol=1e-7)
    np.testing.assert_allclose(jax.grad(lambda x: from_nats(x, base))(jnp.float32(3)), expected / 3, rtol=1e-7)


def test_nats_are_left_alone():
    assert "div" not in str(jax.make_jaxpr(lambda x: from_nats(x, math.e))(jnp.float32(3)))
