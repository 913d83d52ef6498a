"""Recipes: each runs alone in an empty folder, prints true results, and has the loss of a formula on dense logits."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from copied import (
    EXAMPLES,
    assert_loss_falls,
    assert_same_value_and_gradient,
    dense_nats,
    imported_packages,
    line_count,
    printed_numbers,
    random_like,
    run_alone,
)
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

RECIPES = sorted((EXAMPLES / "recipes").glob("*.py"))
FURTHER_PACKAGES = {"equinox_head": {"equinox"}, "flax_linen_head": {"flax"}, "flax_nnx_head": {"flax"}}
LN_256 = np.log(256)  # nats of a guess among 256 classes


@pytest.fixture
def recipe(request, tmp_path):
    """Runs the recipe that the test is named for. Returns its output and its module-level names."""
    name = request.node.originalname.removeprefix("test_")
    return run_alone(EXAMPLES / "recipes" / f"{name}.py", tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_copied(path):
    assert line_count(path) <= 150
    packages = imported_packages(path) - sys.stdlib_module_names
    assert "softjax" in packages
    assert packages <= {"jax", "optax", "softjax"} | FURTHER_PACKAGES.get(path.stem, set())
    assert f"test_{path.stem}" in globals()


def test_flax_nnx_head(recipe):
    output, module = recipe
    *training, accuracy = printed_numbers(output)
    assert_loss_falls([loss for _, loss in training], LN_256, below=0.02)
    assert accuracy == [1]

    def of_state(loss_fn):
        return lambda state, inputs, targets: loss_fn(nnx.merge(graph, state), inputs, targets)

    def dense_loss_fn(model, inputs, targets):
        return dense_nats(model(inputs), targets).mean()

    graph, state = nnx.split(module.LanguageModel(256, 64, rngs=nnx.Rngs(1)))
    data = module.inputs, module.targets
    assert_same_value_and_gradient(of_state(module.loss_fn), of_state(dense_loss_fn), state, *data)


def test_flax_linen_head(recipe):
    output, module = recipe
    assert_loss_falls([loss for _, loss in printed_numbers(output)], LN_256, below=0.02)

    def dense_loss_fn(params, inputs, targets):
        return dense_nats(module.model.apply({"params": params}, inputs), targets).mean()

    params = random_like(module.params, seed=0, scale=0.2)
    assert_same_value_and_gradient(module.loss_fn, dense_loss_fn, params, module.inputs, module.targets)


def test_equinox_head(recipe):
    output, module = recipe
    assert_loss_falls([loss for _, loss in printed_numbers(output)], LN_256, below=0.02)

    def dense_loss_fn(model, inputs, targets):
        return dense_nats(jax.vmap(jax.vmap(model))(inputs), targets).mean()

    model = random_like(module.model, seed=0, scale=0.2)
    assert_same_value_and_gradient(module.loss_fn, dense_loss_fn, model, module.inputs, module.targets)


@pytest.mark.slow
def test_tied_embeddings(recipe):
    output, module = recipe
    (*fused_losses, fused_megabytes), (*unfused_losses, unfused_megabytes) = printed_numbers(output)
    assert fused_losses == unfused_losses
    assert_loss_falls(fused_losses, np.log(module.VOCABULARY), below=6)
    logits_megabytes = 4e-6 * module.inputs.size * module.VOCABULARY
    assert unfused_megabytes > 2 * logits_megabytes  # the logits and their gradient
    assert fused_megabytes < unfused_megabytes / 3


def test_microbatches(recipe):
    output, module = recipe
    _, accumulated, in_one_piece, mean_of_means = np.transpose(printed_numbers(output))
    np.testing.assert_array_equal(accumulated, in_one_piece)
    assert np.all(np.abs(accumulated - mean_of_means) > 0.005)
    assert_loss_falls(accumulated, LN_256, below=0.2)

    def dense_loss_fn(params, inputs, labels):
        logits = jax.nn.gelu(inputs @ params["layer"]) @ params["head"]
        return jnp.mean(dense_nats(logits, jnp.maximum(labels, 0)), where=labels >= 0)

    @jax.jit
    def actual_and_expected(*args):
        return module.accumulated_value_and_grad(*args), jax.value_and_grad(dense_loss_fn)(*args)

    actual, expected = actual_and_expected(module.params, module.inputs, module.labels)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)


@pytest.mark.slow
def test_policy_gradient(recipe):
    output, module = recipe
    algorithms = ("grpo", "dapo", "dr_grpo", "cispo", "sapo", "gspo")
    assert [line.split(":")[0].strip() for line in output.splitlines()] == list(algorithms)
    for first, last, _ in printed_numbers(output):
        assert first < 0.1
        assert last > 0.6

    # The mask keeps each completion up to its first end-of-sequence token, and that token.
    params = random_like(module.initial_params, seed=0, scale=0.3)
    _, batch = module.rollout(params, jax.random.key(0))
    tokens, mask = np.asarray(batch["tokens"]), np.asarray(batch["mask"])
    assert 0 < np.mean(mask) < 1
    for completion, kept in zip(tokens.tolist(), mask.tolist(), strict=True):
        end = [*completion, module.END_OF_SEQUENCE].index(module.END_OF_SEQUENCE)
        assert kept == [position <= end for position in range(module.LENGTH)]

    # The advantages are the rewards, standardised within the completions of each prompt.
    wanted = tokens == np.asarray(module.prompt_ids)[:, None] + 1
    rewards = np.mean(wanted & mask, axis=1).reshape(module.PROMPTS, module.COMPLETIONS)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(batch["centred"], centred.ravel(), atol=1e-6)
    standardised = centred / (rewards.std(axis=1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(batch["advantages"], standardised.ravel(), rtol=1e-4, atol=1e-5)

    # The formula of each paper on dense logits, for a policy that differs from the one which sampled the tokens.
    batch["old"] += random_like(batch["old"], seed=1, scale=0.3)

    def formula(algorithm):
        def loss(params, batch):
            log_q = jax.nn.log_softmax(module.hidden_states(params) @ params["head"] / 1.2)
            log_p = jnp.take_along_axis(log_q, batch["tokens"][..., None], axis=-1)[..., 0]
            ratio = jnp.exp(log_p - batch["old"])
            d = batch["reference"] - log_p
            penalty = 1e-3 * (jnp.exp(d) - d - 1)
            weight = batch["mask"].astype(jnp.float32)
            length = weight.sum(1)
            advantage = batch["centred" if algorithm == "dr_grpo" else "advantages"][:, None]
            if algorithm == "gspo":
                ratio = jnp.exp(((log_p - batch["old"]) * weight).sum(1) / length)
                advantage = advantage[:, 0]
                return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.97, 1.04) * advantage).mean()
            high = 1.28 if algorithm == "dapo" else 1.2
            gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, high) * advantage)
            if algorithm == "cispo":
                gain = jax.lax.stop_gradient(jnp.minimum(ratio, 1.28)) * advantage * log_p
            if algorithm == "sapo":
                tau = jnp.where(advantage > 0, 1.0, 1.05)
                gain = advantage * 4 / tau / (1 + jnp.exp(-tau * (ratio - 1)))
            of_token = (penalty - gain) * weight
            if algorithm in ("grpo", "sapo"):
                return (of_token.sum(1) / length).mean()
            return of_token.sum() / (weight.size if algorithm == "dr_grpo" else weight.sum())

        return loss

    for algorithm in algorithms:

        def recipe_loss(params, batch, algorithm=algorithm):
            return module.loss_fn(params, batch, algorithm)[0]

        assert_same_value_and_gradient(recipe_loss, formula(algorithm), params, batch, rtol=1e-4, atol=1e-6)
    metrics = module.loss_fn(params, batch, "grpo")[1]
    assert 0.2 < metrics["clipped"] < 0.8
    assert 0 < metrics["entropy"] < np.log(module.VOCABULARY)


def test_sampling_mask(recipe):
    output, module = recipe
    (kept,), (in_set, of_all), (low, high) = printed_numbers(output)
    assert 2 < kept < module.LARGEST_SET
    assert of_all < in_set < 0
    assert low < 1 < high

    def dense_loss(kernel, hidden):
        x = hidden @ kernel / 0.8
        in_set = (jnp.arange(module.VOCABULARY)[None, None] == module.ids[..., None]).any(1)
        log_q = jax.nn.log_softmax(jnp.where(in_set, x, -jnp.inf))
        log_p = jnp.take_along_axis(log_q, module.tokens[:, None], axis=-1)[:, 0]
        return jnp.sum(jnp.where(jnp.arange(len(log_p)) % 3 == 0, log_p, 0))

    def recipe_loss(kernel, hidden):
        log_p = module.truncated_log_probabilities(hidden, kernel, module.tokens, module.ids)
        return jnp.sum(jnp.where(jnp.arange(len(log_p)) % 3 == 0, log_p, 0))

    assert_same_value_and_gradient(recipe_loss, dense_loss, module.kernel, module.hidden, rtol=1e-4, atol=1e-5)
    assert (module.ids == module.tokens[:, None]).any(1).all()  # each token is in its set


@pytest.mark.slow
def test_dpo(recipe):
    output, module = recipe
    _, losses, preferred = np.transpose(printed_numbers(output))
    assert_loss_falls(losses, np.log(2), below=0.1)
    assert preferred[0] == 0  # the policy equals the reference: all margins are 0
    assert preferred[-1] == 1

    def dense_log_probability(params, tokens, is_answer):
        embedded = params["embedding"][tokens[:, :-1]]
        logits = (embedded + jax.nn.gelu(embedded @ params["layer"])) @ params["head"]
        token_nats = dense_nats(logits, tokens[:, 1:])
        return -jnp.sum(token_nats, axis=1, where=is_answer[:, 1:])

    def dense_loss_fn(params, tokens, is_answer, reference):
        chosen = dense_log_probability(params, tokens[0], is_answer[0]) - reference[0]
        rejected = dense_log_probability(params, tokens[1], is_answer[1]) - reference[1]
        preferred = jnp.mean(chosen > rejected)
        return -jnp.mean(jax.nn.log_sigmoid(0.1 * (chosen - rejected))), preferred

    tokens, is_answer = module.make_pairs(jax.random.key(5))
    np.testing.assert_array_equal(tokens[0, :, :4], tokens[1, :, :4])  # the same prompts
    answer_lengths = np.sum(is_answer, axis=-1)
    assert len(np.unique(answer_lengths)) > 2

    reference_params = random_like(module.params, seed=0, scale=0.5)
    reference = jnp.stack([dense_log_probability(reference_params, tokens[i], is_answer[i]) for i in (0, 1)])
    params = jax.tree.map(lambda array: array + 0.1, reference_params)
    assert_same_value_and_gradient(
        module.loss_fn, dense_loss_fn, params, tokens, is_answer, reference, has_aux=True, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_clip(recipe, tmp_path):
    output, module = recipe
    _, losses, temperatures = np.transpose(printed_numbers(output))
    assert losses[0] > np.log(module.PAIRS)
    assert losses[-1] < 0.2
    np.testing.assert_allclose(temperatures[0], 0.07, rtol=0.02)

    replicated = NamedSharding(module.mesh, P())

    def normalize(embeddings):
        return embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)

    def dense_loss_fn(params, images, texts, labels):
        images, texts = jax.sharding.reshard(images, replicated), jax.sharding.reshard(texts, replicated)
        cosines = normalize(images @ params["image"]) @ normalize(texts @ params["text"]).T
        logits = jnp.minimum(jnp.exp(params["log_scale"]), 100) * cosines
        image_to_text = -jnp.diagonal(jax.nn.log_softmax(logits, axis=1)).mean()
        text_to_image = -jnp.diagonal(jax.nn.log_softmax(logits, axis=0)).mean()
        return (image_to_text + text_to_image) / 2

    assert_same_value_and_gradient(module.loss_fn, dense_loss_fn, module.params, *module.batch, rtol=1e-4)
    untrained = random_like(module.params, seed=0, scale=1)
    untrained["log_scale"] = jnp.array(4.7)  # above ln 100, where the scale is clipped
    untrained = jax.device_put(untrained, replicated)
    assert_same_value_and_gradient(module.loss_fn, dense_loss_fn, untrained, *module.batch, rtol=1e-4, atol=1e-4)

    # The same recipe on eight simulated devices.
    code = "names = __import__('runpy').run_path('clip.py'); print(len(names['batch'][0].devices()))"
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    command = [sys.executable, "-W", "error", "-c", code]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-2000:]
    *on_eight_devices, device_count = printed_numbers(process.stdout)
    assert device_count == [8]
    np.testing.assert_allclose(on_eight_devices, printed_numbers(output), rtol=0, atol=2e-3)


def test_multi_token_prediction(recipe):
    output, module = recipe
    _, losses, *head_losses = np.transpose(printed_numbers(output))
    np.testing.assert_allclose(losses, np.array([1, 0.15, 0.15]) @ head_losses, atol=2e-3)
    assert_loss_falls(losses, 1.3 * LN_256, below=0.05)

    def dense_loss_fn(params, tokens):
        trunk = params["embedding"][tokens]
        head_losses = []
        for head, shift in enumerate((1, 2, 3)):
            hidden = trunk + jax.nn.gelu(trunk @ params["heads"][head])
            head_losses.append(dense_nats(hidden[:, :-shift] @ params["kernel"], tokens[:, shift:]).mean())
        return head_losses[0] + 0.15 * head_losses[1] + 0.15 * head_losses[2], jnp.stack(head_losses)

    params = random_like(module.params, seed=0, scale=0.2)
    assert_same_value_and_gradient(module.loss_fn, dense_loss_fn, params, module.tokens, has_aux=True)


@pytest.mark.slow
def test_lora_head(recipe):
    output, module = recipe
    _, losses, merged_losses = np.transpose(printed_numbers(output))
    np.testing.assert_allclose(losses, merged_losses, atol=0.005)
    kernel, hidden = module.kernel.astype(jnp.float32), module.hidden.astype(jnp.float32)
    assert_loss_falls(losses, dense_nats(hidden @ kernel, module.labels).mean(), below=1)

    def dense_loss_fn(adapter, kernel, hidden, labels):
        merged_kernel = kernel + 2 * adapter["B"] @ adapter["A"]
        return dense_nats(hidden @ merged_kernel, labels).mean()

    # In float32, so that the rounding to bfloat16 does not hide an error.
    adapter = random_like(module.adapter, seed=0, scale=0.1)
    assert_same_value_and_gradient(
        module.loss_fn, dense_loss_fn, adapter, kernel, hidden, module.labels, rtol=1e-4, atol=1e-5
    )


def test_sequence_packing(recipe):
    output, module = recipe
    (packed_rows, unpacked_rows), *training = printed_numbers(output)
    assert packed_rows < unpacked_rows == len(module.documents)
    _, losses, unpacked_losses = np.transpose(training)
    np.testing.assert_allclose(losses, unpacked_losses, atol=1.1e-4)
    assert_loss_falls(losses, np.log(module.VOCABULARY), below=0.3)

    # Each document by itself, in float64.
    params = {name: np.asarray(array, np.float64) for name, array in module.params.items()}
    token_nats = []
    for document in module.documents:
        embedded = params["embedding"][document] + params["position"][: len(document)]
        query, key, value = np.split(embedded @ params["attention"], 3, axis=-1)
        attention = np.exp(query @ key.T / np.sqrt(module.FEATURES)) * np.tri(len(document))
        attention /= attention.sum(axis=1, keepdims=True)
        logits = (embedded + attention @ value) @ params["head"]
        label_logits = logits[np.arange(len(document) - 1), document[1:]]
        token_nats.extend(np.log(np.sum(np.exp(logits[:-1]), axis=1)) - label_logits)
    loss = module.evaluate(module.params, module.packed)
    np.testing.assert_allclose(loss, np.mean(token_nats), rtol=1e-5)


@pytest.mark.slow
def test_margin_softmax(recipe):
    output, module = recipe
    (_, own, other), (_, own_with_margin, other_with_margin) = printed_numbers(output)
    assert own_with_margin < 0.8 * own
    assert other_with_margin - own_with_margin > 1.2 * (other - own)

    def dense_loss_fn(params, inputs, labels, margin):
        class_vectors = params["classes"] / jnp.linalg.norm(params["classes"], axis=0, keepdims=True)
        cosines = module.embed(params, inputs) @ class_vectors
        is_own_class = jax.nn.one_hot(labels, module.CLASSES, dtype=bool)
        logits = 64 * jnp.where(is_own_class, jnp.cos(jnp.arccos(cosines) + margin), cosines)
        return dense_nats(logits, labels).mean()

    test_data = module.test_inputs, module.test_labels
    assert_same_value_and_gradient(module.loss_fn, dense_loss_fn, module.params, *test_data, 0.5, rtol=1e-4)


def test_smoothing_schedule(recipe):
    output, module = recipe
    first_line, *training = output.splitlines()
    assert first_line == "compiling train_step"
    assert output.count("compiling") == 1
    step, smoothing, losses, unsmoothed_losses = np.transpose(printed_numbers("\n".join(training)))
    np.testing.assert_allclose(smoothing, 0.1 * (1 - np.clip((step - 10) / 50, 0, 1)), atol=6e-4)
    assert np.all(losses[:-1] > unsmoothed_losses[:-1])
    assert losses[-1] == unsmoothed_losses[-1]
    assert_loss_falls(unsmoothed_losses, np.log(10), below=0.1)

    def dense_loss_fn(params, inputs, labels, smoothing):
        target = optax.smooth_labels(jax.nn.one_hot(labels, 10), smoothing)
        logits = jax.nn.gelu(inputs @ params["layer"]) @ params["head"]
        return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1).mean()

    assert_same_value_and_gradient(module.loss_fn, dense_loss_fn, module.params, module.inputs, module.labels, 0.13)


def test_evaluation(recipe):
    output, module = recipe
    before, after = printed_numbers(output)
    logits, labels = np.asarray(module.test_logits, np.float64), np.asarray(module.test_labels)
    assert len(labels) % module.BATCH != 0  # the last batch is padded

    for temperature, (_, *printed) in ((1, before), (float(module.temperature), after)):
        q = np.exp(logits / temperature)
        q /= q.sum(axis=1, keepdims=True)
        label_nats = -np.log(q[np.arange(len(labels)), labels])
        ranking = np.argsort(-q, axis=1)
        correct = ranking[:, 0] == labels
        in_top_3 = np.any(ranking[:, :3] == labels[:, None], axis=1)
        confidence = q.max(axis=1)
        bin_number = np.ceil(confidence * 15)
        bin_errors = [abs(np.sum((correct - confidence)[bin_number == number])) for number in range(1, 16)]
        calibration_error = np.sum(bin_errors) / len(labels)
        expected = [np.exp(label_nats.mean()), correct.mean(), 3, in_top_3.mean(), calibration_error]
        np.testing.assert_allclose(printed, expected, atol=1e-3)

    np.testing.assert_allclose(module.temperature, 4, rtol=0.1)  # the logits are four times too large
    calibration_error_before, calibration_error_after = before[-1], after[-1]
    assert calibration_error_after < calibration_error_before / 4
