"""Hand-written transposes: every transform uses them, and they save memory."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import covering

import softjax
from softjax._xla import one_cpu, transpose


def test_every_transform_uses_the_given_transpose():
    """A transpose that is wrong on purpose, by a factor of 5, shows where it is used."""

    def double(x):
        return transpose.with_transpose(lambda x: 2 * x, lambda y: 10 * y, x)

    x = jnp.arange(3.0)
    np.testing.assert_array_equal(double(x), 2 * x)
    np.testing.assert_array_equal(jax.jvp(double, (x,), (x,))[1], 2 * x)
    for transform in (lambda f: f, jax.jit, lambda f: lambda x: jax.vmap(f)(x[:, None])[:, 0]):
        np.testing.assert_array_equal(jax.vjp(transform(double), x)[1](x)[0], 10 * x)
    transposed = jax.linear_transpose(double, x)
    np.testing.assert_array_equal(jax.linear_transpose(lambda y: transposed(y)[0], x)(x)[0], 2 * x)
    tree = {"a": x, "b": 2 * x}
    swapped = transpose.with_transpose(
        lambda t: {"a": t["a"] + t["b"], "b": t["b"]}, lambda t: {"a": t["a"], "b": t["a"] + t["b"]}, tree
    )
    np.testing.assert_array_equal(swapped["a"], 3 * x)


def test_add_with_transpose_has_the_derivatives_of_the_plain_sum():
    """Also by the matrix, which the addition closes over."""
    shapes = (3, 4), (3,), (4,)
    matrix, total, x = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))

    def with_transpose(matrix, total, x):
        return transpose.add_with_transpose(lambda t, x: t + matrix @ x, lambda y: matrix.T @ y, total, x)

    def plain(matrix, total, x):
        return total + matrix @ x

    def derivatives(f):
        def loss(*args):
            return jnp.sum(jnp.sin(f(*args)))

        gradient = jax.grad(loss, (0, 1, 2))
        args = (matrix, total, x)
        return f(*args), jax.jvp(f, args, args), gradient(*args), jax.jvp(gradient, args, args)[1]

    for found, expected in zip(*map(jax.tree.leaves, (derivatives(with_transpose), derivatives(plain))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    transposed = jax.linear_transpose(lambda x: with_transpose(matrix, jnp.zeros_like(total), x), x)(total)[0]
    np.testing.assert_allclose(transposed, matrix.T @ total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [transpose.compute_gradient_once, transpose.compute_sum_once])
def test_a_scatter_changes_no_bit_in_any_mode(function, route):
    x = cases.logits(2**15, samples=8).reshape(2, 4, -1).at[0, 0, :3].set(jnp.array([-0.0, jnp.nan, jnp.inf]))

    def double(x):
        return 2 * function(x + -0.0)

    value, pull = jax.vjp(double, x)
    _, push = jax.linearize(double, x)
    transposed_twice = jax.linear_transpose(lambda g: pull(g)[0], x)(x)[0]
    under_vmap = jax.vmap(double)(x[None])[0], jax.vmap(pull)(x[None])[0][0]
    of_matrices = jax.vmap(double)(x), jax.vmap(lambda x: jax.vjp(double, x)[1](x)[0])(x)
    jitted = jax.jit(double)(x), jax.jit(jax.vmap(double))(x), jax.jit(lambda x: jax.vjp(double, x)[1](x)[0])(x)
    for doubled in (value, pull(x)[0], push(x), transposed_twice, *under_vmap, *of_matrices, *jitted):
        np.testing.assert_array_equal(doubled, 2 * x)
        assert jnp.signbit(doubled[0, 0, 0])
    assert scatters(double, x) == (route == "one CPU" and function is transpose.compute_sum_once)
    assert scatters(jax.vmap(double), x) == scatters(double, x)

    def value_and_vjp(x):
        value, pull = jax.vjp(double, x)
        return value, pull(x)

    assert scatters(value_and_vjp, x) == (route == "one CPU")
    for left_alone in (x.astype(jnp.bfloat16), x[..., :8]):
        assert not scatters(value_and_vjp, left_alone)


def scatters(function, x):
    return "stablehlo.scatter" in jax.jit(function).lower(x).as_text()


def test_logits_that_are_an_argument_are_not_copied(monkeypatch):
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: True)
    assert not scatters(lambda x: softjax.cross_entropy(x, jnp.zeros((2, 4), int)), jnp.zeros((2, 4, 2**15)))


MODELS = {
    "plain": lambda h, k, b: h @ k,
    "bias": lambda h, k, b: h @ k + b,
    "temperature": lambda h, k, b: (h @ k + b) / 1.7,
    "softcap": lambda h, k, b: 30 * jnp.tanh((h @ k + b) / 30),
    "reshaped": lambda h, k, b: (h @ k + b).reshape(-1, k.shape[1]),
    "cast": lambda h, k, b: (h.astype(jnp.bfloat16) @ k.astype(jnp.bfloat16)).astype(jnp.float32) + b,
}
WAYS = {
    "batch": lambda loss, model: lambda h, k, b, y: loss(model(h, k, b), y),
    "vmap": lambda loss, model: lambda h, k, b, y: jax.vmap(lambda h, y: loss(model(h, k, b), y))(h, y).mean(),
    "scan": lambda loss, model: (
        lambda h, k, b, y: jax.lax.scan(
            lambda total, chunk: (total + loss(model(chunk[0], k, b), chunk[1]), None),
            jnp.float32(0),
            (h[None], y[None]),
        )[0]
    ),
}


@pytest.mark.parametrize(("model", "way"), covering([*MODELS], [*WAYS], quick=(1, 4, 5)))
def test_no_more_memory_than_optax(model, way, monkeypatch):
    """Logits [batch, positions, classes] take two arrays of their size, or what the model itself needs with optax."""
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: True)
    shapes = (4, 64, 32), (32, 2048), (2048,)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def temporary(loss):
        step = WAYS[way](lambda x, y: loss(x, y.reshape(x.shape[:-1])), MODELS[model])
        program = jax.jit(jax.value_and_grad(step, (0, 1, 2))).lower(*arrays, labels).compile()
        return program.memory_analysis().temp_size_in_bytes / (4 * 4 * 64 * 2048)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        ours = temporary(softjax.cross_entropy)
        theirs = temporary(lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean())
    assert ours < max(2.1, theirs + 0.1)


@pytest.mark.parametrize(
    ("samples", "dtype"), covering([[256], [4, 64], [2, 2, 64]], [jnp.float32, jnp.bfloat16], quick=(0, 1))
)
def test_memory_of_a_matmul_and_its_loss(samples, dtype, monkeypatch):
    """At most two arrays of the logits' size: logits and gradient, then gradient and its transpose.

    For bfloat16, XLA itself adds a wider copy.
    """
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: True)
    hidden, kernel = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((*samples, 32), (32, 2048)))
    labels = jax.ShapeDtypeStruct(tuple(samples), jnp.int32)
    for weights in (None, jax.ShapeDtypeStruct(labels.shape, jnp.float32)):

        def loss(hidden, kernel, labels, weights):
            return softjax.cross_entropy(hidden @ kernel, labels, weights=weights)

        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, kernel, labels, weights).compile()
        arrays = program.memory_analysis().temp_size_in_bytes / (4 * 256 * 2048)
        assert arrays < (2.1 if dtype == jnp.float32 else 2.7)
