"""`hoist_closure`: a row loss becomes a static function, and the arrays that it closes over become arguments."""

import jax
import jax.numpy as jnp

from softjax._linear import row_losses

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def test_closed_over_arrays_become_arguments():
    t = jnp.arange(3.0)
    function, closed_over = row_losses.hoist_closure(lambda x, y: {"a": x * t.sum(), "b": y}, SCALAR, SCALAR)
    assert len(closed_over) == 1
    assert function(closed_over, 2.0, 5.0) == {"a": 6.0, "b": 5.0}
    assert function((2 * t,), 2.0, 5.0)["a"] == 12
    hash(function)


def test_closed_over_tracers_become_arguments():
    def f(t):
        function, closed_over = row_losses.hoist_closure(lambda x: x * t, SCALAR)
        return function(closed_over, 3.0)

    assert jax.jit(jax.grad(f))(2.0) == 3
    assert list(jax.vmap(f)(jnp.arange(2.0))) == [0, 3]
