"""Every kind of call in every mode of differentiation, at a small size: what test_flags.py compares.

`python flag_calls.py FILE NAME...` writes the numbers of these calls. JAX reads some of its flags when a function is
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


def squares(statistics):
    return sum((A * number.astype(jnp.float32) ** 2).sum() for number in statistics)


def row_loss(s, a):
    return a * s.cross_entropy**2 - s.entropy


CALLS = {
    "cross_entropy": (lambda x: softjax.cross_entropy(x, Y, weights=W, label_smoothing=0.1, z_loss=0.01), LOGITS),
    "statistics": (lambda x: squares(softjax.statistics(x, Y)), LOGITS),
    "linear, mean": (lambda a: softjax.linear_cross_entropy(*a, Y, weights=W, **OPTIONS), LAYER),
    "linear, none": (lambda a: (A * softjax.linear_cross_entropy(*a, Y, reduction="none", **OPTIONS)).sum(), LAYER),
    "divergence": (lambda x: softjax.divergence(x, jnp.sin(LOGITS), kind="jensen_shannon", weights=W), LOGITS),
    "linear_divergence": (
        lambda a: softjax.linear_divergence(*a, HIDDEN + 1, KERNEL, kind="reverse_kl", temperature=2.0, weights=W),
        LAYER,
    ),
    "linear_loss": (lambda a: softjax.linear_loss(row_loss, *a, Y, A, weights=W, **OPTIONS), LAYER),
}

# One call of each kind of derivative: of logits, of a fused sum, of rows of a layer. Others have the same rules: slow.
QUICK = ["cross_entropy", "linear, none", "linear_divergence", "linear_loss"]


def forward(function, at):
    """The value: plain, under `vmap`, and under `scan` of a checkpoint."""
    two, saved = jax.tree.map(lambda a: jnp.stack([a, -a]), at), jax.checkpoint(function)
    return {
        "value": function(at),
        "vmap": jax.vmap(function)(two),
        "scan": jax.lax.scan(lambda total, at: (total + saved(at), None), jnp.float32(0), two)[0],
    }


def derivatives(function, at):
    along = jax.tree.map(jnp.cos, at)

    def total(at):
        return sum(number.sum() for number in forward(function, at).values())

    return {
        "jvp": jax.jvp(function, (at,), (along,))[1],
        "gradients of every value": jax.grad(total)(at),
        "a jvp of the gradient": jax.jvp(jax.grad(function), (at,), (along,))[1],
    }


def numbers(name, kind):
    """The results of a call, computed by one program."""
    function, at = CALLS[name]
    results = jax.jit(partial(kind, function))(at)
    return {name + jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree.leaves_with_path(results)}


def every_number(names):
    return {key: a for name in names for kind in (forward, derivatives) for key, a in numbers(name, kind).items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], **every_number(sys.argv[2:]))
