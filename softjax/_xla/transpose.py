"""Linear functions whose transpose is given by hand."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from softjax._xla import one_cpu


def compute_gradient_once(x: Float[Array, "..."]) -> Array:
    """`x`, whose gradient is computed once, where a program uses it more than once.

    For a product of [batch, positions, features] XLA on a CPU transposes the gradient of its result. It would rather
    compute that twice than copy it, from exponentials that it keeps for the second time; barriers are gone by then. It
    does not compute a scatter twice. This one adds −0, to two numbers, as that to one number does not stay a scatter. A
    bfloat16 array it would widen as a whole. In JAX a solver is what has a transpose of one's own under `vmap`, too.
    """
    fixed = all(isinstance(length, int) for length in x.shape)  # jax.export may leave a length open
    large = fixed and x.ndim > 2 and x.size >= 2**18 and x.dtype != jnp.bfloat16
    return lax.custom_linear_solve(lambda x: x, x, _identity, _scatter) if large and one_cpu.on_one_cpu(x) else x


def _identity(_: Any, x: Array) -> Array:
    return x


def _scatter(_: Any, gradient: Array) -> Array:
    return gradient.at[(jnp.zeros(2, jnp.int32),) * gradient.ndim].add(-0.0)


def add_with_transpose(
    add: Callable[[Array, Array], Array], back: Callable[[Array], Array], total: Array, x: Array
) -> Array:
    """`add(total, x)` = total + P x, with the transpose of P given: `back(y)` = Pᵀ y.

    Reverse mode transposes the pull-back twice. JAX's own transposes of the products would widen their operands, and of
    the sum that is added to piece by piece they would make copies. (x, y) with y = total + P x is the solution of a
    linear system, for which JAX takes the transpose that it is given, in every mode.
    """

    def nothing(x: Array) -> Array:
        """0, the sum of no entry of x: so that whatever is transposed depends on both parts of the system."""
        return jnp.sum(x[:0])

    same, result = lax.custom_linear_solve(
        lambda z: (z[0], z[1] - add(jnp.zeros_like(total), z[0])),
        (x, total + nothing(x)),
        lambda _, b: (b[0], add(b[1], b[0])),
        lambda _, b: (b[0] + back(b[1]), b[1]),
    )
    return result + nothing(same)
