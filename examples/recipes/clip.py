"""Train CLIP: match images with their texts against all other pairs of all devices (InfoNCE).

Use this for contrastive learning with a large global batch. `softjax.linear_cross_entropy` takes the text embeddings as
the kernel for the images, and the image embeddings as the kernel for the texts. Each of the two losses costs three
matmuls with its gradients. The `[pairs, pairs]` similarities are never materialised. softjax reads from the arrays how
the pairs are sharded over devices.

Source: Radford et al. 2021, arXiv:2103.00020.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

PAIRS = 512
IMAGE_FEATURES = 64
TEXT_FEATURES = 48
EMBEDDING = 16
MAX_SCALE = 100

# Synthetic data: image and text are two noisy linear views of the same latent vector.
keys = jax.random.split(jax.random.key(0), 7)
latent = jax.random.normal(keys[0], (PAIRS, EMBEDDING))
image_view = jax.random.normal(keys[1], (EMBEDDING, IMAGE_FEATURES))
text_view = jax.random.normal(keys[2], (EMBEDDING, TEXT_FEATURES))
images = latent @ image_view + jax.random.normal(keys[3], (PAIRS, IMAGE_FEATURES))
texts = latent @ text_view + jax.random.normal(keys[4], (PAIRS, TEXT_FEATURES))
labels = jnp.arange(PAIRS)  # image i belongs to text i

params = {
    "image": 0.1 * jax.random.normal(keys[5], (IMAGE_FEATURES, EMBEDDING)),
    "text": 0.1 * jax.random.normal(keys[6], (TEXT_FEATURES, EMBEDDING)),
    "log_scale": jnp.log(1 / 0.07),
}

# Shard the pairs over all devices and replicate the parameters.
mesh = jax.make_mesh((jax.device_count(),), ("data",))
batch = jax.device_put((images, texts, labels), NamedSharding(mesh, P("data")))
params = jax.device_put(params, NamedSharding(mesh, P()))


def normalize(embeddings: jax.Array) -> jax.Array:
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


def loss_fn(params, images: jax.Array, texts: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean of the image-to-text and the text-to-image loss, in nats per pair.

    The logits are scale · cos(image i, text j). The default base, 10, would give hartleys.
    """
    image_embeddings = normalize(images @ params["image"])
    text_embeddings = normalize(texts @ params["text"])
    scale = jnp.exp(jnp.minimum(params["log_scale"], math.log(MAX_SCALE)))
    image_to_text = softjax.linear_cross_entropy(scale * image_embeddings, text_embeddings.T, labels, base=math.e)
    text_to_image = softjax.linear_cross_entropy(scale * text_embeddings, image_embeddings.T, labels, base=math.e)
    return (image_to_text + text_to_image) / 2


optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, images, texts, labels):
    loss, gradients = jax.value_and_grad(loss_fn)(params, images, texts, labels)
    updates, opt_state = optimiser.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss


for step in range(61):
    params, opt_state, loss = train_step(params, opt_state, *batch)
    if step % 20 == 0:
        temperature = jnp.exp(-params["log_scale"])
        print(f"step {step:2}: loss {loss:.3f} nats per pair, temperature {temperature:.4f}")
