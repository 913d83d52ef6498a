"""A decoder-only transformer: pre-norm, rotary positions, gated feedforward, optionally tied embeddings.

It is an Equinox module, a pytree of its parameters: `jax.grad`, `jax.lax.scan`, optax and a checkpoint take it as it
is. It is written for one sequence; `jax.vmap` adds the batch.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from language_model.settings import Config


class Block(eqx.Module):
    attention_norm: eqx.nn.RMSNorm
    attention_in: eqx.nn.Linear
    attention_out: eqx.nn.Linear
    rotary: eqx.nn.RotaryPositionalEmbedding
    feedforward_norm: eqx.nn.RMSNorm
    feedforward_in: eqx.nn.Linear
    feedforward_out: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, features: int, heads: int, depth: int, key: jax.Array):
        keys = jax.random.split(key, 4)
        linear = functools.partial(eqx.nn.Linear, use_bias=False)
        hidden = 8 * features // 3  # with the gate, as many parameters as a layer of width 4 · features
        self.heads = heads
        self.attention_norm = eqx.nn.RMSNorm(features, use_bias=False)
        self.attention_in = linear(features, 3 * features, key=keys[0])
        self.attention_out = _scale_down(linear(features, features, key=keys[1]), depth)
        self.rotary = eqx.nn.RotaryPositionalEmbedding(features // heads)
        self.feedforward_norm = eqx.nn.RMSNorm(features, use_bias=False)
        self.feedforward_in = linear(features, 2 * hidden, key=keys[2])
        self.feedforward_out = _scale_down(linear(hidden, features, key=keys[3]), depth)

    def __call__(self, x: Float[Array, "positions features"]) -> Float[Array, "positions features"]:
        x = x + self.attend(jax.vmap(self.attention_norm)(x))
        return x + self.feed_forward(jax.vmap(self.feedforward_norm)(x))

    def attend(self, x: Float[Array, "positions features"]) -> Float[Array, "positions features"]:
        projected = jax.vmap(self.attention_in)(x).reshape(len(x), 3, self.heads, -1)
        query, key, value = projected[:, 0], projected[:, 1], projected[:, 2]  # [positions, heads, features per head]
        mixed = jax.nn.dot_product_attention(self.rotate(query), self.rotate(key), value, is_causal=True)
        return jax.vmap(self.attention_out)(mixed.reshape(x.shape))

    def rotate(self, x: Float[Array, "positions heads size"]) -> Float[Array, "positions heads size"]:
        # Always in float32: bfloat16 cannot tell the angles of distant positions apart.
        rotated = jax.vmap(self.rotary, in_axes=1, out_axes=1)(x.astype(jnp.float32))
        return rotated.astype(x.dtype)

    def feed_forward(self, x: Float[Array, "positions features"]) -> Float[Array, "positions features"]:
        gate, value = jnp.split(jax.vmap(self.feedforward_in)(x), 2, axis=-1)
        return jax.vmap(self.feedforward_out)(jax.nn.silu(gate) * value)


class Transformer(eqx.Module):
    """Maps tokens to hidden states; hidden @ kernel are the logits of the next tokens."""

    embedding: Float[Array, "vocabulary features"]
    blocks: list[Block]
    norm: eqx.nn.RMSNorm
    head: Float[Array, "features vocabulary"] | None

    def __init__(self, vocabulary: int, features: int, heads: int, layers: int, *, tied: bool, key: jax.Array):
        embedding_key, head_key, *block_keys = jax.random.split(key, 2 + layers)
        self.embedding = 0.02 * jax.random.normal(embedding_key, (vocabulary, features))
        self.blocks = [Block(features, heads, layers, key) for key in block_keys]
        self.norm = eqx.nn.RMSNorm(features, use_bias=False)
        self.head = None if tied else 0.02 * jax.random.normal(head_key, (features, vocabulary))

    def __call__(self, tokens: Int[Array, " positions"]) -> Float[Array, "positions features"]:
        x = self.embedding[tokens]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x)

    @property
    def kernel(self) -> Float[Array, "features vocabulary"]:
        return self.embedding.T if self.head is None else self.head


def hidden_and_kernel(
    model: Transformer, inputs: Int[Array, "sequences positions"], config: Config
) -> tuple[Float[Array, "tokens features"], Float[Array, "features vocabulary"]]:
    """The inputs of the last layer in the dtype of the settings, with one axis for all tokens."""
    model = jax.tree.map(lambda p: p.astype(config.compute_dtype), model)
    hidden = jax.vmap(model)(inputs)
    return hidden.reshape(-1, hidden.shape[-1]), model.kernel


def labels_and_weights(
    tokens: Int[Array, "sequences tokens"], config: Config, active: Bool[Array, "sequences labels"] | None = None
) -> tuple[Int[Array, " tokens"], Bool[Array, " tokens"]]:
    """The next token at each position. Its weight is 0 after the end of a file: another file or padding follows.

    It is also 0 where `active` is False, as for a prompt.
    """
    weights = tokens[:, :-1] != config.end
    weights = weights if active is None else weights & active
    return tokens[:, 1:].reshape(-1), weights.reshape(-1)


def _scale_down(linear: eqx.nn.Linear, depth: int) -> eqx.nn.Linear:
    """2 · depth layers add to the residual stream. Smaller initial weights keep their sum independent of the depth."""
    return eqx.tree_at(lambda layer: layer.weight, linear, linear.weight / (2 * depth) ** 0.5)
