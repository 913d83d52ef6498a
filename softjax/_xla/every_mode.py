"""Forward mode for a `custom_vjp`, and functions that the policies of `jax.checkpoint` see as one operation."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from softjax._args.types import Array


def with_forward_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(static, *arrays)`, a `custom_vjp`, with forward mode and derivatives of every order.

    Equals: `function`.

    JAX raises an error for forward mode over a `custom_vjp`. This function wraps it in a `custom_jvp`, whose rule is
    the linear transpose of the backward pass. So there is one analytic gradient for all modes. Reverse mode transposes
    the rule once more. An output that nobody reads has no cotangent there, so its part of the gradient is never traced.

    Each of `arrays` may be a pytree. Integer outputs have no derivative.
    """

    differentiable = jax.custom_jvp(function, nondiff_argnums=(0,))

    @partial(differentiable.defjvp, symbolic_zeros=True)
    def jvp_rule(static: Hashable, primals: Any, tangents: Any) -> tuple[Any, Any]:
        function_of_perturbed, perturbed, steps = _split_perturbed(partial(function, static), primals, tangents)

        def floating_outputs(perturbed: dict[int, Array]) -> tuple[list[Array], Any]:
            out = function_of_perturbed(perturbed)
            return [array for array in jax.tree.leaves(out) if _has_derivative(array)], out

        values, pull, out = jax.vjp(floating_outputs, perturbed, has_aux=True)

        # Under `checkpoint`, no residual of the size of the arrays is kept for the transpose.
        @partial(opaque_to_remat, static=())
        @partial(jax.checkpoint, prevent_cse=False)
        def push(pull: Any, steps: dict[int, Array]) -> list[Array]:
            return jax.linear_transpose(pull, values)((steps,))[0]

        derivatives = push(pull, steps) if steps else [jnp.zeros_like(value) for value in values]
        return out, _with_zeros_for_integers(out, derivatives)

    return differentiable


def opaque_to_remat(function: Callable[..., Any], static: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """`function(static, *arrays)`, which a policy of `jax.checkpoint` sees as a single operation.

    Equals: `function`.

    For functions that JAX does not differentiate: the forward rule of a `custom_vjp`, and a map of tangents. JAX asks a
    policy about each of their operations, also inside a loop, so one that saves matmuls would save the logits of every
    chunk. JAX does not look into a `custom_jvp`: this one wraps the function, and its rule is `jax.jvp`.
    """
    opaque = jax.custom_jvp(function, nondiff_argnums=static)

    @partial(opaque.defjvp, symbolic_zeros=True)
    def jvp_rule(*args: Any) -> tuple[Any, Any]:
        *static_args, primals, tangents = args
        function_of_perturbed, perturbed, steps = _split_perturbed(partial(function, *static_args), primals, tangents)
        return jax.jvp(function_of_perturbed, (perturbed,), (steps,))

    return opaque


def _split_perturbed(
    function: Callable[..., Any], primals: Any, tangents: Any
) -> tuple[Callable[[Any], Any], dict[int, Any], dict[int, Any]]:
    """`function` of its perturbed arrays alone, these arrays, and their tangents, by the index of the leaf.

    An array is perturbed if its tangent is not a symbolic zero.
    """
    leaves, structure = jax.tree.flatten(primals)
    primal_of, tangent_of = dict(enumerate(leaves)), dict(enumerate(jax.tree.leaves(tangents)))
    steps = {i: tangent for i, tangent in tangent_of.items() if not isinstance(tangent, SymbolicZero)}
    return (
        lambda perturbed: function(*jax.tree.unflatten(structure, (primal_of | perturbed).values())),
        {i: primal_of[i] for i in steps},
        steps,
    )


def _has_derivative(array: Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


def _with_zeros_for_integers(out: Any, derivatives: list[Any]) -> Any:
    """The derivatives of the floating outputs in the structure of `out`, with symbolic zeros for its integers."""
    remaining = iter(derivatives)
    return jax.tree.map(
        lambda array: next(remaining) if _has_derivative(array) else zero_from_primal(array, symbolic_zeros=True), out
    )
