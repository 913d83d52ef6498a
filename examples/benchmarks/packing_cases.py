"""`benchmark.py --part packing`: the last layer where a random part of the samples has weight 0."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import softjax
from benchmarks.linear_cases import AfterRound, describe_problem, time_contenders
from benchmarks.linear_contenders import compile_contender, random_layer
from benchmarks.settings import Config

KEPT = (0.3, 0.7, 1.0)  # the fraction of the samples with weight 1


def packing_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    """Each function without weights, and with random masks that keep a part of the samples."""
    layer = random_layer(*shape, dtype, config.seed)
    place = np.random.default_rng([config.seed, shape[0]]).permutation(shape[0])
    masks = {kept: jnp.asarray(place < round(kept * shape[0])) for kept in KEPT}
    contenders = [
        compile_contender(contender(name, kept), program, *layer, mask)
        for name, program in programs().items()
        for kept, mask in ((None, None), *masks.items())
    ]
    return {
        **describe_problem(shape, dtype),
        "active": {str(kept): int(mask.sum()) for kept, mask in masks.items()},
        "hidden_bytes": layer.hidden.nbytes,
        "timings": time_contenders(contenders, config, after_round),
    }


def contender(name: str, kept: float | None) -> str:
    return f"{name}, without weights" if kept is None else f"{name}, {kept:.0%} kept"


def programs() -> dict[str, Callable[..., Any]]:
    """Value and gradients by hidden states and kernel, as functions of (hidden, kernel, labels, weights)."""

    def with_entropy(s: softjax.Statistics) -> tuple[jax.Array, jax.Array]:
        return s.cross_entropy, s.entropy

    def mean(hidden: Any, kernel: Any, labels: Any, weights: Any) -> jax.Array:
        return softjax.linear_cross_entropy(hidden, kernel, labels, weights=weights)

    def none(hidden: Any, kernel: Any, labels: Any, weights: Any) -> jax.Array:
        losses = softjax.linear_cross_entropy(hidden, kernel, labels, weights=weights, reduction="none")
        return jnp.sum(losses)

    def aux(hidden: Any, kernel: Any, labels: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
        return softjax.linear_loss(with_entropy, hidden, kernel, labels, weights=weights, has_aux=True)

    def divergence(hidden: Any, kernel: Any, labels: Any, weights: Any) -> jax.Array:
        teacher = jax.lax.stop_gradient((hidden, kernel))
        return softjax.linear_divergence(hidden * 2, kernel, *teacher, weights=weights)

    return {
        "linear_cross_entropy": jax.value_and_grad(mean, (0, 1)),
        'linear_cross_entropy, "none"': jax.value_and_grad(none, (0, 1)),
        "linear_loss with aux": jax.value_and_grad(aux, (0, 1), has_aux=True),
        "linear_divergence": jax.value_and_grad(divergence, (0, 1)),
    }
