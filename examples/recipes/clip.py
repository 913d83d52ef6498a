"""CLIP: images and texts that belong together, told apart from all others of the whole mesh (InfoNCE).

The cross-entropy of e^s u_i · v_j over j with label i, and over i with label j, of unit vectors, e^s learned. The
texts are the kernel of the images, and the reverse: the [pairs, pairs] similarities come in blocks. The types of the
arrays say that the pairs lie on all devices. Source: Radford et al. 2021, arXiv:2103.00020.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

PAIRS, IMAGE, TEXT, SHARED = 512, 64, 48, 16


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def loss(params, images, texts, labels):
    u, v = unit(images @ params["image"]), unit(texts @ params["text"])
    scale = jnp.exp(jnp.minimum(params["log_scale"], math.log(100)))
    to_texts = softjax.linear_cross_entropy(scale * u, v.T, labels, base=math.e)
    to_images = softjax.linear_cross_entropy(scale * v, u.T, labels, base=math.e)
    return (to_texts + to_images) / 2


@jax.jit
def step(params, state, *batch):
    value, gradient = jax.value_and_grad(loss)(params, *batch)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


# Images and texts are two noisy views of the same 16 numbers.
normal = [partial(jax.random.normal, key) for key in jax.random.split(jax.random.key(0), 7)]
same = normal[0]((PAIRS, SHARED))
images = same @ normal[1]((SHARED, IMAGE)) + normal[2]((PAIRS, IMAGE))
texts = same @ normal[3]((SHARED, TEXT)) + normal[4]((PAIRS, TEXT))
params = {"image": 0.1 * normal[5]((IMAGE, SHARED)), "text": 0.1 * normal[6]((TEXT, SHARED))}
params["log_scale"] = jnp.log(1 / 0.07)

mesh = jax.make_mesh((jax.device_count(),), ("data",))
batch = jax.device_put((images, texts, jnp.arange(PAIRS)), NamedSharding(mesh, P("data")))
params = jax.device_put(params, NamedSharding(mesh, P()))
optimiser = optax.adam(1e-2)
state = optimiser.init(params)
for i in range(61):
    params, state, value = step(params, state, *batch)
    if i % 20 == 0:
        print(f"step {i:2}  loss {value:.3f} nats  temperature {jnp.exp(-params['log_scale']):.4f}")
