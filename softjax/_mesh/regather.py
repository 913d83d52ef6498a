"""The gradient of a kernel that is sharded along its features."""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
from jax.sharding import AxisType

from softjax._args.types import Array
from softjax._mesh.axes import AxisNames, cast_to_varying


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def gather_features(names: AxisNames, others: AxisNames, axis: int, whole: Array, part: Array) -> Array:
    """`whole`, as if it had been gathered here from each device's `part` of its `axis`, split over `names`.

    It varies over the `others`, too, over which samples are split. So reverse mode sums a gradient over all of them in
    this order: the reduce-scatter first, and then only a part of it over the others.
    """
    return cast_to_varying({*names, *others}, whole)


@gather_features.defjvp
def _gather_features_jvp(names, others, axis, primals, tangents):
    # the derivative of a gather is a gather, whose transpose is a reduce-scatter
    step = cast_to_varying({*names, *others}, tangents[1])
    gather = _in_all_axes(partial(lax.all_gather, axis_name=names, axis=axis, tiled=True), step)
    return gather_features(names, others, axis, *primals), gather(step)


def _in_all_axes(function: Callable[[Array], Array], array: Array) -> Callable[[Array], Array]:
    """The function, inside a `shard_map` over the Explicit axes left: JAX 0.12 lowers no `psum_scatter` beside them."""
    on, spec = jax.typeof(array).sharding.mesh, jax.typeof(array).sharding.spec
    left = {name for name, kind in zip(on.axis_names, on.axis_types, strict=True) if kind == AxisType.Explicit}
    return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=left) if left else function
