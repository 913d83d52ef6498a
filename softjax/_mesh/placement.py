"""Where the arrays of a call lie, and so how it is split: by what the caller names, and what their types say."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType

from softjax._args import arrays
from softjax._args.types import Array, Length, Shape
from softjax._mesh.axes import AxisNames, invariant_names
from softjax._mesh.split import Split, names_in_entry


def find_split(
    axis_name: Any,
    batch_axis_name: Any,
    samples: Shape,
    classes: Length,
    placed: Callable[[], tuple[tuple[AxisNames, ...], AxisNames, Any]],
    always: bool = False,
) -> Split:
    """The split of a call on `samples` and `classes`, these being global where a mesh axis is not bound.

    Args:
        placed: gives what the types of the arrays say: the mesh axes of each axis of the samples, those of the classes,
            and the mesh.
        always: take what the types say also if no axis is named.
    """
    named, batch = _axis_names("axis_name", axis_name), _axis_names("batch_axis_name", batch_axis_name)
    if both := set(named) & set(batch):
        raise ValueError(f"`axis_name` and `batch_axis_name` must not share a mesh axis, got {sorted(map(str, both))}.")
    columns = tuple(name for name in named if not _is_bound(name))
    leading = tuple(name for name in batch if not _is_bound(name))
    rows, context_mesh = ((),) * len(samples), None
    if columns or leading or always:
        rows, typed, context_mesh = placed()
        columns, named = (columns, named) if named else (typed, typed)
        rows = tuple(tuple(name for name in axis if name not in named) for axis in rows)
    seen = {name for axis in rows for name in axis}
    missing = tuple(name for name in leading if name not in seen)
    context = jax.sharding.get_abstract_mesh()
    context_mesh = None if not context.empty else context_mesh
    if missing and not samples:
        raise ValueError(f"`batch_axis_name` {missing} splits samples, but there is a single one, without an axis.")
    if missing:
        rows = (missing + rows[0], *rows[1:])
    here = context_mesh or context
    for axis, length in zip(rows, samples, strict=True):
        _require_divisible("batch_axis_name", axis, length, "samples", here)
    _require_divisible("axis_name", columns, classes, "classes", here)
    batch = batch + tuple(name for axis in rows for name in axis if name not in batch)
    mapped = _vmap_axes(named, columns)
    return Split(() if mapped else named, mapped, batch, rows, columns, context_mesh)


def _vmap_axes(named: AxisNames, columns: AxisNames) -> AxisNames:
    """The axes that a `vmap` binds: all of the named ones, or none."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    mapped = tuple(name for name in named if name not in columns and name not in manual)
    if mapped and mapped != named:
        raise ValueError(f"`axis_name` {named} must not mix axes of a `vmap`, {mapped}, with those of a mesh.")
    return mapped


def split_for_logits(axis_name: Any, batch_axis_name: Any, logits: Array, axis: int) -> Split:
    """The split of a call on logits. The compiler splits it by their types if no axis is named."""

    def placed() -> tuple[tuple[AxisNames, ...], AxisNames, Any]:
        names, known = explicit_axes(logits)
        columns = names.pop(axis)
        return tuple(names), columns, known

    found = find_split(axis_name, batch_axis_name, arrays.samples_shape(logits.shape, axis), logits.shape[axis], placed)
    return require_varying_classes(found, "logits", logits)


def split_for_layer(axis_name: Any, batch_axis_name: Any, hidden: Array, kernel: Array) -> Split:
    """The split of a call on hidden vectors `[*samples, features]` and a kernel `[features, classes]`."""

    def placed() -> tuple[tuple[AxisNames, ...], AxisNames, Any]:
        (*rows, _), known = explicit_axes(hidden)
        (_, columns), other = explicit_axes(kernel)
        return tuple(rows), columns, known or other

    samples, (features, classes) = hidden.shape[:-1], kernel.shape
    found = find_split(axis_name, batch_axis_name, samples, classes, placed, always=True)
    (kept, _), _ = explicit_axes(kernel)  # nothing under Auto axes, which do not say how the kernel lies
    kept = tuple(name for name in kept if name in found.bound_sample_axes)
    even = features % math.prod(map(found.num_devices, kept)) == 0
    return require_varying_classes(found._replace(feature_axes=kept if even else ()), "kernel", kernel)


def require_varying_classes(found: Split, name: str, array: Array) -> Split:
    """The split, if each device may have classes of its own: the same ones would be counted once for each device."""
    bound = tuple(name for name in found.class_names if name not in found.class_axes)
    if same := invariant_names(array, bound):
        raise ValueError(
            f"`axis_name` {same[0]!r} splits the classes, but `{name}` is the same on every device of that axis. Give "
            f"each device its own classes, by the `in_specs` of the `shard_map`; or leave `axis_name` out; or, if they "
            f'are its own, say so: jax.lax.pcast({name}, {same[0]!r}, to="varying").'
        )
    return found


def explicit_axes(array: Array) -> tuple[list[AxisNames], Any]:
    """What the type of an array says: for each of its axes the Explicit mesh axes, and the mesh, or None."""
    sharding = jax.typeof(array).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return [()] * array.ndim, None
    return [names_in_entry(entry) for entry in sharding.spec], sharding.mesh


def platform_of(array: Array) -> str:
    """That of the devices of its mesh, or of the mesh in context, where they may be others than are at hand."""
    for mesh in (jax.typeof(array).sharding.mesh, jax.sharding.get_abstract_mesh()):
        platform = getattr(getattr(mesh, "abstract_device", None), "platform", None)  # young properties of JAX
        if platform is not None:
            return platform
    return jax.default_backend()


def _axis_names(argument: str, value: Any) -> tuple[Any, ...]:
    """The names of mesh axes: one, or several in a tuple or a list, none for None."""
    if value is None:
        return ()
    each = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for name in each:
        if not isinstance(name, str):
            raise TypeError(f"`{argument}` must name mesh axes by strings, got {type(name).__name__}: {name!r:.60}.")
    if len(set(each)) < len(each):
        raise ValueError(f"`{argument}` must name each mesh axis once, got {each}.")
    return each


def _is_bound(name: Hashable) -> bool:
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def _require_divisible(argument: str, names: AxisNames, length: Length, what: str, on: Any) -> None:
    for name in names:
        if name not in on.axis_names:
            known = (
                f"the mesh in context has the axes {', '.join(map(repr, on.axis_names))}"
                if on.axis_names
                else "there is no mesh in context (`jax.set_mesh`)"
            )
            raise ValueError(f"`{argument}` {name!r} is bound by no `shard_map` or `vmap`, and {known}.")
    devices = math.prod(on.shape[name] for name in names)
    if length % devices:
        hint = "; pad with classes that `where` leaves out" if what == "classes" else ""
        raise ValueError(
            f"`{argument}` {'×'.join(map(str, names))} splits the {what} over {devices} devices, "
            f"but {length} {what} do not divide by {devices}{hint}."
        )


def holds_every_class(split: Split, *arrays: Array) -> bool:
    """Whether each device holds all classes: they are not split, nor may the compiler split them out of sight."""
    if split.class_names or split.vmap_axes:
        return False
    context = split.mesh or jax.sharding.get_abstract_mesh()
    meshes = [mesh for mesh in (context, *(jax.typeof(a).sharding.mesh for a in arrays)) if not mesh.empty]
    if not meshes:
        return jax.device_count() == 1
    types = {name: kind for mesh in meshes for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)}
    return AxisType.Auto not in {types[name] for name in types.keys() - split.bound_axes}
