"""A `custom_vjp` in forward mode, too, and out of the reach of the policies of `jax.checkpoint`."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from softjax._args.types import Array


def with_forward_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(static, *arrays)`, a `custom_vjp`, in forward mode and to every order as well.

    A `custom_vjp` refuses forward mode. So a `custom_jvp` stands around it, whose tangent map is the linear transpose
    of the pull-back that `jax.vjp` makes of `function`: the analytic gradient stands in one place. Reverse mode
    transposes this map once more, and an output that nobody reads has no cotangent there, so that its part of the rule
    is not in the program at all. Each of `arrays` may be a pytree; integer outputs have no derivative.
    """

    every = jax.custom_jvp(function, nondiff_argnums=(0,))

    @partial(every.defjvp, symbolic_zeros=True)
    def push(static: Hashable, primals: Any, tangents: Any) -> tuple[Any, Any]:
        of_moving, arrays, steps = _split_moving(partial(function, static), primals, tangents)

        def of(moved: dict[int, Array]) -> tuple[list[Array], Any]:
            out = of_moving(moved)
            return [number for number in jax.tree.leaves(out) if _has_derivative(number)], out

        numbers, pull, out = jax.vjp(of, arrays, has_aux=True)

        @partial(opaque_to_remat, static=())
        @partial(jax.checkpoint, prevent_cse=False)  # so that nothing of the size of the arrays is kept
        def along(pull: Any, steps: dict[int, Array]) -> list[Array]:
            return jax.linear_transpose(pull, numbers)((steps,))[0]

        return out, _with_zeros_for_integers(out, along(pull, steps) if steps else [jnp.zeros_like(n) for n in numbers])

    return every


def opaque_to_remat(function: Callable[..., Any], static: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """`function(static, *arrays)`, to a policy of `jax.checkpoint` a single operation.

    A policy is asked about each operation, also within a loop: one that saves matrix products would have the logits of
    every block saved. But it does not look into a `custom_jvp`. This one has the derivative of the function itself.
    """
    whole = jax.custom_jvp(function, nondiff_argnums=static)

    @partial(whole.defjvp, symbolic_zeros=True)
    def push(*args: Any) -> tuple[Any, Any]:
        *first, primals, tangents = args
        of_moving, arrays, steps = _split_moving(partial(function, *first), primals, tangents)
        return jax.jvp(of_moving, (arrays,), (steps,))

    return whole


def _split_moving(
    function: Callable[..., Any], primals: Any, tangents: Any
) -> tuple[Callable[[Any], Any], dict[int, Any], dict[int, Any]]:
    """The function of those arrays alone that move, these, and their tangents."""
    arrays, tree = jax.tree.flatten(primals)
    each, steps = dict(enumerate(arrays)), dict(enumerate(jax.tree.leaves(tangents)))
    moving = {i: step for i, step in steps.items() if not isinstance(step, SymbolicZero)}
    return (
        lambda moved: function(*jax.tree.unflatten(tree, (each | moved).values())),
        {i: each[i] for i in moving},
        moving,
    )


def _has_derivative(number: Array) -> bool:
    return jnp.issubdtype(number.dtype, jnp.inexact)


def _with_zeros_for_integers(out: Any, derivatives: list[Any]) -> Any:
    """The derivatives, arrays or JAX's own constants, in the structure of the output, with zeros for its integers."""
    each = iter(derivatives)
    return jax.tree.map(lambda n: next(each) if _has_derivative(n) else zero_from_primal(n, symbolic_zeros=True), out)
