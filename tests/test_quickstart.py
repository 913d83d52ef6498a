"""The first program that a reader opens: short, of nothing but softjax, JAX and optax, and what it prints is so."""

import copied
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


def test_what_is_printed_of_the_held_out_points_is_so(quickstart):
    printed, names = quickstart
    points, labels = map(np.asarray, names["test"])
    logits = points.astype(np.float64) @ names["params"]["kernel"] + names["params"]["bias"]
    loss = np.log10(np.exp(logits - logits[np.arange(300), labels][:, None]).sum(1)).mean()
    accuracy = np.mean(logits.argmax(1) == labels)
    np.testing.assert_allclose(copied.numbers(printed)[-1], [loss, accuracy], atol=6e-4)
    assert accuracy > 0.9
