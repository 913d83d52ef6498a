"""Few classes per sample under sharded classes: sparse labels, log-probabilities, the top k."""

from functools import partial

import cases
import few
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import pytest
from covering import covering, slow
from jax.sharding import PartitionSpec as P
from mesh_setups import CLASSES, NAMES, SAMPLES
from programs import vjp
from test_mesh_layer import close, run

import softjax

ROWS2 = P("data", None)
REDUCTION_AND_FUSED = [("mean", True), ("none", False), ("none", True), ("mean", False)]
LAYER = [ROWS2, P(None, "classes"), P("classes")]


@pytest.mark.parametrize(
    ("setup", "reduction", "fused"), covering(mesh_setups.SETUPS, REDUCTION_AND_FUSED, quick=(1, 4))
)
@pytest.mark.parametrize("k", [3, *slow(12)])
def test_sparse_labels(setup, reduction, k, fused):
    hidden, kernel, bias = cases.layer(CLASSES, samples=SAMPLES, spread=3.0)
    labels, weights = few.sparse(CLASSES, k, SAMPLES), cases.weights(SAMPLES)
    hidden = hidden.at[0].set(jnp.nan)  # its weight is 0
    dense_labels = jnp.asarray(few.dense(labels, CLASSES), jnp.float32)
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.01}
    logits = (hidden @ kernel + bias[None]).at[0].set(jnp.nan)

    def linear(ids, h, w, b, p, weights, **names):
        y = p if ids is None else softjax.SparseLabels(ids, p)
        return softjax.linear_cross_entropy(h, w, y, bias=b, weights=weights, block_size=3, **options, **names)

    def dense(ids, x, p, weights, **names):
        y = p if ids is None else softjax.SparseLabels(ids, p)
        return softjax.cross_entropy(x, y, weights=weights, **options, **names)

    function = linear if fused else dense
    arrays, specs = ([hidden, kernel, bias], LAYER) if fused else ([logits], [mesh_setups.LOGITS])
    arrays, specs = [*arrays, labels.probabilities, weights], [*specs, ROWS2, mesh_setups.ROWS]
    out = mesh_setups.ROWS if reduction == "none" else P()
    g = cases.cotangent(SAMPLES) if reduction == "none" else jnp.asarray(1.0)
    named, differentiated = partial(function, **NAMES), range(1, len(arrays))
    value, gradients = run(setup, (2, 4), named, [labels.ids, *arrays], [ROWS2, *specs], out, differentiated, g)
    arrays[-2] = dense_labels
    expected, expected_gradients = vjp(lambda *a: function(None, *a), arrays, g)
    expected_gradients = list(expected_gradients[:-1])
    expected_gradients[-1] = few.entries_at(np.asarray(expected_gradients[-1]), labels.ids)
    close(value, expected)
    close(list(gradients), expected_gradients, 2e-5)


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
@pytest.mark.parametrize("k", [3, *slow(12)])
def test_log_probabilities(setup, k):
    hidden, kernel, bias = cases.layer(CLASSES, samples=SAMPLES, spread=3.0)
    ids = few.sparse(CLASSES, k, SAMPLES, padding=False).ids
    g = jnp.asarray(np.random.default_rng(0).normal(size=ids.shape), jnp.float32)

    def linear(ids, h, w, b, **names):
        return softjax.linear_log_probabilities(h, w, ids, bias=b, block_size=3, **names)

    arrays, specs = [ids, hidden, kernel, bias], [ROWS2, *LAYER]
    value, gradients = run(setup, (2, 4), partial(linear, **NAMES), arrays, specs, ROWS2, (1, 2, 3), g)
    expected, expected_gradients = vjp(lambda *a: linear(ids, *a), (hidden, kernel, bias), g)
    close(value, expected)
    close(list(gradients), list(expected_gradients), 2e-5)
    x = hidden @ kernel + bias[None]

    def dense(ids, x):
        return softjax.log_probabilities(x, ids, axis_name="classes")

    value, (dx,) = run(setup, (2, 4), dense, [ids, x], [ROWS2, mesh_setups.LOGITS], ROWS2, (1,), g)
    expected, (expected_dx,) = vjp(lambda x: softjax.log_probabilities(x, ids), (x,), g)
    close(value, expected)
    close(dx, expected_dx, 2e-5)


@pytest.mark.parametrize(("setup", "k"), covering(mesh_setups.SETUPS, [5, 24, 1], quick=(1, 3)))
def test_top_k(setup, k):
    """Also for a k that exceeds the classes of a device, and for ties."""
    hidden, kernel, bias = cases.layer(CLASSES, samples=SAMPLES, spread=3.0)
    kernel = kernel.at[:, 17].set(kernel[:, 2]).at[:, 3].set(kernel[:, 2])
    bias = bias.at[17].set(bias[2]).at[3].set(bias[2])

    def top(h, w, b, **names):
        t = softjax.linear_top_k(h, w, k, bias=b, block_size=3, **names)
        return jnp.stack([t.ids.astype(jnp.float32), t.log_probabilities], -1)

    g = jnp.asarray(np.random.default_rng(0).normal(size=(SAMPLES, k, 2)), jnp.float32)
    out = P("data", None, None)
    value, gradients = run(setup, (2, 4), partial(top, **NAMES), [hidden, kernel, bias], LAYER, out, g=g)
    expected, expected_gradients = vjp(top, (hidden, kernel, bias), g)
    np.testing.assert_array_equal(value[..., 0], expected[..., 0])
    close(value, expected)
    close(list(gradients), list(expected_gradients), 2e-5)


@pytest.mark.parametrize("setup", ["Auto", "shard_map"])
def test_each_device_sends_its_own_top_k_and_no_logits(setup):
    hidden, kernel, _ = cases.layer(CLASSES * 8, samples=SAMPLES)
    specs = LAYER[:2]
    f = mesh_setups.shard_function(
        setup, (2, 4), lambda h, w: softjax.linear_top_k(h, w, 2, block_size=4, **NAMES).ids, specs, ROWS2
    )
    with mesh_setups.mesh_context(setup, (2, 4)):
        arrays = mesh_setups.placed(setup, (2, 4), [hidden, kernel], specs)
        text = jax.jit(f).lower(*arrays).compile().as_text()
    collectives = [line for line in text.splitlines() if " all-reduce(" in line or " all-gather(" in line]
    assert collectives
    for line in collectives:
        assert f"{CLASSES * 8 // 4}]" not in line
        assert f"{CLASSES * 8}]" not in line
