"""Train a linear classifier of five classes with softjax and optax, in a second."""

import jax
import jax.numpy as jnp
import optax

import softjax

# Five clusters around the corners of a pentagon. The first 300 of 1,500 points are the test set.
labels = jnp.tile(jnp.arange(5), 300)
angles = 2 * jnp.pi / 5 * labels.astype(float)
noise = 0.6 * jax.random.normal(jax.random.key(0), (1500, 2))
points = 2 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1) + noise
train, test = (points[300:], labels[300:]), (points[:300], labels[:300])

params = {"kernel": jnp.zeros((2, 5)), "bias": jnp.zeros((1, 5))}
optimiser = optax.adam(learning_rate=0.1)
opt_state = optimiser.init(params)


def loss_fn(params, points, labels):
    logits = points @ params["kernel"] + params["bias"]
    return softjax.cross_entropy(logits, labels)  # the mean in hartleys, base 10; `base=math.e` gives nats


@jax.jit
def train_step(params, opt_state, points, labels):
    loss, gradients = jax.value_and_grad(loss_fn)(params, points, labels)
    updates, opt_state = optimiser.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss


for step in range(101):
    params, opt_state, loss = train_step(params, opt_state, *train)
    if step % 25 == 0:
        print(f"step {step:3}: loss {loss:.3f} hartleys")

probabilities = softjax.softmax(test[0] @ params["kernel"] + params["bias"])
accuracy = jnp.mean(jnp.argmax(probabilities, axis=1) == test[1])
print(f"test set: loss {loss_fn(params, *test):.3f} hartleys, accuracy {accuracy:.1%}")
