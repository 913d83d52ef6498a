"""The README: its code runs, its comments and tables are true, its figures are those of the results page."""

import inspect
import math
import re
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import readme

import softjax

X, Y, P, W = cases.logits(5), cases.class_ids(5), cases.distribution(5), cases.weights()


def test_python_blocks_run():
    assert readme.BLOCKS
    for block in readme.BLOCKS:
        exec(block, {})


def test_the_first_example_gives_what_its_comments_say():
    scope = {}
    exec(readme.BLOCKS[0], scope)
    for name in ("loss", "nats"):
        (printed,) = re.findall(rf"^{name} = .*# (\S+) ", readme.BLOCKS[0], re.MULTILINE)
        assert f"{scope[name]:.4f}" == printed
    softmax = np.exp([-20.0, -10, -5, -2, 0]) / np.exp([-20.0, -10, -5, -2, 0]).sum()
    close(scope["gradient"][0], softmax - np.eye(5)[4])
    close(scope["masked"], scope["loss"])


def test_the_warning_names_every_function_that_defaults_to_base_10():
    (warning,) = re.findall(r"\*\*Base 10 .*", readme.TEXT)
    functions = {name: getattr(softjax, name) for name in softjax.__all__ if inspect.isfunction(getattr(softjax, name))}
    with_base = {name for name, function in functions.items() if "base" in inspect.signature(function).parameters}
    assert set(re.findall(r"`(\w+)`", warning)) == with_base


def test_it_can_be_read_in_minutes():
    assert len(readme.TEXT.split()) <= 2000


def test_links_lead_somewhere():
    files, anchors = readme.links()
    assert len(files) > 20
    assert [path for path in files if not (readme.ROOT / path).exists()] == []
    headings = re.findall(r"^#+ (.*)$", readme.TEXT, re.MULTILINE)
    assert anchors <= {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("section", ["Why softjax?", "The last layer", "Distillation", "Speed"])
def test_every_figure_stands_in_the_results(section):
    page = (readme.ROOT / "examples" / "results" / "README.md").read_text(encoding="utf8")
    figures = re.findall(r"\d+\.\d+(?![\de])|\d+(?= [GMk]B)", readme.prose(section))
    assert figures
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}", page)] == []


def test_every_recipe_is_in_the_table_of_tasks():
    recipes = {path.name for path in (readme.ROOT / "examples" / "recipes").glob("*.py")}
    assert {Path(path).name for path in readme.links()[0] if "/recipes/" in path} == recipes


def test_a_lead_of_17_is_enough_for_others_to_give_nothing():
    def log_softmax(x, y):
        return -jax.nn.log_softmax(x)[y]

    x, y = jnp.array([17.0, 0, 0]), jnp.array(0)
    for loss in (log_softmax, optax.softmax_cross_entropy_with_integer_labels):
        value, gradient = jax.value_and_grad(loss)(x, y)
        assert (value, gradient[0]) == (0, 0)
    x = jnp.array([20.0, 0, 0])
    value, gradient = jax.value_and_grad(nats)(x, y)
    hessian = jax.hessian(nats)(x, y)
    assert [f"{number:.1e}" for number in (value, gradient[0], hessian[0, 0])] == ["4.1e-09", "-4.1e-09", "4.1e-09"]
    assert jax.hessian(log_softmax)(x, y)[0, 0] == 0


def nats(*args, **options):
    return softjax.cross_entropy(*args, base=math.e, **options)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_coming_from_optax():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        where = jnp.array([True, True, True, True, False])
        y = jnp.minimum(Y, 3)
        integer = optax.softmax_cross_entropy_with_integer_labels
        close(nats(X, Y), integer(X, Y).mean())
        close(nats(X, P, reduction="none"), optax.softmax_cross_entropy(X, P))
        smooth = optax.softmax_cross_entropy(X, optax.smooth_labels(jax.nn.one_hot(Y, 5), 0.1))
        close(nats(X, Y, label_smoothing=0.1, reduction="none"), smooth)
        close(nats(X, y, where=where, reduction="none"), integer(X, y, where=where[None, :]))


def test_coming_from_keras():
    # Keras divides by the number of samples by default, also with sample_weight.
    losses = np.asarray(nats(X, Y, reduction="none"))
    close(nats(X, Y, weights=W, reduction="sum") / Y.size, (losses * np.asarray(W)).sum() / len(losses))
    one_hot = jax.nn.one_hot(Y, 5)
    close(softjax.distribution_cross_entropy(one_hot, softjax.softmax(X), base=math.e).mean(), losses.mean())


def test_coming_from_torch():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional.cross_entropy
    x, y, p = torch.tensor(np.asarray(X)), torch.tensor(np.asarray(Y)).long(), torch.tensor(np.asarray(P))
    ignored = Y.at[::3].set(-100)
    close(nats(X, Y), f(x, y))
    close(nats(X, ignored, weights=ignored != -100), f(x, torch.tensor(np.asarray(ignored)).long()))
    close(nats(X, Y, weights=jnp.arange(1.0, 6.0)[Y]), f(x, y, weight=torch.arange(1.0, 6.0)))
    weights = jnp.where(ignored != -100, jnp.arange(1.0, 6.0)[ignored], 0)
    close(
        nats(X, ignored, weights=weights), f(x, torch.tensor(np.asarray(ignored)).long(), weight=torch.arange(1.0, 6.0))
    )
    close(nats(X, Y, label_smoothing=0.1, reduction="none"), f(x, y, label_smoothing=0.1, reduction="none"))
    close(nats(X, P), f(x, p))
    log_q, log_p = (torch.log_softmax(torch.tensor(np.asarray(a)), -1) for a in (X, jnp.log(P)))
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    close(softjax.divergence(X, jnp.log(P), base=math.e), kl)
    lead = torch.tensor([[17.0, 0, 0]], requires_grad=True)
    assert f(lead, torch.tensor([0])) == 0
    f(lead, torch.tensor([0])).backward()
    assert lead.grad[0, 0] == 0
    image, ids = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32), np.zeros((2, 3, 4), np.int32)
    close(nats(image, ids, axis=1), f(torch.tensor(image), torch.tensor(ids).long()))
