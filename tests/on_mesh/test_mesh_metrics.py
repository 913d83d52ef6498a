"""The metrics of sharded samples and classes: of all samples under `jit`, of the local samples in `shard_map`."""

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from mesh_setups import CLASSES, LOGITS, ROWS, SAMPLES

import softjax
from softjax import metrics

X, Y, W = cases.logits(CLASSES, 3.0, SAMPLES), cases.class_ids(CLASSES, SAMPLES).at[::3].set(0), cases.weights(SAMPLES)


def all_metrics(s, w):
    calibration = metrics.calibration(s, 5, w)
    return [
        metrics.accuracy(s, w),
        metrics.top_k_accuracy(s, 5, w),
        metrics.perplexity(s, w),
        metrics.brier_score(s, w),
        calibration.expected_error(),
        calibration.maximum_error(),
        calibration.curve().share,
    ]


@pytest.mark.parametrize("setup", mesh_setups.GLOBAL)
def test_metrics_of_global_arrays(setup):
    expected = all_metrics(softjax.statistics(X, Y), W)
    fitted = metrics.fit_temperature(X, Y, W)
    with mesh_setups.mesh_context(setup, (2, 4)):
        x, y, w = mesh_setups.placed(setup, (2, 4), (X, Y, W), [LOGITS, ROWS, ROWS])

        @jax.jit
        def metrics_and_temperature(x, y, w):
            return all_metrics(softjax.statistics(x, y, axis_name="classes"), w), metrics.fit_temperature(x, y, w)

        actual, temperature = metrics_and_temperature(x, y, w)
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(temperature, fitted, rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_metrics_of_local_samples_combine(check_vma):
    """Weighted means combine by the weights of the devices, a `Calibration` by a sum."""

    def local(x, y, w):
        s = softjax.statistics(x, y, axis_name="classes")
        mass = jax.lax.psum(jnp.sum(w), "data")
        means = [jax.lax.psum(jnp.sum(w) * mean, "data") / mass for mean in all_metrics(s, w)[:2]]
        nats = jax.lax.psum(jnp.sum(w) * jnp.log(metrics.perplexity(s, w)), "data") / mass
        calibration = jax.lax.psum(metrics.calibration(s, 5, w), "data")
        brier = jax.lax.psum(jnp.sum(w) * metrics.brier_score(s, w), "data") / mass
        return [*means, jnp.exp(nats), brier, calibration.expected_error(), calibration.maximum_error()]

    mapped = jax.shard_map(
        local, mesh=mesh_setups.mesh_of((2, 4)), in_specs=(LOGITS, ROWS, ROWS), out_specs=P(), check_vma=check_vma
    )
    expected = all_metrics(softjax.statistics(X, Y), W)[:-1]
    for found, wanted in zip(jax.jit(mapped)(X, Y, W), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_temperature_of_local_samples():
    x, y = X.at[:].multiply(0.3), jnp.argmax(X + 4 * cases.logits(CLASSES, 1.0, SAMPLES, seed=5), -1)

    def local(x, y):
        return metrics.fit_temperature(x, y)[None]

    mapped = jax.shard_map(local, mesh=mesh_setups.mesh_of((2, 1)), in_specs=(P("data"), ROWS), out_specs=P("data"))
    halves = [metrics.fit_temperature(x[i : i + 8], y[i : i + 8]) for i in (0, 8)]
    np.testing.assert_allclose(jax.jit(mapped)(x, y), halves, rtol=1e-4)
