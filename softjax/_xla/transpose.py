"""Linear functions whose transpose is written by hand.

`lax.custom_linear_solve` is the public JAX function for this. It solves A y = b, and takes a function that solves
Aᵀ y = b for its transpose. It keeps this transpose under `vmap`, `jit` and derivatives of every order. JAX 0.10.2 has
`jax.custom_derivatives.linear_call`, too, but that has no batching rule, so `vmap` fails.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from softjax._xla import one_cpu
from softjax._xla.layout import is_sum


def with_transpose(
    forward: Callable[[Any], Any],
    transpose: Callable[[Any], Any],
    operand: Any,
    inverse: Callable[[Any], Any] = lambda result: result,
) -> Any:
    """`forward(operand)`, with `transpose` as the transpose that every transform uses.

    Equals: `forward(operand)`.

    Args:
        forward: a linear function of a pytree of arrays, whose result has the same structure, shapes and dtypes.
        transpose: its transpose.
        operand: the pytree.
        inverse: the inverse of `forward`. JAX differentiates it by the arrays that it closes over. The default is right
            only if `forward` closes over no array that has a derivative.
    """
    return lax.custom_linear_solve(inverse, operand, lambda _, b: forward(b), lambda _, b: transpose(b))


def compute_gradient_once(x: Float[Array, "..."]) -> Array:
    """`x`, whose gradient XLA computes once on one CPU.

    Equals: `x`.

    Logits of shape [batch, positions, classes] are often the result of a matmul, whose VJP reads their gradient twice,
    once transposed. XLA on a CPU (jaxlib 0.10.2) computes it for each of the two, and keeps the exponentials in memory
    until then: three arrays of the size of the logits instead of two. An optimization barrier does not help, because
    XLA removes barriers before this decision.

    XLA never computes a scatter twice. So the gradient passes through a scatter that changes no bit, and that XLA does
    in place.

    Three cases are left alone: a matrix of logits takes two arrays as it is; small logits do not matter; of bfloat16
    logits, XLA would convert all to float32 for the scatter.
    """
    return with_transpose(lambda x: x, _scatter_batch, x) if _may_be_large(x) else x


def compute_sum_once(x: Float[Array, "..."]) -> Array:
    """`x`, which XLA computes once on one CPU, and its gradient too, if the traced program makes it by an addition.

    Equals: `x`.

    XLA on a CPU (jaxlib 0.10.2) adds a bias to the result of a matmul in each operation that reads the logits. So it
    keeps this result while the logits and their exponentials are in memory. The scatter of `compute_gradient_once`
    stops that. It would copy logits that are arguments of the program, so they are left alone.
    """
    return with_transpose(_scatter_matrix, _scatter_matrix, x) if _may_be_large(x) and is_sum(x) else x


def _may_be_large(x: Array) -> bool:
    """Whether the logits are large enough, perhaps together with those of other examples of a `vmap`."""
    may_be_large = one_cpu.has_static_shape(x) and x.ndim > 0 and x.size >= 2**14 and x.dtype != jnp.bfloat16
    return may_be_large and one_cpu.on_one_cpu(x)


def _scatter_nothing(axes: int) -> Callable[[Array], Array]:
    """A function that returns its array: −0 is added to the first entry, twice. XLA drops a scatter to a single entry.

    It leaves small arrays alone, and those of fewer axes. Under `vmap`, axes and size are those of all examples.
    """

    @custom_vmap
    def scatter(x: Array) -> Array:
        if x.ndim < axes or x.size < 2**18:
            return x
        first_entry_twice = (jnp.zeros(2, jnp.int32),) * x.ndim
        return x.at[first_entry_twice].add(-0.0)

    @scatter.def_vmap
    def scatter_batch(size: int, batched: Any, x: Array) -> tuple[Array, bool]:
        return scatter(x), True

    return scatter


_scatter_matrix, _scatter_batch = _scatter_nothing(2), _scatter_nothing(3)


def add_with_transpose(
    add: Callable[[Array, Array], Array], back: Callable[[Array], Array], total: Array, x: Array
) -> Array:
    """total + P x for a linear P, computed by `add(total, x)`; `back(y)` = Pᵀ y is used for its transpose.

    Equals: `add(total, x)`.

    Derivatives of the fused losses transpose their backward pass. JAX's own transpose of a matmul that accumulates in
    float32 widens the other operand. Its transpose of a sum that is updated tile by tile copies the whole sum.

    The linear map is (x, total) ↦ (x, total + P x). It has an inverse, (x, y) ↦ (x, y − P x), so that derivatives by
    the arrays that P closes over are right, too.
    """

    def zero_of(x: Array) -> Array:
        """0, as the sum of no entries of x.

        JAX transposes a solve with respect to all of its operands or none. With this 0, `total` depends on x, too.
        """
        return jnp.sum(x[:0])

    same_x, result = with_transpose(
        lambda b: (b[0], add(b[1], b[0])),
        lambda b: (b[0] + back(b[1]), b[1]),
        (x, total + zero_of(x)),
        inverse=lambda y: (y[0], y[1] - add(jnp.zeros_like(total), y[0])),
    )
    return result + zero_of(same_x)
