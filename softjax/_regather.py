"""A kernel whose features are split: gathered once a call, its gradient reduce-scattered once to where it lies."""

from functools import partial

import jax
from jax import lax

from softjax._classes import Names, varying
from softjax._types import Array


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def regathered(names: Names, others: Names, axis: int, whole: Array, part: Array) -> Array:
    """`whole`, as if it had been gathered here from each device's `part` of its `axis`, split over `names`.

    It varies over the `others`, too, over which samples are split. So reverse mode sums a gradient over all of them in
    this order: the reduce-scatter first, and then only a part of it over the others.
    """
    return _varying((*names, *others), whole)


@regathered.defjvp
def _regathered_jvp(names, others, axis, primals, tangents):
    # the derivative of a gather is a gather, whose transpose is a reduce-scatter
    step = lax.all_gather(_varying((*names, *others), tangents[1]), names, axis=axis, tiled=True)
    return regathered(names, others, axis, *primals), step


def _varying(names: Names, array: Array) -> Array:
    missing = tuple(name for name in names if name not in varying(array))
    return lax.pcast(array, missing, to="varying") if missing else array
