"""The last layer sharded over samples and classes, in every setup of mesh_setups.py, against float64."""

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import oracle
import pytest
from covering import covering
from jax.sharding import PartitionSpec as P
from mesh_setups import CLASSES, NAMES, ROWS, SAMPLES

import softjax

SPECS = [P("data", None), P(None, "classes"), P("classes"), ROWS, ROWS]


def example(dtype=jnp.float32, spread=3.0):
    arrays = cases.layer(CLASSES, samples=SAMPLES, spread=spread, dtype=dtype)
    return (*arrays, cases.class_ids(CLASSES, SAMPLES), cases.weights(SAMPLES))


def run(setup, shape, loss, arrays, specs=SPECS, out=mesh_setups.REPLICATED, differentiated=(0, 1, 2), g=None):
    """The value of a loss and its VJP for the cotangent g, by one program."""
    f = mesh_setups.shard_function(setup, shape, loss, specs, out)
    with mesh_setups.mesh_context(setup, shape):
        arrays = mesh_setups.placed(setup, shape, arrays, specs)
        if g is None:
            g = jnp.asarray(1.0) if out == mesh_setups.REPLICATED else cases.cotangent(SAMPLES)
        (g,) = mesh_setups.placed(setup, shape, [g], [out])

        @jax.jit
        def both(g, *arrays):
            def loss_of(*chosen):
                return f(*(dict(enumerate(arrays)) | dict(zip(differentiated, chosen, strict=True))).values())

            value, pull = jax.vjp(loss_of, *(arrays[i] for i in differentiated))
            return value, pull(g.astype(value.dtype))

        value, gradients = both(g, *arrays)
        return np.asarray(value), [np.asarray(d, np.float64) for d in gradients]


def close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1e-3, np.abs(b).max()))


def check(setup, shape, arrays, clean=None, **options):
    reduction = options.get("reduction", "mean")

    def loss(h, k, b, y, w):
        return softjax.linear_cross_entropy(h, k, y, bias=b, weights=w, block_size=3, **NAMES, **options)

    actual = run(setup, shape, loss, arrays, out=ROWS if reduction == "none" else P())
    h, k, b, y, w = clean or arrays
    divisor = np.asarray(w, np.float64).sum() if reduction == "mean" else 1.0
    g = np.asarray(cases.cotangent(SAMPLES), np.float64) if reduction == "none" else np.ones(SAMPLES)
    options.pop("reduction", None)
    rows, gradients = oracle.linear_cross_entropy(h, k, y, bias=b, weights=w, cotangent=g / divisor, **options)
    tolerance = 1e-5 if h.dtype == jnp.float32 else 3e-2
    close(actual, (rows if reduction == "none" else rows.sum() / divisor, list(gradients)), tolerance)


@pytest.mark.parametrize(("setup", "shape"), mesh_setups.MESHES)
def test_every_mesh(setup, shape):
    check(setup, shape, example())


@pytest.mark.parametrize(("setup", "reduction"), covering(mesh_setups.SETUPS, ["mean", "sum", "none"], quick=(1, 2, 3)))
def test_every_option(setup, reduction):
    check(setup, (2, 4), example(), reduction=reduction, label_smoothing=0.1, z_loss=0.01, logit_softcap=5.0, base=2.0)


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_bfloat16(setup):
    check(setup, (2, 4), example(jnp.bfloat16))


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_soft_labels_of_a_layer(setup):
    h, k, b, _, w = example()
    p = cases.distribution(CLASSES, SAMPLES)
    specs = [*SPECS[:3], P("data", "classes"), ROWS]

    def loss(h, k, b, p, w):
        return softjax.linear_cross_entropy(h, k, p, bias=b, weights=w, block_size=3, label_smoothing=0.1, **NAMES)

    value, gradients = run(setup, (2, 4), loss, (h, k, b, p, w), specs, differentiated=(0, 1, 2, 3))
    unsharded = jax.jit(
        jax.value_and_grad(
            lambda *a: softjax.linear_cross_entropy(a[0], a[1], a[3], bias=a[2], weights=w, label_smoothing=0.1),
            (0, 1, 2, 3),
        )
    )(h, k, b, p)
    close((value, gradients), (unsharded[0], list(unsharded[1])))


@pytest.mark.parametrize(
    ("setup", "labels", "fused"),
    covering(mesh_setups.SETUPS, ["ids", "distribution", "sparse"], [True, False], quick=(0, 4)),
)
def test_class_weights(setup, labels, fused):
    """Class weights are sharded like the classes."""
    h, k, _, y, w = example()
    labels = {
        "ids": [y.at[::4].set(-100)],  # where the weights are 0
        "distribution": [cases.distribution(CLASSES, SAMPLES)],
        "sparse": [jnp.stack([y, (y + 5) % CLASSES], -1), jnp.tile(jnp.array([0.75, 0.25]), (SAMPLES, 1))],
    }[labels]
    class_weights = jnp.linspace(0.1, 3.0, CLASSES)

    def loss(h, k, w, class_weights, *labels, **names):
        labels = softjax.SparseLabels(*labels) if len(labels) == 2 else labels[0]
        options = {"weights": w, "class_weights": class_weights, "label_smoothing": 0.1, **names}
        if fused:
            return softjax.linear_cross_entropy(h, k, labels, block_size=3, **options)
        return softjax.cross_entropy(h, labels, **options)  # h are the logits

    def named(*arrays):
        return loss(*arrays, **NAMES)

    label_specs = {1: ROWS, 2: P("data", None)}
    specs = [label_specs[a.ndim] if len(labels) == 2 or a.ndim == 1 else P("data", "classes") for a in labels]
    if fused:
        arrays, specs = (h, k, w, class_weights, *labels), [*SPECS[:2], ROWS, P("classes"), *specs]
    else:
        arrays, specs = (
            (h @ k, k, w, class_weights, *labels),
            [P("data", "classes"), SPECS[1], ROWS, P("classes"), *specs],
        )
    differentiated = (0, 1) if fused else (0,)
    expected = jax.jit(jax.value_and_grad(loss, differentiated))(*arrays)
    value, gradients = run(setup, (2, 4), named, arrays, specs, differentiated=differentiated)
    close((value, gradients), (expected[0], list(expected[1])))


