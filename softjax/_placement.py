"""What can be known, when tracing, of where an array lies.

The choices made on it change speed, never meaning.
"""

from collections.abc import Hashable, Iterable, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType

from softjax._types import Array, Integer


def on_one_cpu(x: Array) -> bool:
    """Whether `x` lies as a whole on the only device, a CPU: then a gather beats a comparison, and a loop a sweep.

    Under a mesh, even of one device, shardings are types (Explicit axes) or out of sight (Auto axes): never there.
    """
    meshless = jax.typeof(x).sharding.mesh.empty and jax.sharding.get_abstract_mesh().empty
    return meshless and jax.default_backend() == "cpu" and jax.device_count() == 1


def is_transpose(matrix: Array) -> bool:
    """Whether the program being traced makes `matrix` by transposing another, as in `embedding.T`.

    A loop in XLA wants its operands row by row: it would copy the transpose, but takes the other matrix as it is. JAX
    has no public word for where a tracer comes from. Where it does not tell, the answer is no, and the copy is made.
    """
    tracer: Any = matrix
    while isinstance(tracer, Tracer):
        equation = getattr(tracer, "parent", None)
        if equation is None:
            tracer = getattr(tracer, "primal", None)
        elif equation.primitive.name == "convert_element_type":
            tracer = equation.in_tracers[0]
        else:
            return equation.primitive.name == "transpose"
    return False


def class_ids(logits: Array, axis: int, ids: Integer[Array, "..."]) -> Integer[Array, "..."]:
    """0, 1, 2 … along `axis`, to compare `ids` with; under Explicit axes in the sharding of the logits.

    XLA takes what is constant out of the loop that it stands in, and would keep an array of the size of the logits for
    it. So on one CPU it is a vector, which a barrier ties to `ids`.
    """
    if on_one_cpu(logits):
        vector, _ = jax.lax.optimization_barrier((jnp.arange(logits.shape[axis], dtype=jnp.int32), ids))
        return jnp.expand_dims(vector, [i for i in range(logits.ndim) if i != axis % logits.ndim])
    sharding = jax.typeof(logits).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.lax.broadcasted_iota(
        jnp.int32, logits.shape, axis % logits.ndim, out_sharding=sharding if explicit else None
    )


def aligned(names: Sequence[Hashable], split: Sequence[Any], shared: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
    """The arrays, varying over the same mesh axes inside a `shard_map` that types what varies.

    Those that are `split` over the classes vary over `names`, too; what is `shared` by all classes does not, unless it
    comes so. Done outside the custom derivative, so that it is JAX that sums the cotangent of what was the same on each
    device.
    """
    every = _union(split) | _union(shared)
    rows = (every - set(names)) | _union(shared)
    classes = every | typed(names)
    return [_over(classes, array) for array in split], [_over(rows, array) for array in shared]


def like(array: Array, *others: Any) -> Array:
    """`array`, varying over every mesh axis that one of the others varies over."""
    return _over(_union(others), array)


def typed(names: Iterable[Hashable]) -> set[Hashable]:
    """Those of the bound axes over which JAX types what varies, which it does not under `vmap` or `check_vma=False`."""
    return {name for name in names if name in varying(jax.lax.axis_index(name))}


def varying(array: Array) -> frozenset[Hashable]:
    """The mesh axes over which the type of the array says that it varies."""
    kind: Any = jax.typeof(array)
    return frozenset(kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying)


def _union(arrays: Iterable[Any]) -> frozenset[Hashable]:
    return frozenset().union(*(varying(array) for array in arrays if array is not None))


def _over(axes: Set[Hashable], array: Any) -> Any:
    missing = () if array is None else tuple(axes - varying(array))
    return jax.lax.pcast(array, missing, to="varying") if missing else array
