"""Run by test_placement.py with eight devices: `python sharded.py 2x4`, samples by classes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 64)) * 3, jnp.float32)
Y = jnp.asarray(RNG.integers(0, 64, 16), jnp.int32)
SOFT = jnp.asarray(RNG.dirichlet(np.ones(64), 16), jnp.float32)
WHERE = jnp.arange(64) < 60
W = jnp.asarray(RNG.uniform(size=16), jnp.float32).at[::4].set(0)
OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"weights": W}, {"where": WHERE}]


def functions():
    for labels in (Y, SOFT):
        for options in OPTIONS:
            yield lambda x, y, o=options: softjax.cross_entropy(x, y, **o), labels
    yield lambda x, y: (softjax.softmax(x) ** 2).sum() + (softjax.log_softmax(x) ** 2).mean(), Y
    yield lambda x, y: sum(s.sum() for s in softjax.statistics(x, y)), Y


def tangent(f):
    return lambda x, y: jax.jvp(lambda x: f(x, y), (x,), (x,))[1]


def main(shape):
    expected = [(jax.value_and_grad(f)(X, y), tangent(f)(X, y)) for f, y in functions()]
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh(shape, ("data", "classes"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            x = jax.device_put(X, NamedSharding(mesh, P("data", "classes")))
            for (f, y), ((value, gradient), moved) in zip(functions(), expected, strict=True):
                spec = P("data", "classes") if y.ndim == 2 else P("data")
                y = jax.device_put(y, NamedSharding(mesh, spec))
                for wrap in (jax.jit, lambda g: g):
                    ours, dx = wrap(jax.value_and_grad(f))(x, y)
                    np.testing.assert_allclose(ours, value, rtol=1e-5)
                    np.testing.assert_allclose(dx, gradient, atol=1e-6)
                    assert dx.sharding.spec == x.sharding.spec
                np.testing.assert_allclose(jax.jit(tangent(f))(x, y), moved, rtol=1e-4, atol=1e-5)
            hlo = jax.jit(jax.value_and_grad(softjax.cross_entropy)).lower(x, jnp.asarray(Y)).compile().as_text()
            assert "all-gather" not in hlo
            assert "all-to-all" not in hlo


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(tuple(int(n) for n in sys.argv[1].split("x")))
