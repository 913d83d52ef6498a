"""The annotations are live in the test run: a shape that does not fit its name is refused."""

import jax.numpy as jnp
import jaxtyping
import pytest

from softjax._rows.reduction import reduce


def test_shapes_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        reduce(jnp.zeros(3), jnp.zeros(4), "mean")
