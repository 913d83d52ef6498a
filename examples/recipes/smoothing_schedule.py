"""Lower label smoothing during training by a schedule, without compiling again.

Use this to limit confidence early in training, yet finish with probabilities that are not smoothed.
`softjax.linear_cross_entropy` accepts a traced `label_smoothing`, so ε can follow any optax schedule. The target is
(1 − ε) · one-hot + ε / classes. Smoothing needs no further matmul: value and gradients still cost three.

Source: Szegedy et al. 2016, arXiv:1512.00567.
"""

import math

import jax
import optax

import softjax

STEPS = 60
CLASSES = 10
FEATURES = 32
HIDDEN = 64
SAMPLES = 500

# Synthetic data: one Gaussian cluster per class.
label_key, centre_key, noise_key, layer_key, head_key = jax.random.split(jax.random.key(0), 5)
labels = jax.random.randint(label_key, (SAMPLES,), 0, CLASSES)
centres = jax.random.normal(centre_key, (CLASSES, FEATURES))
inputs = centres[labels] + jax.random.normal(noise_key, (SAMPLES, FEATURES))

params = {
    "layer": 0.1 * jax.random.normal(layer_key, (FEATURES, HIDDEN)),
    "head": 0.1 * jax.random.normal(head_key, (HIDDEN, CLASSES)),
}


def loss_fn(params, inputs: jax.Array, labels: jax.Array, smoothing: jax.Array | float) -> jax.Array:
    """Returns the mean cross-entropy in nats per sample. The default base, 10, would give hartleys."""
    hidden = jax.nn.gelu(inputs @ params["layer"])
    return softjax.linear_cross_entropy(hidden, params["head"], labels, label_smoothing=smoothing, base=math.e)


# ε is 0.1 for 10 steps, then falls linearly to 0 over 50 steps.
smoothing_schedule = optax.linear_schedule(
    init_value=0.1, end_value=0.0, transition_steps=STEPS - 10, transition_begin=10
)
optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, inputs, labels, step):
    print("compiling train_step")  # Python runs this line only when JAX traces the function
    smoothing = smoothing_schedule(step)
    loss, gradients = jax.value_and_grad(loss_fn)(params, inputs, labels, smoothing)
    updates, opt_state = optimiser.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss, smoothing


loss_without_smoothing = jax.jit(loss_fn)
for step in range(STEPS + 1):
    unsmoothed = loss_without_smoothing(params, inputs, labels, 0.0)
    params, opt_state, loss, smoothing = train_step(params, opt_state, inputs, labels, step)
    if step % 15 == 0:
        print(
            f"step {step:2}: smoothing {smoothing:.3f}, loss {loss:.3f} nats per sample, "
            f"without smoothing {unsmoothed:.3f} nats per sample"
        )
