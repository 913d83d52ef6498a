"""Train embeddings of faces, speakers or products with ArcFace: softmax with an angular margin.

Use this when embeddings of classes unseen in training will be compared by their angle. Embeddings and class vectors
have length 1, so a logit is scale · cos θ. ArcFace changes the label's logit to scale · cos(θ + margin).
`softjax.losses.angular_margin` computes this loss from row statistics. `softjax.linear_loss` applies it to a layer in
three matmuls, gradients included, without materialising the logits.

Source: Deng et al. 2019, arXiv:1801.07698. Use `additive_margin` for CosFace (Wang et al. 2018, arXiv:1801.09414).
"""

import jax
import jax.numpy as jnp
import optax

import softjax

CLASSES = 100
INPUTS = 64
HIDDEN = 128
EMBEDDING = 16
SCALE = 64
TEST_SAMPLES = 500

# Synthetic data: one Gaussian cluster per class.
centre_key, noise_key = jax.random.split(jax.random.key(0))
centres = jax.random.normal(centre_key, (CLASSES, INPUTS))
labels = jnp.arange(2500) % CLASSES
inputs = centres[labels] + 0.4 * jax.random.normal(noise_key, (2500, INPUTS))
test_inputs, test_labels = inputs[:TEST_SAMPLES], labels[:TEST_SAMPLES]
train_inputs, train_labels = inputs[TEST_SAMPLES:], labels[TEST_SAMPLES:]

layer_key, embed_key, classes_key = jax.random.split(jax.random.key(1), 3)
initial_params = {
    "layer": 0.1 * jax.random.normal(layer_key, (INPUTS, HIDDEN)),
    "embed": 0.1 * jax.random.normal(embed_key, (HIDDEN, EMBEDDING)),
    "classes": 0.1 * jax.random.normal(classes_key, (EMBEDDING, CLASSES)),
}


def normalize(vectors: jax.Array, axis: int) -> jax.Array:
    return vectors / jnp.linalg.norm(vectors, axis=axis, keepdims=True)


def embed(params, inputs: jax.Array) -> jax.Array:
    """Returns embeddings of length 1."""
    return normalize(jax.nn.gelu(inputs @ params["layer"]) @ params["embed"], axis=-1)


def loss_fn(params, inputs: jax.Array, labels: jax.Array, margin: jax.Array) -> jax.Array:
    """Returns the mean ArcFace loss in nats per sample. `margin` is in radians."""

    def arcface(statistics: softjax.Statistics) -> jax.Array:
        return softjax.losses.angular_margin(statistics, margin=margin, scale=SCALE)

    hidden = SCALE * embed(params, inputs)
    class_vectors = normalize(params["classes"], axis=0)
    return softjax.linear_loss(arcface, hidden, class_vectors, labels, reduction="mean")


optimiser = optax.adam(learning_rate=3e-3)


@jax.jit
def train_step(params, opt_state, inputs, labels, margin):
    loss, gradients = jax.value_and_grad(loss_fn)(params, inputs, labels, margin)
    updates, opt_state = optimiser.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss


@jax.jit
def mean_angles(params, inputs: jax.Array, labels: jax.Array):
    """Returns the mean angle to the own class and to the nearest other class, in degrees."""
    cosines = embed(params, inputs) @ normalize(params["classes"], axis=0)
    angles = jnp.rad2deg(jnp.arccos(jnp.clip(cosines, -1, 1)))
    is_own_class = jax.nn.one_hot(labels, CLASSES, dtype=bool)
    own = jnp.mean(angles, where=is_own_class)
    nearest_other = jnp.min(angles, axis=-1, where=~is_own_class, initial=180)
    return own, jnp.mean(nearest_other)


for margin in (0.0, 0.5):
    params = initial_params
    opt_state = optimiser.init(params)
    for _ in range(100):
        params, opt_state, loss = train_step(params, opt_state, train_inputs, train_labels, margin)
    own, other = mean_angles(params, test_inputs, test_labels)
    print(f"margin {margin} radians: own class at {own:.1f}°, nearest other class at {other:.1f}°")