def policy_gradient(s, advantage):
    return -advantage * (s.label_logit - s.log_normalizer) - 0.1 * s.entropy + 0.01 * s.mean_logit**2


@pytest.mark.parametrize(("setup", "route"), covering(mesh_setups.SETUPS, ["loss", "statistics"], quick=(0, 3)))
def test_a_row_loss(setup, route):
    """Gradients by hidden states, kernel, bias, weights, the row argument and a closed-over array."""
    h, k, b, y, w = example()
    advantages, scale = cases.cotangent(SAMPLES), jnp.asarray(1.3)

    def loss(h, k, b, y, w, advantages, scale, **names):
        scale = 1.3 if setup == "Explicit" else scale
        options = {"bias": b, "block_size": 3, **names}
        if route == "loss":
            return softjax.linear_loss(
                lambda s, a: scale * policy_gradient(s, a), h, k, y, advantages, weights=w, **options
            )
        rows = softjax.linear_statistics(h, k, y, **options)
        total = (w * scale * policy_gradient(rows, advantages)).sum()
        bound = "batch_axis_name" in names and setup in mesh_setups.IN_A_MAP
        return jax.lax.psum(total, "data") if bound else total

    arrays = (h, k, b, y, w, advantages, scale)
    # under Explicit axes, JAX does not let a `shard_map` close over a traced array
    differentiated = (0, 1, 2, 4, 5) if setup == "Explicit" else (0, 1, 2, 4, 5, 6)
    expected = jax.jit(jax.value_and_grad(loss, differentiated))(*arrays)

    def named(*arrays):
        return loss(*arrays, **NAMES)

    value, gradients = run(setup, (2, 4), named, arrays, [*SPECS, ROWS, P()], differentiated=differentiated)
    close((value, gradients), (expected[0], list(expected[1])), 2e-5)


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_a_tied_embedding(setup):
    h, k, _, y, w = example()
    embedding = jnp.asarray(k.T)

    def loss(h, embedding, y, w):
        return softjax.linear_cross_entropy(h, embedding.T, y, weights=w, block_size=3, **NAMES)

    specs = [SPECS[0], P("classes", None), ROWS, ROWS]
    value, gradients = run(setup, (2, 4), loss, (h, embedding, y, w), specs, differentiated=(0, 1))
    unsharded = jax.jit(jax.value_and_grad(lambda h, e: softjax.linear_cross_entropy(h, e.T, y, weights=w), (0, 1)))(
        h, embedding
    )
    close((value, gradients), (unsharded[0], list(unsharded[1])))


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_a_shard_of_ignored_samples(setup):
    h, k, b, y, w = example()
    w = w.at[:8].set(0)
    check(setup, (2, 4), (h.at[:8].set(jnp.nan), k, b, y, w), (h, k, b, y, w))


@pytest.mark.parametrize(("setup", "reduction"), covering(mesh_setups.SETUPS, ["mean", "none"], quick=(1, 4)))
def test_forward_mode(setup, reduction):
    h, k, b, y, w = example()

    def loss(h, k, b, y, w, **names):
        return softjax.linear_cross_entropy(h, k, y, bias=b, weights=w, block_size=3, reduction=reduction, **names)

    tangents = tuple(jnp.cos(a) for a in (h, k, b))
    expected = jax.jit(lambda *primals: jax.jvp(lambda *a: loss(*a, y, w), primals, tangents))(h, k, b)
    f = mesh_setups.shard_function(
        setup, (2, 4), lambda *a: loss(*a, **NAMES), SPECS, ROWS if reduction == "none" else P()
    )
    with mesh_setups.mesh_context(setup, (2, 4)):
        *primals, y, w = mesh_setups.placed(setup, (2, 4), (h, k, b, y, w), SPECS)
        tangents = mesh_setups.placed(setup, (2, 4), tangents, SPECS[:3])
        actual = jax.jit(lambda primals, tangents, y, w: jax.jvp(lambda *a: f(*a, y, w), primals, tangents))(
            tuple(primals), tuple(tangents), y, w
        )
    close(actual, expected, 1e-4)


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_a_bias_of_minus_infinity_masks_padded_classes(setup):
    """19 classes padded to 24 on four devices. The last device has one class that exists."""
    h, k, b, y, w = example()
    exist, y = jnp.arange(CLASSES) < 19, y % 19

    def loss(h, k, b, y, w, **names):
        return softjax.linear_cross_entropy(h, k, y, bias=b, weights=w, block_size=3, **names)

    def named(*arrays):
        return loss(*arrays, **NAMES)

    value, (dh, dk, db) = run(setup, (2, 4), named, (h, k, jnp.where(exist, b, -jnp.inf), y, w))
    expected = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(h, k[:, :19], b[:19], y, w)
    close((value, [dh, dk[:, :19], db[:19]]), (expected[0], list(expected[1])))
    assert not dk[:, 19:].any()
    assert not db[19:].any()
