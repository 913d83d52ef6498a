"""What a function closes over becomes an argument of its own."""

import jax
import jax.numpy as jnp

from softjax._hoist import hoist

X = jax.ShapeDtypeStruct((), jnp.float32)


def test_closed_over_arrays_become_arguments():
    t = jnp.arange(3.0)
    function, closed_over = hoist(lambda x, y: {"a": x * t.sum(), "b": y}, X, X)
    assert len(closed_over) == 1
    assert function(closed_over, 2.0, 5.0) == {"a": 6.0, "b": 5.0}
    assert function((2 * t,), 2.0, 5.0)["a"] == 12
    hash(function)


def test_tracers_too():
    def f(t):
        function, closed_over = hoist(lambda x: x * t, X)
        return function(closed_over, 3.0)

    assert jax.jit(jax.grad(f))(2.0) == 3
    assert list(jax.vmap(f)(jnp.arange(2.0))) == [0, 3]
