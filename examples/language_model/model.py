"""A decoder-only transformer: pre-norm, rotary positions, gated feedforward, embeddings tied to the last layer.

In Equinox, where a model is a pytree of its parameters: `jax.grad`, `jax.lax.scan`, optax and a checkpoint take it as
it stands. It is written for one sequence; `jax.vmap` makes the batch.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
        hidden = 8 * features // 3  # a gate and a value of this width cost what one layer of 4 · features does
        self.heads = heads
        self.attention_norm = eqx.nn.RMSNorm(features, use_bias=False)
        self.attention_in = linear(features, 3 * features, key=keys[0])
        self.attention_out = _scaled(linear(features, features, key=keys[1]), depth)
        self.rotary = eqx.nn.RotaryPositionalEmbedding(features // heads)
        self.feedforward_norm = eqx.nn.RMSNorm(features, use_bias=False)
        self.feedforward_in = linear(features, 2 * hidden, key=keys[2])
        self.feedforward_out = _scaled(linear(hidden, features, key=keys[3]), depth)

    def __call__(self, x: Float[Array, "positions features"]) -> Float[Array, "positions features"]:
        x = x + self.attend(jax.vmap(self.attention_norm)(x))
        return x + self.feed_forward(jax.vmap(self.feedforward_norm)(x))

    def attend(self, x: Float[Array, "positions features"]) -> Float[Array, "positions features"]:
        mixed = jax.vmap(self.attention_in)(x).reshape(len(x), 3, self.heads, -1)
        query, key, value = mixed[:, 0], mixed[:, 1], mixed[:, 2]  # [positions, heads, features of a head]
        heard = jax.nn.dot_product_attention(self.turn(query), self.turn(key), value, is_causal=True)
        return jax.vmap(self.attention_out)(heard.reshape(x.shape))

    def turn(self, x: Float[Array, "positions heads size"]) -> Float[Array, "positions heads size"]:
        # In float32 whatever the type: bfloat16 cannot tell the angles of distant positions apart.
        turned = jax.vmap(self.rotary, in_axes=1, out_axes=1)(x.astype(jnp.float32))
        return turned.astype(x.dtype)

    def feed_forward(self, x: Float[Array, "positions features"]) -> Float[Array, "positions features"]:
        gate, value = jnp.split(jax.vmap(self.feedforward_in)(x), 2, axis=-1)
        return jax.vmap(self.feedforward_out)(jax.nn.silu(gate) * value)


class Transformer(eqx.Module):
    """Tokens to the features from which `kernel` makes the logits of the next token."""

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


def _scaled(linear: eqx.nn.Linear, depth: int) -> eqx.nn.Linear:
    """2 · depth layers add to the residual stream: each begins smaller, so that their sum does not grow with depth."""
    return eqx.tree_at(lambda layer: layer.weight, linear, linear.weight / (2 * depth) ** 0.5)
