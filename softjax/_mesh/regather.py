"""The gradient of a kernel whose features are sharded: reduce-scattered, not all-reduced."""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
from jax.sharding import AxisType

from softjax._args.types import Array
from softjax._mesh.axes import AxisNames, cast_to_varying


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def gather_features(names: AxisNames, others: AxisNames, axis: int, kernel: Array, shard: Array) -> Array:
    """`kernel`, with the derivative of `lax.all_gather(shard, names, axis=axis, tiled=True)`, which it equals.

    The transpose of an all-gather is a reduce-scatter, so each device receives the gradient of its shard only.

    The result also varies over `others`, so reverse mode sums the gradient over these axes, too. It does so after the
    reduce-scatter, when the gradient is a shard.

    Args:
        names: mesh axes that shard the features (as in FSDP). They shard samples, too.
        others: the other mesh axes that shard samples.
        axis: the feature axis of the kernel.
        kernel: all features, without a derivative (`stop_gradient`).
        shard: this device's shard of the same kernel, which receives the gradient.
    """
    return cast_to_varying({*names, *others}, kernel)


@gather_features.defjvp
def _gather_features_jvp(names, others, axis, primals, tangents):
    step = cast_to_varying({*names, *others}, tangents[1])
    gather = _in_shard_map_of_explicit(partial(lax.all_gather, axis_name=names, axis=axis, tiled=True), step)
    return gather_features(names, others, axis, *primals), gather(step)


def _in_shard_map_of_explicit(function: Callable[[Array], Array], array: Array) -> Callable[[Array], Array]:
    """The function, in a `shard_map` over the Explicit axes that are not bound yet, if there are any.

    Equals: `function`. JAX 0.12 cannot lower `psum_scatter` while Explicit axes are left unbound.
    """
    mesh, spec = jax.typeof(array).sharding.mesh, jax.typeof(array).sharding.spec
    explicit = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=explicit) if explicit else function
