"""One analytic pull-back, for reverse mode and forward mode alike."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import ad, batching, mlir

Forward = Callable[..., tuple[Any, Any]]
Backward = Callable[..., tuple[Any, ...]]
_EVERY = range(2**31)


def differentiable(forward: Forward, backward: Backward) -> Callable[..., Any]:
    """A function `f(static, *arrays)` whose derivative is `backward`, in every mode and to every order.

    `forward(static, *arrays, moving=...)` returns the outputs and the residuals; `moving` are the positions of the
    arrays to differentiate by, none of them if the value alone is wanted. `backward(static, residuals, cotangents,
    moving=...)` returns a cotangent for each of `arrays`, which may be None for those that do not move or have none,
    and must be linear in the cotangents. Of several outputs, those that nothing depends on have the cotangent None.

    A `custom_vjp` gives reverse mode and refuses forward mode. So a `custom_jvp` stands around it whose tangent map
    is the linear transpose of the same `backward`, and is `backward` again when `jax.grad` transposes it. The
    analytic gradient therefore stands in one place, and the residuals are all that is kept between the passes.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def reverse(static: Hashable, *arrays: Any) -> Any:
        return forward(static, *arrays, moving=())[0]

    def reverse_forward(static: Hashable, *arrays: Any) -> tuple[Any, Any]:
        return forward(static, *arrays, moving=_EVERY)

    reverse.defvjp(reverse_forward, partial(backward, moving=_EVERY))
    both = jax.custom_jvp(reverse, nondiff_argnums=(0,))

    @partial(both.defjvp, symbolic_zeros=True)
    def jvp(static: Hashable, primals: Any, tangents: Any) -> tuple[Any, Any]:
        moving = tuple(i for i, t in enumerate(tangents) if not (t is None or isinstance(t, SymbolicZero)))
        out, residuals = forward(static, *primals, moving=moving)
        if not moving:
            return out, jax.tree.map(jnp.zeros_like, out)

        def pull(residuals: Any, cotangents: Any) -> list[Any]:
            pulled = backward(static, residuals, cotangents, moving=moving)
            return [pulled[i] for i in moving]

        return out, _transposed(pull, out, residuals, [tangents[i] for i in moving])

    return both


def _transposed(pull: Callable[[Any, Any], list[Any]], out: Any, residuals: Any, tangents: list[Any]) -> Any:
    """The linear transpose of `pull(residuals, ·)`, a map from `tangents` to what is like `out`.

    Transposed once more it is `pull` itself. JAX's own transpose of a transpose would be the same map, but of a loop
    it makes one that copies what it sums and widens the operands of its matrix products.
    """
    known, known_tree = jax.tree.flatten(residuals)
    likes, out_tree = jax.tree.flatten(out)

    def pull_flat(known: Any, cotangents: Any) -> list[Any]:
        return pull(jax.tree.unflatten(known_tree, known), jax.tree.unflatten(out_tree, cotangents))

    types = [jax.typeof(like) for like in likes]

    def push_flat(known: Any, tangents: Any) -> list[Any]:
        return jax.linear_transpose(partial(pull_flat, known), types)(list(tangents))[0]

    avals = tuple(jax.typeof(like).to_tangent_aval() for like in likes)
    flat = _linear.bind(*known, *tangents, pull=pull_flat, push=push_flat, avals=avals, split=len(known))
    return jax.tree.unflatten(out_tree, flat)


_linear = core.Primitive("transposed")
_linear.multiple_results = True


@_linear.def_impl
def _evaluated(*arrays: Any, push: Any, split: int, **_: Any) -> list[Any]:
    return push(arrays[:split], arrays[split:])


@_linear.def_abstract_eval
def _abstract(*_: Any, avals: Any, **__: Any) -> Any:
    return avals


def _jvp(primals: Any, tangents: Any, *, split: int, **params: Any) -> tuple[Any, Any]:
    out = _linear.bind(*primals, split=split, **params)
    known, linear = primals[:split], primals[split:]
    terms = []
    if not all(isinstance(t, ad.Zero) for t in tangents[split:]):
        along = map(ad.instantiate_zeros, tangents[split:])
        terms.append(_linear.bind(*known, *along, split=split, **params))
    moving = [i for i, t in enumerate(tangents[:split]) if not isinstance(t, ad.Zero)]
    if moving:

        def of(*moved: Any) -> Any:
            every = list(known)
            for i, array in zip(moving, moved, strict=True):
                every[i] = array
            return params["push"](every, linear)

        terms.append(jax.jvp(of, [known[i] for i in moving], [tangents[i] for i in moving])[1])
    return out, terms[0] if len(terms) == 1 else jax.tree.map(jnp.add, *terms)


def _transpose(cotangents: Any, *arrays: Any, pull: Any, split: int, **_: Any) -> list[Any]:
    pulled = pull(arrays[:split], [None if isinstance(ct, ad.Zero) else ct for ct in cotangents])
    return [None] * split + pulled


def _batched(arrays: Any, axes: Any, *, push: Any, split: int, **_: Any) -> tuple[Any, Any]:
    # An argument that all examples share needs the sum of their cotangents, which JAX's transpose of this map gives.
    def one(*arrays: Any) -> Any:
        return push(arrays[:split], arrays[split:])

    out = jax.vmap(jax.checkpoint(one, prevent_cse=False), in_axes=tuple(axes))(*arrays)
    return out, [0] * len(out)


ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batched
mlir.register_lowering(_linear, mlir.lower_fun(_evaluated, multiple_results=True))
