"""One analytic pull-back, for reverse mode and forward mode alike."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Forward = Callable[..., tuple[Any, Any]]
Backward = Callable[[Any, Any, Any], tuple[Any, ...]]


def differentiable(forward: Forward, backward: Backward) -> Callable[..., Any]:
    """A function `f(static, *arrays)` whose derivative is `backward`, in every mode and to every order.

    `forward(static, *arrays, kept=...)` returns the outputs and the residuals; `kept` says whether the residuals
    will be used. `backward(static, residuals, cotangents)` returns a cotangent for each of `arrays` (None for those
    that have none) and must be linear in the cotangents.

    A `custom_vjp` gives reverse mode and refuses forward mode. So a `custom_jvp` stands around it whose tangent map
    is the linear transpose of the same `backward`: transposing it once more, as `jax.grad` does, gives `backward`
    again. The analytic gradient therefore stands in one place. `jax.checkpoint` makes the residuals the only thing
    kept between the passes; without `prevent_cse`, XLA may still share what both passes compute.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def reverse(static: Hashable, *arrays: Any) -> Any:
        return forward(static, *arrays, kept=False)[0]

    reverse.defvjp(partial(forward, kept=True), backward)
    both = jax.custom_jvp(reverse, nondiff_argnums=(0,))

    @partial(both.defjvp, symbolic_zeros=True)
    def jvp(static: Hashable, primals: Any, tangents: Any) -> tuple[Any, Any]:
        out, residuals = forward(static, *primals, kept=True)
        moving = [i for i, t in enumerate(tangents) if not (t is None or isinstance(t, SymbolicZero))]
        if not moving:
            return out, jax.tree.map(jnp.zeros_like, out)

        def push(residuals: Any, tangents: list[Any]) -> Any:
            def pull(cotangents: Any) -> list[Any]:
                pulled = backward(static, residuals, cotangents)
                return [pulled[i] for i in moving]

            return jax.linear_transpose(pull, out)(tangents)[0]

        return out, jax.checkpoint(push, prevent_cse=False)(residuals, [tangents[i] for i in moving])

    return both
