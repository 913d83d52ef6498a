"""The aux of a row loss is sharded as the samples are, in every setup of mesh_setups.py."""

import cases
import jax
import mesh_setups
import numpy as np
import oracle
import pytest
from covering import covering
from jax.sharding import PartitionSpec as P
from mesh_setups import CLASSES, NAMES, ROWS, SAMPLES

import softjax


@pytest.mark.parametrize(
    ("setup", "reduction"),
    covering([setup for setup in mesh_setups.SETUPS if setup != "vmap"], ["mean", "sum", "none"]),
)
def test_aux_is_sharded_as_the_samples_are(setup, reduction):
    hidden, kernel, _ = cases.layer(CLASSES, samples=SAMPLES, spread=3.0)
    labels, shape = cases.class_ids(CLASSES, SAMPLES), (2, 4)

    def loss(h, k, y):
        def row_loss(s):
            return s.cross_entropy, (s.prediction, s.entropy, s.label_rank == 0)

        return softjax.linear_loss(row_loss, h, k, y, reduction=reduction, has_aux=True, block_size=2, **NAMES)

    specs = [P("data", None), P(None, "classes"), ROWS]
    out = (ROWS if reduction == "none" else mesh_setups.REPLICATED, ROWS)
    f = mesh_setups.shard_function(setup, shape, loss, specs, out)
    with mesh_setups.mesh_context(setup, shape):
        value, aux = jax.jit(f)(*mesh_setups.placed(setup, shape, (hidden, kernel, labels), specs))
        for leaf in aux:
            assert leaf.sharding.shard_shape(leaf.shape) == (SAMPLES // shape[0],)
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    expected = oracle.statistics(logits, labels)
    rows = expected["cross_entropy"][0]
    np.testing.assert_allclose(value, {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction], rtol=1e-5)
    prediction, entropy, correct = map(np.asarray, aux)
    np.testing.assert_array_equal(prediction, logits.argmax(1))
    np.testing.assert_array_equal(correct, logits.argmax(1) == np.asarray(labels))
    np.testing.assert_allclose(entropy, expected["entropy"][0], rtol=1e-4, atol=1e-6)
