"""One analytic pull-back, for reverse mode and forward mode alike."""

import functools
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.tree_util import Partial

from softjax._types import Array

Forward = Callable[..., tuple[Any, Any]]
Backward = Callable[..., tuple[Any, ...]]


def differentiable(forward: Forward, backward: Backward) -> Callable[..., Any]:
    """A function `f(static, *arrays)` whose derivative is `backward`, in every mode and to every order.

    `forward(static, *arrays, moving=...)` returns the outputs and the residuals; `moving` are the positions of the
    arrays to differentiate by, none of them if the value alone is wanted. `backward(static, residuals, cotangents,
    moving=...)` returns a cotangent for each of `arrays`, which may be None for those that do not move or have none,
    and must be linear in the cotangents. Of several outputs, those that nothing depends on have the cotangent None.

    The two are the rules of a `custom_vjp`, which gives reverse mode and refuses forward mode. So a `custom_jvp` stands
    around it, whose tangent map is the linear transpose of what `jax.vjp` makes of it. The analytic gradient therefore
    stands in one place, and the residuals are all that is kept between the passes.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def reverse(static: Hashable, *arrays: Any) -> Any:
        return forward(static, *arrays, moving=())[0]

    def reverse_forward(static: Hashable, *arrays: Any) -> tuple[Any, Any]:
        moving = tuple(i for i, a in enumerate(arrays) if a is not None and a.perturbed)
        values = [None if a is None else a.value for a in arrays]
        out, residuals = forward(static, *values, moving=moving)
        return out, Partial(partial(pulled, static, moving), residuals)

    def pulled(static: Hashable, moving: tuple[int, ...], residuals: Any, cotangents: Any) -> list[Any]:
        cotangents = jax.tree.map(lambda ct: None if isinstance(ct, SymbolicZero) else ct, cotangents)
        gradients = backward(static, residuals, cotangents, moving=moving)
        return [gradient if i in moving else None for i, gradient in enumerate(gradients)]

    def reverse_backward(static: Hashable, pull: Partial, cotangents: Any) -> tuple[Any, ...]:
        return tuple(pull(cotangents))

    reverse.defvjp(reverse_forward, reverse_backward, symbolic_zeros=True)

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def both(static: Hashable, *arrays: Any) -> Any:
        return _tied(reverse(static, *arrays), arrays)

    @partial(both.defjvp, symbolic_zeros=True)
    def jvp(static: Hashable, primals: Any, tangents: Any) -> tuple[Any, Any]:
        moving = [i for i, t in enumerate(tangents) if not (t is None or isinstance(t, SymbolicZero))]
        if not moving:
            out = _tied(reverse(static, *primals), primals)
            return out, jax.tree.map(jnp.zeros_like, out)

        out, pull = jax.vjp(_of(partial(reverse, static), primals, moving), *(primals[i] for i in moving))
        return _tied(out, primals), _tied(_transposed(pull, out, [tangents[i] for i in moving]), primals)

    return both


def _of(function: Callable[..., Any], arrays: Sequence[Any], moving: Sequence[int]) -> Callable[..., Any]:
    """`function(*arrays)` as a function of those of the arrays that move."""

    def of(*moved: Any) -> Any:
        every = dict(enumerate(arrays)) | dict(zip(moving, moved, strict=True))
        return function(*every.values())

    return of


def _transposed(pull: Callable[[Any], Any], out: Any, tangents: list[Any]) -> Any:
    """The linear transpose of `pull`, a map from `tangents` to what is like `out`.

    Transposed once more it is `pull` itself. JAX's own transpose of a transpose would be the same map, but of a loop
    it makes one that copies what it sums and widens the operands of its matrix products.
    """
    known, known_tree = jax.tree.flatten(pull)
    likes, out_tree = jax.tree.flatten(out)

    def pull_flat(known: Any, cotangents: Any) -> tuple[Any, ...]:
        return jax.tree.unflatten(known_tree, known)(jax.tree.unflatten(out_tree, cotangents))

    types = [jax.typeof(like) for like in likes]

    def push_flat(known: Any, tangents: Any) -> tuple[Any, ...]:
        return jax.linear_transpose(lambda *cotangents: pull_flat(known, cotangents), *types)(tuple(tangents))

    avals = tuple(like.to_tangent_aval() for like in types)
    flat = _linear.bind(*known, *tangents, pull=pull_flat, push=push_flat, avals=avals, split=len(known))
    return jax.tree.unflatten(out_tree, flat)


def _tied(out: Any, arrays: Sequence[Any]) -> Any:
    """`out`, all of it mapped by a `vmap` that maps any of the arrays.

    JAX asks that a function and its rule agree on what is mapped. The rule's tangents are mapped as soon as anything
    is, but a number may depend on one array that is and another on none.
    """
    known = [array for array in arrays if array is not None]

    def one(number: Array) -> Array:
        avals = (jax.typeof(number),)
        return _linear.bind(*known, number, pull=_same, push=_same, avals=avals, split=len(known))[0]

    return jax.tree.map(one, out)


def _same(known: Any, linear: Any) -> tuple[Any, ...]:
    return tuple(linear)


_linear = core.Primitive("transposed")
_linear.multiple_results = True


@_linear.def_impl
def _evaluated(*arrays: Any, push: Any, split: int, **_: Any) -> tuple[Any, ...]:
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
    if moving and params["push"] is not _same:
        of = _of(lambda *known: params["push"](known, linear), known, moving)
        terms.append(jax.jvp(of, [known[i] for i in moving], [tangents[i] for i in moving])[1])
    if not terms:
        return out, [ad.Zero(jax.typeof(number).to_tangent_aval()) for number in out]
    return out, [functools.reduce(jnp.add, each) for each in zip(*terms, strict=True)]


def _transpose(cotangents: Any, *arrays: Any, pull: Any, split: int, **_: Any) -> list[Any]:
    return [None] * split + list(pull(arrays[:split], cotangents))


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
