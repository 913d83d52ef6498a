"""A linear classifier of five classes, trained by softjax and optax in a second."""

import jax
import jax.numpy as jnp
import optax

import softjax

# Five clouds of points, around the corners of a pentagon; a fifth of them is held out.
angles = jnp.linspace(0, 2 * jnp.pi, 5, endpoint=False)
labels = jnp.tile(jnp.arange(5), 300)
noise = 0.6 * jax.random.normal(jax.random.key(0), (1500, 2))
points = 2 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)[labels] + noise
train, test = (points[300:], labels[300:]), (points[:300], labels[:300])


def loss(params, points, labels):
    logits = points @ params["kernel"] + params["bias"]
    return softjax.cross_entropy(logits, labels)  # the mean, in hartleys: logarithms to base 10


@jax.jit
def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params, *train)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


params = {"kernel": jnp.zeros((2, 5)), "bias": jnp.zeros((1, 5))}
optimiser = optax.adam(0.1)
state = optimiser.init(params)
for i in range(101):
    params, state, value = step(params, state)
    if i % 25 == 0:
        print(f"step {i:3}  loss {value:.3f}")

probabilities = softjax.softmax(test[0] @ params["kernel"] + params["bias"])
accuracy = jnp.mean(probabilities.argmax(axis=1) == test[1])
print(f"held out  loss {loss(params, *test):.3f}  accuracy {accuracy:.1%}")
