"""The quickstart: short, imports only softjax, JAX and optax, and prints true results."""

import jax
import numpy as np
import pytest
from copied import EXAMPLES, imported_packages, line_count, printed_numbers, random_like, run_alone

QUICKSTART = EXAMPLES / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    return run_alone(QUICKSTART, tmp_path_factory.mktemp("empty"))


def test_it_can_be_copied():
    assert line_count(QUICKSTART) <= 40
    assert imported_packages(QUICKSTART) == {"jax", "optax", "softjax"}


def test_the_loss_falls(quickstart):
    output, _ = quickstart
    *training, _ = printed_numbers(output)
    steps, losses = np.transpose(training)
    np.testing.assert_array_equal(steps, [0, 25, 50, 75, 100])
    np.testing.assert_allclose(losses[0], np.log10(5), atol=5e-4)  # five equally likely classes
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] < 0.08


def loss_and_accuracy(params, points, labels):
    """Returns the mean of −log10 softmax(logits)_label and the accuracy, in float64."""
    kernel, bias = np.asarray(params["kernel"], np.float64), np.asarray(params["bias"], np.float64)
    logits = np.asarray(points, np.float64) @ kernel + bias
    label_logits = logits[np.arange(len(labels)), labels]
    losses = np.log10(np.sum(np.exp(logits - label_logits[:, None]), axis=1))
    return np.mean(losses), np.mean(np.argmax(logits, axis=1) == labels)


def test_the_loss_is_the_mean_cross_entropy_to_base_10(quickstart):
    _, module = quickstart
    params = random_like(module.params, seed=0, scale=1)
    expected, _ = loss_and_accuracy(params, *jax.device_get(module.train))
    np.testing.assert_allclose(module.loss_fn(params, *module.train), expected, rtol=1e-5)


def test_the_printed_test_results_are_true(quickstart):
    output, module = quickstart
    loss, accuracy = loss_and_accuracy(module.params, *jax.device_get(module.test))
    np.testing.assert_allclose(printed_numbers(output)[-1], [loss, accuracy], atol=6e-4)
    assert accuracy > 0.9
