"""Compares sharded calls without axis names with one device: `python sharded.py 2x4` on eight devices.

The mesh has two axes, samples by classes. test_placement.py runs this file.
"""

import sys

import as_users
import cases
import jax
import jax.numpy as jnp
import numpy as np
from closeness import near
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 64)) * 3, jnp.float32)
Y = jnp.asarray(RNG.integers(0, 64, 16), jnp.int32)
SOFT = jnp.asarray(RNG.dirichlet(np.ones(64), 16), jnp.float32)
WHERE = jnp.arange(64) < 60
W = jnp.asarray(RNG.uniform(size=16), jnp.float32).at[::4].set(0)
OPTIONS = [{"label_smoothing": 0.1, "z_loss": 0.01}, {"weights": W, "where": WHERE}]


def functions():
    for labels in (Y, SOFT):
        for options in OPTIONS:
            yield lambda x, y, o=options: softjax.cross_entropy(x, y, **o), labels
    yield lambda x, y: (softjax.softmax(x) ** 2).sum() + (softjax.log_softmax(x) ** 2).mean(), Y
    yield lambda x, y: sum(s.sum() for s in cases.floating(softjax.statistics(x, y)).values()), Y


def directional_derivative(f):
    return lambda x, y: jax.jvp(lambda x: f(x, y), (x,), (x,))[1]


def with_derivatives(functions):
    """The value and the gradient of each function, and its JVP with the logits as tangent, in one program."""

    def results(x, labels):
        return [
            (*jax.value_and_grad(f)(x, y), directional_derivative(f)(x, y))
            for f, y in zip(functions, labels, strict=True)
        ]

    return jax.jit(results)


def main(shape):
    called, labels = zip(*functions(), strict=True)
    expected = with_derivatives(called)(X, labels)
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh(shape, ("data", "classes"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            x = jax.device_put(X, NamedSharding(mesh, P("data", "classes")))
            specs = [P("data", "classes") if y.ndim == 2 else P("data") for y in labels]
            placed = [jax.device_put(y, NamedSharding(mesh, spec)) for y, spec in zip(labels, specs, strict=True)]
            jitted = with_derivatives(called)(x, placed)
            close(jitted, expected)
            eager = [jax.value_and_grad(f)(x, y) for f, y in zip(called, placed, strict=True)]
            close(eager, [(value, gradient) for value, gradient, _ in expected])
            for _, dx, *_ in (*jitted, *eager):
                assert dx.sharding.spec == x.sharding.spec
            lowered = jax.jit(jax.value_and_grad(softjax.cross_entropy)).lower(x, jnp.asarray(Y))
            hlo = lowered.compile(compiler_options=as_users.OPTIONS).as_text()
            assert "all-gather" not in hlo
            assert "all-to-all" not in hlo


def linear(shape):
    """A linear layer with sharded samples and classes, and a data-parallel one inside of `shard_map`."""
    h, k = X[:, :8], X[:8, :].T[:40].T
    y = Y % 40

    def loss(h, k, y, w):
        mean = softjax.linear_cross_entropy(h, k, y, weights=w, block_size=4)
        rows = softjax.linear_loss(lambda s, w: w * s.entropy, h, k, y, w, weights=w, block_size=4)
        return mean + rows + softjax.linear_cross_entropy(h, k, y, weights=w, block_size=4, reduction="none").sum()

    expected = jax.value_and_grad(loss, (0, 1))(h, k, y, W)
    auto = jax.make_mesh(shape, ("data", "classes"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(auto):
        specs = (P("data"), P(None, "classes"), P("data"), P("data"))
        args = [jax.device_put(a, NamedSharding(auto, s)) for a, s in zip((h, k, y, W), specs, strict=True)]
        close(jax.jit(jax.value_and_grad(loss, (0, 1)))(*args), expected)

    def total(h, k, y, w):
        return softjax.linear_cross_entropy(h, k, y, weights=w, block_size=2, reduction="sum")

    def on_each_device(h, k, y, w):
        value, gradient = jax.value_and_grad(lambda k: jax.lax.psum(total(h, k, y, w), "data"))(k)
        return value, gradient

    mapped = jax.shard_map(on_each_device, mesh=auto, in_specs=(P("data"), P(), P("data"), P("data")), out_specs=P())
    close(jax.jit(mapped)(h, k, y, W), jax.value_and_grad(lambda k: total(h, k, y, W))(k))


def close(actual, expected):
    near(actual, expected, sum(X.shape))


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    mesh_shape = tuple(int(n) for n in sys.argv[1].split("x"))
    main(mesh_shape)
    linear(mesh_shape)
