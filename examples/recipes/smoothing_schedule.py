"""Label smoothing by a schedule, without compiling again.

`label_smoothing` may be a traced number, so that ε can follow any schedule of optax: the target is (1 − ε) onehot + ε /
C. Smoothing early keeps a model from growing sure of wrong labels; none at the end leaves its probabilities as they
should be. Source: Szegedy et al. 2016, arXiv:1512.00567.
"""

import math

import jax
import optax

import softjax

STEPS, CLASSES, FEATURES = 60, 10, 32
smoothing = optax.linear_schedule(0.1, 0.0, transition_steps=STEPS - 10, transition_begin=10)


def loss(params, x, labels, epsilon):
    hidden = jax.nn.gelu(x @ params["layer"])
    return softjax.linear_cross_entropy(hidden, params["head"], labels, label_smoothing=epsilon, base=math.e)


@jax.jit
def step(params, state, x, labels, i):
    print("compiled")  # a side effect, and so once for each compilation
    epsilon = smoothing(i)
    value, gradient = jax.value_and_grad(loss)(params, x, labels, epsilon)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(params, updates), state, value, epsilon


# Ten clouds of points.
keys = jax.random.split(jax.random.key(0), 5)
labels = jax.random.randint(keys[0], (500,), 0, CLASSES)
x = jax.random.normal(keys[1], (CLASSES, FEATURES))[labels] + jax.random.normal(keys[2], (500, FEATURES))

params = {
    "layer": 0.1 * jax.random.normal(keys[3], (FEATURES, 64)),
    "head": 0.1 * jax.random.normal(keys[4], (64, CLASSES)),
}
optimiser = optax.adam(1e-2)
state = optimiser.init(params)
for i in range(STEPS + 1):
    before = params
    params, state, value, epsilon = step(params, state, x, labels, i)
    if i % 15 == 0:
        print(
            f"step {i:2}  ε {epsilon:.3f}  loss {value:.3f}  without smoothing {loss(before, x, labels, 0.0):.3f} nats"
        )
