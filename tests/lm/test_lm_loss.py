"""The loss of the language model: microbatches, metrics, the baselines, and no logits in the fused one."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from closeness import near
from covering import slow
from jaxprs import equations
from lm_runs import config_of, default_config, hidden_states, options

import compare_lm_routes
import train_lm as program
from benchmarks import routes_report
from language_model.evaluation import METRICS
from language_model.settings import ROUTES

# A gradient sums over these tokens, and the rounding errors of the summed terms count as much again.
TERMS = 2 * 8 * 16

_mean_loss_and_gradient = jax.jit(program.mean_loss_and_gradient, static_argnames="config")


def mean_loss_and_gradient(model, tokens, config):
    return _mean_loss_and_gradient(model, {"tokens": tokens}, config)


def case(text, **settings):
    """A model whose predictions are not uniform, and a batch whose microbatches have different numbers of tokens."""
    config = config_of(text.parent / "none", text, **settings)
    model = program.initial_state(config).model
    model = jax.tree.map(lambda leaf: 3 * leaf, model)
    generator = np.random.default_rng(0)
    batch = generator.integers(0, config.end, (8, config.sequence_length + 1), np.int32)
    batch[1, 3] = batch[2, :] = batch[7, 5:] = config.end
    return config, model, batch


@pytest.mark.parametrize("microbatches", [4, *slow(2, 8)])
def test_microbatches_are_one_batch(text, microbatches):
    config, model, batch = case(text, z_loss=1e-3)
    at_once = mean_loss_and_gradient(model, batch[None], config)
    in_parts = mean_loss_and_gradient(model, batch.reshape(microbatches, -1, batch.shape[1]), config)
    near(in_parts, at_once, TERMS)


def test_the_mean_is_over_tokens(text):
    config, model, batch = case(text, z_loss=1e-3)
    hidden = np.asarray(hidden_states(model, batch[:, :-1]), np.float64)
    logits = hidden @ np.asarray(model.kernel, np.float64)
    z = np.logaddexp.reduce(logits, axis=-1)
    losses = z - np.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0] + 1e-3 * z**2
    expected = np.mean(losses[batch[:, :-1] != config.end])
    for microbatches in (1, 4):
        (actual, _), _ = mean_loss_and_gradient(model, batch.reshape(microbatches, -1, batch.shape[1]), config)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(("z_loss", "microbatches"), [(1e-3, 4), *slow((0.0, 1), (0.0, 4), (1e-3, 1))])
def test_the_metrics_are_those_of_the_logits(text, z_loss, microbatches):
    config, model, batch = case(text, z_loss=z_loss)
    numbers = of_logits(model, batch, z_loss, config)
    (loss, beside), _ = mean_loss_and_gradient(model, batch.reshape(microbatches, -1, batch.shape[1]), config)
    assert tuple(numbers) == METRICS
    assert jax.tree.map(float, beside) == pytest.approx(numbers, rel=1e-5)
    assert float(loss) == pytest.approx(numbers["cross_entropy"] + numbers["z_loss"], rel=1e-5)


def of_logits(model, batch, z_loss, config):
    """Each number from its definition, in float64."""
    hidden = np.asarray(hidden_states(model, batch[:, :-1]), np.float64)
    counted = batch[:, :-1] != config.end
    logits, labels = (hidden @ np.asarray(model.kernel, np.float64))[counted], batch[:, 1:][counted]
    z = np.logaddexp.reduce(logits, axis=-1)
    log_probability = logits - z[:, None]
    own = np.take_along_axis(log_probability, labels[:, None], axis=-1)
    rank = np.sum(log_probability > own, axis=-1)
    return {
        "cross_entropy": -np.mean(own),
        "z_loss": z_loss * np.mean(z**2),
        "accuracy": np.mean(rank == 0),
        "top_5_accuracy": np.mean(rank < 5),
        "entropy": -np.mean(np.sum(np.exp(log_probability) * log_probability, axis=-1)),
    }


# Three steps of each baseline are compared below.
@pytest.mark.parametrize(
    ("route", "tied"),
    [
        ("optax", False),
        *slow(("unlogged", True), ("unlogged", False), ("logits", True), ("logits", False), ("optax", True)),
    ],
)
def test_routes_agree(text, route, tied):
    config, model, batch = case(text, z_loss=1e-3, tied=tied)
    assert (model.head is None) == tied
    (loss, _), gradient = mean_loss_and_gradient(model, batch[None], config)
    config = dataclasses.replace(config, loss=route)
    (other, beside), other_gradient = mean_loss_and_gradient(model, batch[None], config)
    near((other, other_gradient), (loss, gradient), TERMS)
    assert beside == {}


@pytest.mark.parametrize("route", ["fused", *slow("unlogged", "logits", "optax")])
def test_bfloat16_is_near_and_its_parameters_stay_float32(text, route):
    config, model, batch = case(text, loss=route, z_loss=1e-3)
    (expected, _), _ = mean_loss_and_gradient(model, batch[None], config)
    config = dataclasses.replace(config, compute="bfloat16")
    with jax.numpy_dtype_promotion("standard"):  # which jax.nn.dot_product_attention needs
        (actual, _), gradient = mean_loss_and_gradient(model, batch[None], config)
    np.testing.assert_allclose(actual, expected, rtol=0.02)
    assert actual.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def test_a_batch_of_nothing_but_ends_has_loss_0(text):
    config, model, batch = case(text, z_loss=1e-3)
    (loss, beside), gradient = mean_loss_and_gradient(model, np.full_like(batch[None], config.end), config)
    assert {float(number) for number in (loss, *beside.values())} == {0.0}
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("route", ["fused", *slow("unlogged", "logits", "optax")])
def test_a_fused_step_of_the_default_size_never_holds_the_logits(route):
    config = dataclasses.replace(default_config(), loss=route)
    logits = config.batch_size * config.sequence_length * config.vocabulary
    state = jax.eval_shape(program.initial_state, config)
    batch = jax.ShapeDtypeStruct((1, config.batch_size, config.sequence_length + 1), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda state, batch: program.train_step(state, {"tokens": batch}, config))(state, batch)
    largest = max(variable.aval.size for eqn in equations(jaxpr) for variable in eqn.outvars)
    assert (largest < logits) == (route in ("fused", "unlogged"))


def test_the_model_does_not_see_what_comes_after(text):
    config, model, batch = case(text, layers=2)
    changed = np.array(batch[0, :-1])
    changed[9] = (changed[9] + 1) % config.end
    before, after = np.asarray(hidden_states(model, np.stack([batch[0, :-1], changed])))
    np.testing.assert_array_equal(before[:9], after[:9])
    assert np.all(np.any(before[9:] != after[9:], axis=-1))


def test_the_model_tells_orders_apart(text):
    """Without positions, the last token would see the others as a set."""
    _, model, batch = case(text, layers=2)
    row = np.array(batch[0, :-1])
    swapped = row.copy()
    swapped[[2, 5]] = row[[5, 2]]
    before, after = hidden_states(model, np.stack([row, swapped]))
    assert not np.allclose(before[-1], after[-1], rtol=1e-4)


def test_the_routes_are_compared(text, tmp_path, capsys):
    words = options(tmp_path / "none", text)
    keys = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    settings = dataclasses.asdict(default_config()) | dict(zip(keys, words[1::2], strict=True))
    kinds = {field.name: field.type for field in dataclasses.fields(default_config())}
    numbers = {k: kinds[k](v) if kinds[k] in (int, float) else v for k, v in settings.items()}
    path = tmp_path / "tiny.toml"
    written = {k: str(v).lower() if isinstance(v, bool | int | float) else f"'{v}'" for k, v in numbers.items()}
    path.write_text("".join(f"{k} = {v}\n" for k, v in written.items()))
    output = tmp_path / "results"
    assert compare_lm_routes.main(["--configs", str(path), "--rounds", "3", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {route} |" in printed for route in ROUTES)
    assert matplotlib.image.imread(output / "lm-routes-cpu.png").shape[0] > 300
    assert "70% prompt" in printed
    results = compare_lm_routes.json.loads((output / "lm-routes-cpu.json").read_text())
    assert [case["prompt_fraction"] for case in results["cases"]] == [0.0, 0.7]
    assert max(map(routes_report.largest_difference, results["cases"])) < 1e-4
    for route in (route for case in results["cases"] for route in case["routes"].values()):
        assert len(route["losses"]) == 5
        assert route["losses"][-1] < route["losses"][0]
        assert route["temporary_bytes"] > 0
