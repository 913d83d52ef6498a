"""The five setups of these tests: ways to shard a call over a mesh with one axis for samples and one for classes.

- In a map, the caller binds the axis names around the call: `shard_map`, `shard_map` without `check_vma`, `vmap`.
- On global arrays, a mesh is in context. Its axes are Auto, or Explicit, where the types of the arrays are sharded.
"""

import contextlib

import jax
import pytest
from covering import slow
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

IN_A_MAP = ["shard_map", "shard_map without check_vma", "vmap"]
GLOBAL = ["Auto", "Explicit"]
SETUPS = IN_A_MAP + GLOBAL
TWO_QUICK = [IN_A_MAP[0], GLOBAL[1], *slow(*IN_A_MAP[1:], GLOBAL[0])]  # one quick setup of each kind
AXES = ("data", "classes")
NAMES = {"axis_name": "classes", "batch_axis_name": "data"}
LOGITS, ROWS, REPLICATED = P("data", "classes"), P("data"), P()
# Meshes with one, two, three, four and eight shards of the classes. The same law holds on each, so most are slow.
QUICK = [(IN_A_MAP[0], (2, 4)), ("Explicit", (2, 4)), (IN_A_MAP[1], (8, 1)), ("Explicit", (1, 3))]
OTHER_MESHES = [(setup, (2, 4)) for setup in (*IN_A_MAP[1:], "Auto")]
OTHER_MESHES += [(setup, s) for s in ((1, 1), (2, 2), (1, 3), (1, 8), (8, 1)) for setup in (IN_A_MAP[1], "Explicit")]
MESHES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_MESHES if case not in QUICK)]
SAMPLES, CLASSES = 16, 24


def mesh_of(shape, setup="Auto"):
    kind = AxisType.Explicit if setup == "Explicit" else AxisType.Auto
    return jax.make_mesh(shape, AXES, axis_types=(kind,) * 2, devices=jax.devices()[: shape[0] * shape[1]])


def shard_function(setup, shape, function, specs, out):
    """`function`, which names both mesh axes, as a function of global arrays with the PartitionSpecs `specs`."""
    mesh = mesh_of(shape, setup)
    if setup == "vmap":
        return jax.jit(_vmapped(shape, function, specs, out))
    if setup in IN_A_MAP:
        return jax.jit(
            jax.shard_map(function, mesh=mesh, in_specs=tuple(specs), out_specs=out, check_vma=setup == "shard_map")
        )
    if setup == "Explicit":
        return jax.jit(lambda *arrays: function(*map(jax.sharding.reshard, arrays, specs)))
    return jax.jit(function)


def mesh_context(setup, shape):
    """Sets the mesh of a call on global arrays. A map has a mesh of its own."""
    return jax.set_mesh(mesh_of(shape, setup)) if setup in GLOBAL else contextlib.nullcontext()


def placed(setup, shape, arrays, specs):
    """The arrays as the setup takes them: global arrays are placed on the mesh."""
    if setup not in GLOBAL:
        return list(arrays)
    mesh = mesh_of(shape, setup)
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)]


def _vmapped(shape, function, specs, out):
    for name, size in zip(reversed(AXES), reversed(shape), strict=True):
        function = _vmap_over_axis(function, name, size, specs, out)

    def mapped(*arrays):
        result = function(*(_split_axes(array, spec, shape) for array, spec in zip(arrays, specs, strict=True)))
        for axis, name in enumerate(out):
            if name:
                result = result.reshape((*result.shape[:axis], -1, *result.shape[axis + 2 :]))
        return result

    return mapped


def _vmap_over_axis(function, name, size, specs, out):
    mapped = jax.vmap(
        function,
        in_axes=[list(spec).index(name) if name in spec else None for spec in specs],
        out_axes=list(out).index(name) if name in out else 0,
        axis_name=name,
        axis_size=size,
    )
    return mapped if name in out else lambda *arrays: mapped(*arrays)[0]  # replicated


def _split_axes(array, spec, shape):
    """Reshapes each sharded axis to `[shards, length]`."""
    lengths = []
    for length, name in zip(array.shape, (*spec, *[None] * (array.ndim - len(spec))), strict=True):
        shards = shape[AXES.index(name)] if name else None
        lengths += [length] if shards is None else [shards, length // shards]
    return array.reshape(lengths)
