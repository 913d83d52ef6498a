"""Small calls of each kind in every mode of differentiation, whose results test_flags.py compares.

`python flag_calls.py FILE NAME...` writes the results of these calls. JAX reads some of its flags when a function is
decorated, which happens when softjax is imported. So the flags need a process of their own.
"""

import sys
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np

import softjax

Y, W, A = cases.class_ids(5), cases.weights(), cases.cotangent()
HIDDEN, KERNEL, BIAS = cases.layer(5, features=3)
LOGITS, LAYER = cases.logits(5), (HIDDEN, KERNEL)
OPTIONS = {"bias": BIAS, "block_size": 4}


def sum_of_squares(statistics):
    return sum((A * values.astype(jnp.float32) ** 2).sum() for values in statistics)


def row_loss(s, a):
    return a * s.cross_entropy**2 - s.entropy


CALLS = {
    "cross_entropy": (lambda x: softjax.cross_entropy(x, Y, weights=W, label_smoothing=0.1, z_loss=0.01), LOGITS),
    "statistics": (lambda x: sum_of_squares(softjax.statistics(x, Y)), LOGITS),
    "linear, mean": (lambda a: softjax.linear_cross_entropy(*a, Y, weights=W, **OPTIONS), LAYER),
    "linear, none": (lambda a: (A * softjax.linear_cross_entropy(*a, Y, reduction="none", **OPTIONS)).sum(), LAYER),
    "divergence": (lambda x: softjax.divergence(x, jnp.sin(LOGITS), kind="jensen_shannon", weights=W), LOGITS),
    "linear_divergence": (
        lambda a: softjax.linear_divergence(*a, HIDDEN + 1, KERNEL, kind="reverse_kl", temperature=2.0, weights=W),
        LAYER,
    ),
    "linear_loss": (lambda a: softjax.linear_loss(row_loss, *a, Y, A, weights=W, **OPTIONS), LAYER),
}

# The quick calls use each rule of differentiation once: logits, a fused sum, recomputed rows, a row loss.
QUICK = ["cross_entropy", "linear, none", "linear_divergence", "linear_loss"]


def forward(function, x):
    """The value: as it is, under `vmap`, and in a `scan` over `jax.checkpoint`."""
    pair, checkpointed = jax.tree.map(lambda a: jnp.stack([a, -a]), x), jax.checkpoint(function)
    return {
        "value": function(x),
        "vmap": jax.vmap(function)(pair),
        "scan": jax.lax.scan(lambda total, x: (total + checkpointed(x), None), jnp.float32(0), pair)[0],
    }


def derivatives(function, x):
    tangent = jax.tree.map(jnp.cos, x)

    def total(x):
        return sum(values.sum() for values in forward(function, x).values())

    return {
        "jvp": jax.jvp(function, (x,), (tangent,))[1],
        "gradient of the sum of all values": jax.grad(total)(x),
        "jvp of the gradient": jax.jvp(jax.grad(function), (x,), (tangent,))[1],
    }


def results(name, kind):
    """The `forward` or the `derivatives` of a call, from one program."""
    function, x = CALLS[name]
    results = jax.jit(partial(kind, function))(x)
    return {name + jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree.leaves_with_path(results)}


def all_results(names):
    return {key: a for name in names for kind in (forward, derivatives) for key, a in results(name, kind).items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], **all_results(sys.argv[2:]))
