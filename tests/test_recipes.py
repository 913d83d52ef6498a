"""Each recipe, copied to an empty folder and run there: what it prints is so, and its loss is that of the plain way."""

import os
import subprocess
import sys

import copied
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from copied import falls, nats, same_with_gradient
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

RECIPES = sorted((copied.EXAMPLES / "recipes").glob("*.py"))
BESIDE = {"equinox_head": {"equinox"}, "flax_linen_head": {"flax"}, "flax_nnx_head": {"flax"}}
LN256 = np.log(256)


@pytest.fixture
def recipe(request, tmp_path):
    """What the recipe that a test is named for prints, and the names that it leaves."""
    name = request.node.originalname.removeprefix("test_")
    return copied.run(copied.EXAMPLES / "recipes" / f"{name}.py", tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_pasted(path):
    assert copied.lines(path) <= 60
    libraries = copied.imported(path) - sys.stdlib_module_names
    assert "softjax" in libraries
    assert libraries <= {"jax", "optax", "softjax"} | BESIDE.get(path.stem, set())
    assert f"test_{path.stem}" in globals()


def test_flax_nnx_head(recipe):
    printed, names = recipe
    (losses, right), labels = copied.numbers(printed), names["targets"]
    falls(losses, LN256, 0.02)
    assert right == [1]
    graph, state = nnx.split(nnx.clone(names["Model"](256, 64, rngs=nnx.Rngs(1))))

    def ours(state):
        return names["loss"](nnx.merge(graph, state), names["inputs"], labels)

    same_with_gradient(ours, lambda state: nats(nnx.merge(graph, state)(names["inputs"]), labels).mean(), state)


def test_flax_linen_head(recipe):
    printed, names = recipe
    falls(*copied.numbers(printed), LN256, 0.02)
    params = names["model"].init(jax.random.key(2), names["inputs"])["params"]

    def plain(params, x, y):
        return nats(names["model"].apply({"params": params}, x), y).mean()

    same_with_gradient(names["loss"], plain, params, names["inputs"], names["targets"])


def test_equinox_head(recipe):
    printed, names = recipe
    falls(*copied.numbers(printed), LN256, 0.02)

    def plain(model, x, y):
        return nats(jax.vmap(jax.vmap(lambda token: model.head(model.hidden(token))))(x), y).mean()

    model = names["Model"](256, 64, jax.random.key(2))
    same_with_gradient(names["loss"], plain, model, names["inputs"], names["targets"])


@pytest.mark.slow
def test_tied_embeddings(recipe):
    printed, names = recipe
    (*ours, memory), (*plain, memory_of_logits) = copied.numbers(printed)
    assert ours == plain
    falls(ours, np.log(names["VOCABULARY"]), 6)
    assert memory < memory_of_logits / 3
    assert memory_of_logits > 2 * 4e-6 * names["inputs"].size * names["VOCABULARY"]  # logits and their gradient


def test_microbatches(recipe):
    printed, names = recipe
    for _, loss, at_once, means in copied.numbers(printed):
        assert loss == at_once
        assert abs(loss - means) > 0.005
    falls([line[1] for line in copied.numbers(printed)], LN256, 0.2)

    @jax.value_and_grad
    def expected(params, x, labels):
        losses = nats(jax.nn.gelu(x @ params["layer"]) @ params["head"], jnp.maximum(labels, 0))
        return jnp.mean(losses, where=labels >= 0)

    args = names["params"], names["x"], names["labels"]

    def close(a, b):
        return np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    jax.tree.map(close, names["accumulated"](*args), expected(*args))


def test_policy_gradient(recipe):
    printed, names = recipe
    _, reward, entropy, _ = np.transpose(copied.numbers(printed))
    assert reward[0] < 0.1 < 0.9 < reward[-1]
    falls(entropy, np.log(names["VOCABULARY"]), 0.2)

    def expected(params, tokens, advantages, old, mask, clip=0.2):
        log_q = jax.nn.log_softmax(names["hidden"](params) @ params["head"])
        ratio = jnp.exp(jnp.take_along_axis(log_q, tokens[..., None], axis=-1)[..., 0] - old)
        entropy = -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
        gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
        clipped = (ratio < 0.8) | (ratio > 1.2)
        return jnp.mean(-gain - 0.01 * entropy, where=mask), [jnp.mean(a, where=mask) for a in (entropy, clipped)]

    params = {k: 0.3 * jax.random.normal(jax.random.key(9), a.shape) for k, a in names["params"].items()}
    _, (tokens, advantages, old, mask) = names["rollout"](params, jax.random.key(0))
    old = old + 0.3 * jax.random.normal(jax.random.key(1), old.shape)  # those of another policy
    args = params, tokens, advantages, old, mask
    actual, wanted = (jax.value_and_grad(f, has_aux=True)(*args) for f in (names["loss"], expected))
    assert 0.2 < wanted[0][1][1] < 0.8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, wanted)
    assert 0 < np.mean(mask) < 1
    for row, kept in zip(np.asarray(tokens), np.asarray(mask), strict=True):
        end = (*row, names["EOS"]).index(names["EOS"])
        assert kept.tolist() == [i <= end for i in range(names["LENGTH"])]
    wants = np.asarray(tokens) == np.asarray(names["prompts"])[:, None] + 1
    rewards = np.mean(wants & np.asarray(mask), 1).reshape(names["PROMPTS"], names["GROUP"])
    shifted = rewards - rewards.mean(1, keepdims=True)
    standard = shifted / np.sqrt(rewards.var(1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(advantages[:, 0].reshape(standard.shape), standard, rtol=2e-3, atol=1e-3)


@pytest.mark.slow
def test_dpo(recipe):
    printed, names = recipe
    _, losses, preferred = np.transpose(copied.numbers(printed))
    falls(losses, np.log(2), 0.1)
    assert preferred[0] == 0  # equal to the reference, it prefers none
    assert preferred[-1] == 1

    def log_probability(params, tokens, mask):
        x = params["embedding"][tokens[:, :-1]]
        logits = (x + jax.nn.gelu(x @ params["layer"])) @ params["head"]
        return jnp.sum(jnp.where(mask[:, 1:], -nats(logits, tokens[:, 1:]), 0), axis=1)

    def expected(params, reference, tokens, mask):
        chosen, rejected = (log_probability(params, tokens[i], mask[i]) - reference[i] for i in (0, 1))
        return -jnp.mean(jax.nn.log_sigmoid(0.1 * (chosen - rejected)))

    tokens, mask = names["pairs"](jax.random.key(5), 7)
    assert np.all(np.asarray(tokens[0, :, :4]) == np.asarray(tokens[1, :, :4]))  # the same prompts
    assert len(set(mask.sum(axis=2).ravel().tolist())) > 2  # answers of unequal lengths
    params = {
        k: 0.5 * jax.random.normal(jax.random.key(i), a.shape) for i, (k, a) in enumerate(names["params"].items())
    }
    reference = jnp.stack([log_probability(params, tokens[i], mask[i]) for i in (0, 1)])
    moved = jax.tree.map(lambda a: a + 0.1, params)

    def ours(*args):
        return names["loss"](*args)[0]

    same_with_gradient(ours, expected, moved, reference, tokens, mask, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_clip(recipe, tmp_path):
    printed, names = recipe
    _, losses, temperatures = np.transpose(copied.numbers(printed))
    assert losses[-1] < 0.2 < np.log(names["PAIRS"]) < losses[0]
    np.testing.assert_allclose(temperatures[0], 0.07, rtol=0.02)

    whole = NamedSharding(names["mesh"], P())

    def expected(params, images, texts, labels):
        images, texts = (jax.sharding.reshard(x, whole) for x in (images, texts))  # whole on each device
        u, v = (
            x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (images @ params["image"], texts @ params["text"])
        )
        logits = jnp.minimum(jnp.exp(params["log_scale"]), 100) * (u @ v.T)
        each = jnp.diagonal(jax.nn.log_softmax(logits, axis=0)) + jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
        return -jnp.mean(each) / 2

    same_with_gradient(names["loss"], expected, names["params"], *names["batch"], rtol=1e-4)
    untrained = {k: jax.random.normal(jax.random.key(8), a.shape) for k, a in names["params"].items()}
    untrained["log_scale"] = jnp.array(4.7)  # beyond ln 100
    same_with_gradient(names["loss"], expected, jax.device_put(untrained, whole), *names["batch"], rtol=1e-4, atol=1e-4)

    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    code = "names = __import__('runpy').run_path('clip.py'); print(len(names['batch'][0].devices()))"
    environment = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    *on_eight, devices = copied.numbers(done.stdout)
    assert devices == [8]
    np.testing.assert_allclose(on_eight, copied.numbers(printed), rtol=0, atol=2e-3)


def test_multi_token_prediction(recipe):
    printed, names = recipe
    for _, loss, *heads in copied.numbers(printed):
        np.testing.assert_allclose(loss, np.dot([1, 0.15, 0.15], heads), atol=2e-3)
    falls([line[1] for line in copied.numbers(printed)], 1.3 * LN256, 0.05)

    def expected(params, tokens):
        total, trunk = jnp.zeros(()), params["embedding"][tokens]
        for k, share in ((1, 1.0), (2, 0.15), (3, 0.15)):
            hidden = (trunk + jax.nn.gelu(trunk @ params["heads"][k - 1]))[:, :-k]
            total += share * nats(hidden @ params["kernel"], tokens[:, k:]).mean()
        return total

    def ours(*args):
        return names["loss"](*args)[0]

    params = {k: 0.2 * jax.random.normal(jax.random.key(7), a.shape) for k, a in names["params"].items()}
    same_with_gradient(ours, expected, params, names["tokens"])


@pytest.mark.slow
def test_lora_head(recipe):
    printed, names = recipe
    _, losses, merged = np.transpose(copied.numbers(printed))
    np.testing.assert_allclose(losses, merged, atol=0.005)
    args = names["kernel"], names["hidden"], names["labels"]
    logits = names["hidden"].astype(jnp.float32) @ names["kernel"].astype(jnp.float32)
    falls(losses, nats(logits, names["labels"]).mean(), 1)
    kernel, hidden = (a.astype(jnp.float32) for a in args[:2])  # without the roundings of bfloat16
    adapter = names["adapter"] | {"up": 0.1 * names["adapter"]["up"]}
    same_with_gradient(names["loss"], names["merged"], adapter, kernel, hidden, args[2], rtol=1e-4, atol=1e-5)


def test_sequence_packing(recipe):
    printed, names = recipe
    (packed, apart), *steps = copied.numbers(printed)
    assert packed < apart == len(names["documents"])
    for _, loss, of_documents in steps:
        np.testing.assert_allclose(loss, of_documents, atol=1.1e-4)
    falls([line[1] for line in steps], np.log(names["VOCABULARY"]), 0.3)
    w = {name: np.asarray(array, np.float64) for name, array in names["params"].items()}
    losses = []
    for document in names["documents"]:  # each by itself, and nothing after a token
        x = w["embedding"][document] + w["position"][: len(document)]
        scores = (x @ w["query"]) @ (x @ w["key"]).T / np.sqrt(x.shape[1])
        attention = np.exp(scores) * np.tri(len(document))
        hidden = x + attention / attention.sum(1, keepdims=True) @ (x @ w["value"])
        logits = (hidden @ w["head"])[:-1]
        losses.extend(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), document[1:]])
    np.testing.assert_allclose(names["loss"](names["params"], *names["batch"]), np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_margin_softmax(recipe):
    printed, names = recipe
    (_, own, other, _), (_, own_of_margin, _, apart_of_margin) = copied.numbers(printed)
    assert own_of_margin < 0.8 * own
    assert apart_of_margin > 1.2 * (other - own)

    def expected(params, x, labels, margin):
        kernel = params["kernel"] / jnp.linalg.norm(params["kernel"], axis=0, keepdims=True)
        cosines = names["embed"](params, x) @ kernel
        own = jax.nn.one_hot(labels, names["CLASSES"], dtype=bool)
        return nats(64 * jnp.where(own, jnp.cos(jnp.arccos(cosines) + margin), cosines), labels).mean()

    same_with_gradient(names["loss"], expected, names["params"], *names["test"], 0.5, rtol=1e-4)


def test_smoothing_schedule(recipe):
    printed, names = recipe
    assert printed.count("compiled") == 1
    first, *steps = printed.splitlines()
    assert first == "compiled"
    step, epsilon, losses, plain = np.transpose(copied.numbers("\n".join(steps)))
    np.testing.assert_allclose(epsilon, 0.1 * (1 - np.clip((step - 10) / 50, 0, 1)), atol=6e-4)
    assert np.all(losses[:-1] > plain[:-1])
    assert losses[-1] == plain[-1]
    falls(plain, np.log(10), 0.1)

    def expected(params, x, labels, epsilon):
        target = optax.smooth_labels(jax.nn.one_hot(labels, 10), epsilon)
        logits = jax.nn.gelu(x @ params["layer"]) @ params["head"]
        return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1).mean()

    same_with_gradient(names["loss"], expected, names["params"], names["x"], names["labels"], 0.13)


def test_evaluation(recipe):
    printed, names = recipe
    before, after = copied.numbers(printed)
    logits, labels = np.asarray(names["logits"], np.float64), np.asarray(names["labels"])
    assert len(labels) % names["BATCH"]  # the last batch is not full
    for temperature, *shown in ([1, *before[1:]], [float(names["temperature"]), *after[1:]]):
        q = np.exp(logits / temperature)
        q /= q.sum(1, keepdims=True)
        order, confidence = np.argsort(-q, axis=1), q.max(1)
        hit, top = order[:, 0] == labels, (order[:, :3] == labels[:, None]).any(1)
        bins = np.ceil(confidence * 15)
        error = sum(abs(np.sum((hit - confidence)[bins == b])) for b in range(1, 16)) / len(labels)
        of_label = q[np.arange(len(labels)), labels]
        perplexity = np.exp(-np.log(of_label).mean())
        np.testing.assert_allclose(shown, [perplexity, hit.mean(), 3, top.mean(), error], atol=1e-3)
    np.testing.assert_allclose(names["temperature"], 4, rtol=0.1)  # the logits are four times too large
    assert after[-1] < before[-1] / 4
