"""The ways to shard a call over a mesh of samples by classes: in `shard_map`, under `vmap`, and on global arrays."""

import contextlib

import jax
import pytest
from covering import slow
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

BY_HAND = ["shard_map", "shard_map without check_vma", "vmap"]
GLOBAL = ["Auto", "Explicit"]
WORLDS = BY_HAND + GLOBAL
FEW = [BY_HAND[0], GLOBAL[1], *slow(*BY_HAND[1:], GLOBAL[0])]  # by hand, and on global arrays
AXES = ("data", "classes")
NAMES = {"axis_name": "classes", "batch_axis_name": "data"}
LOGITS, ROWS, SAME = P("data", "classes"), P("data"), P()
# One, two, three, four and eight shards of the classes. The quick tests of options run three worlds at 2 x 4. Here the
# other two are quick at that size, and two worlds at other sizes. The same law holds at each size: most are slow.
QUICK = [(BY_HAND[0], (2, 4)), ("Explicit", (2, 4)), (BY_HAND[1], (8, 1)), ("Explicit", (1, 3))]
ELSEWHERE = [(world, (2, 4)) for world in (*BY_HAND[1:], "Auto")]
ELSEWHERE += [(world, s) for s in ((1, 1), (2, 2), (1, 3), (1, 8), (8, 1)) for world in (BY_HAND[1], "Explicit")]
MESHES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in ELSEWHERE if case not in QUICK)]
SAMPLES, CLASSES = 16, 24


def mesh_of(shape, world="Auto"):
    kind = AxisType.Explicit if world == "Explicit" else AxisType.Auto
    return jax.make_mesh(shape, AXES, axis_types=(kind,) * 2, devices=jax.devices()[: shape[0] * shape[1]])


def split(world, shape, function, specs, out):
    """Makes `function`, which names both axes, a function of global arrays that are sharded as `specs`."""
    mesh = mesh_of(shape, world)
    if world == "vmap":
        return jax.jit(_vmapped(shape, function, specs, out))
    if world in BY_HAND:
        return jax.jit(
            jax.shard_map(function, mesh=mesh, in_specs=tuple(specs), out_specs=out, check_vma=world == "shard_map")
        )
    if world == "Explicit":
        return jax.jit(lambda *arrays: function(*map(jax.sharding.reshard, arrays, specs)))
    return jax.jit(function)


def context(world, shape):
    """Sets the mesh for a call on global arrays."""
    return jax.set_mesh(mesh_of(shape, world)) if world in GLOBAL else contextlib.nullcontext()


def placed(world, shape, arrays, specs):
    """The arrays, sharded if the call is one on global arrays."""
    if world not in GLOBAL:
        return list(arrays)
    mesh = mesh_of(shape, world)
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)]


def _vmapped(shape, function, specs, out):
    for name, size in zip(reversed(AXES), reversed(shape), strict=True):
        function = _over(function, name, size, specs, out)

    def mapped(*arrays):
        result = function(*(_cut(array, spec, shape) for array, spec in zip(arrays, specs, strict=True)))
        for axis, name in enumerate(out):
            if name:
                result = result.reshape((*result.shape[:axis], -1, *result.shape[axis + 2 :]))
        return result

    return mapped


def _over(function, name, size, specs, out):
    mapped = jax.vmap(
        function,
        in_axes=[list(spec).index(name) if name in spec else None for spec in specs],
        out_axes=list(out).index(name) if name in out else 0,
        axis_name=name,
        axis_size=size,
    )
    return mapped if name in out else lambda *arrays: mapped(*arrays)[0]  # the same on every device


def _cut(array, spec, shape):
    """Reshapes each sharded axis to `[shards, length]`."""
    lengths = []
    for length, name in zip(array.shape, (*spec, *[None] * (array.ndim - len(spec))), strict=True):
        parts = shape[AXES.index(name)] if name else None
        lengths += [length] if parts is None else [parts, length // parts]
    return array.reshape(lengths)
