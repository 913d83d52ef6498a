"""The first program that a reader opens: short, of nothing but softjax, JAX and optax, and what it prints is so."""

import copied
import jax
import numpy as np
import pytest

QUICKSTART = copied.EXAMPLES / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    return copied.run(QUICKSTART, tmp_path_factory.mktemp("empty"))


def test_it_can_be_pasted():
    assert copied.lines(QUICKSTART) <= 40
    assert copied.imported(QUICKSTART) == {"jax", "optax", "softjax"}


def test_the_loss_falls(quickstart):
    *steps, _ = copied.numbers(quickstart[0])
    count, losses = np.transpose(steps)
    np.testing.assert_array_equal(count, [0, 25, 50, 75, 100])
    np.testing.assert_allclose(losses[0], np.log10(5), atol=5e-4)  # five classes that are equally likely
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] < 0.08


def loss_and_accuracy(params, points, labels):
    """The mean of −log10 softmax(logits)_label and the share of right predictions, in float64."""
    logits = np.asarray(points, np.float64) @ params["kernel"] + params["bias"]
    own = logits[np.arange(len(labels)), labels]
    return np.log10(np.exp(logits - own[:, None]).sum(1)).mean(), np.mean(logits.argmax(1) == labels)


def test_the_loss_is_that_of_kernel_and_bias(quickstart):
    _, names = quickstart
    params = {k: jax.random.normal(jax.random.key(i), a.shape) for i, (k, a) in enumerate(names["params"].items())}
    expected, _ = loss_and_accuracy(params, *map(np.asarray, names["train"]))
    np.testing.assert_allclose(names["loss"](params, *names["train"]), expected, rtol=1e-5)


def test_what_is_printed_of_the_held_out_points_is_so(quickstart):
    printed, names = quickstart
    loss, accuracy = loss_and_accuracy(names["params"], *map(np.asarray, names["test"]))
    np.testing.assert_allclose(copied.numbers(printed)[-1], [loss, accuracy], atol=6e-4)
    assert accuracy > 0.9
