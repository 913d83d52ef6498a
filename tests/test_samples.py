"""Chunks of samples: active samples, and the accumulated gradients of a layer."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._args.labels import ClassIds
from softjax._linear.layer import Layer, Parameters
from softjax._linear.samples import (
    ChunkConfig,
    Samples,
    add_gradients,
    align_samples,
    in_kernel_layout,
    zero_gradients,
    zero_of_rows,
)
from softjax._mesh.axes import ClassAxis
from softjax._rows.statistics import STATISTICS

SAMPLES = Samples(
    jnp.array([[[1.0, jnp.nan], [2.0, 3.0], [jnp.inf, 0.0]]]), ClassIds(jnp.zeros((1, 3, 1), jnp.int32)), None
)


def test_safe_hidden_is_finite_in_ignored_rows():
    assert SAMPLES.active is None
    assert SAMPLES.safe_hidden is SAMPLES.hidden
    weighted = SAMPLES._replace(weights=jnp.array([[[0.0], [0.0], [2.0]]]))
    assert weighted.active.tolist() == [[[False], [False], [True]]]
    np.testing.assert_array_equal(weighted.safe_hidden, [[[1, 0], [2, 3], [jnp.inf, 0]]])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chunks", [1, 2])
def test_accumulated_gradients(transposed, chunks):
    hidden, kernel, bias = cases.layer(7)
    du = cases.logits(7, seed=2)
    layer = Layer(transposed, None, jnp.dtype(jnp.float32))
    parameters = Parameters(kernel.T if transposed else kernel, bias)
    samples = SAMPLES._replace(hidden=jnp.stack([hidden] * chunks))
    assert (zero_gradients(layer, parameters, samples)[0] is None) == (
        chunks == 1
    )  # a single chunk needs no accumulator
    gradients = add_gradients(
        layer, add_gradients(layer, zero_gradients(layer, parameters, samples), du, hidden), du, hidden
    )
    dkernel, dbias, *_ = in_kernel_layout(layer, *gradients)
    assert dkernel.shape == parameters.kernel.shape
    np.testing.assert_allclose(dkernel.T if transposed else dkernel, 2 * hidden.T @ du, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dbias, 2 * du.sum(0), rtol=1e-5, atol=1e-5)
    assert zero_gradients(layer, parameters._replace(bias=None), samples)[1] is None


def test_without_a_mesh_align_samples_changes_nothing():
    hidden, kernel, bias = cases.layer(7)
    parameters, samples = Parameters(kernel, bias), SAMPLES._replace(hidden=hidden[None])
    aligned = align_samples(ClassAxis(-1), parameters, samples)
    assert aligned[0].kernel is kernel
    assert aligned[1].hidden is samples.hidden
    static = ChunkConfig(STATISTICS, Layer(False, None, jnp.dtype(jnp.float32)), ClassAxis(-1))
    assert zero_of_rows(static, parameters, samples) == 0
