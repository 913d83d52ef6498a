"""Finds the `Split` of a call, from the mesh axes that the caller names and the shardings in the arrays' types."""

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


def split_for_logits(axis_name: Any, batch_axis_name: Any, logits: Array, axis: int) -> Split:
    """The split of a call on logits, with the classes at `axis`.

    If no axis is named, the call binds none: XLA's partitioner shards its operations by the types of the arrays.
    """

    def typed_axes() -> tuple[tuple[AxisNames, ...], AxisNames, Any]:
        names, mesh = explicit_axes(logits)
        bound_class_axes = names.pop(axis)
        return tuple(names), bound_class_axes, mesh

    samples, classes = arrays.samples_shape(logits.shape, axis), logits.shape[axis]
    found = find_split(axis_name, batch_axis_name, samples, classes, typed_axes)
    # `jnp.where` of an empty array drops the mesh axes that it varies over (JAX 0.10), so bind none for no samples.
    found = found.without(found.bound_axes) if 0 in samples else found
    return require_varying_classes(found, "logits", logits)


def split_for_layer(axis_name: Any, batch_axis_name: Any, hidden: Array, kernel: Array) -> Split:
    """The split of a call on hidden states `[*samples, features]` and a kernel `[features, classes]`.

    A kernel whose features are sharded over mesh axes of the samples (as in FSDP) is gathered for the call. Its
    gradient is reduce-scattered over these `feature_axes`, if they divide the features.
    """

    def typed_axes() -> tuple[tuple[AxisNames, ...], AxisNames, Any]:
        (*bound_sample_axes, _), hidden_mesh = explicit_axes(hidden)
        (_, bound_class_axes), kernel_mesh = explicit_axes(kernel)
        return tuple(bound_sample_axes), bound_class_axes, hidden_mesh or kernel_mesh

    samples, (features, classes) = hidden.shape[:-1], kernel.shape
    found = find_split(axis_name, batch_axis_name, samples, classes, typed_axes, always=True)
    (feature_axes, _), _ = explicit_axes(kernel)  # empty under Auto axes: those types hold no sharding
    feature_axes = tuple(name for name in feature_axes if name in found.all_bound_sample_axes)
    divides = features % math.prod(map(found.num_devices, feature_axes)) == 0
    return require_varying_classes(found._replace(feature_axes=feature_axes if divides else ()), "kernel", kernel)


def find_split(
    axis_name: Any,
    batch_axis_name: Any,
    samples: Shape,
    classes: Length,
    typed_axes: Callable[[], tuple[tuple[AxisNames, ...], AxisNames, Any]],
    always: bool = False,
) -> Split:
    """The split of a call, checked: each named axis exists, and divides the dimension that it shards.

    Args:
        axis_name: the caller's argument: mesh axes that shard the classes.
        batch_axis_name: the caller's argument: mesh axes that shard the samples.
        samples: the sample dimensions, global for axes that nothing binds.
        classes: the number of classes, likewise.
        typed_axes: returns what the types of the arrays say: the Explicit mesh axes of each sample dimension, those of
            the class dimension, and the mesh.
        always: bind the axes of the types even if no axis is named.
    """
    class_mesh_axes = _axis_names("axis_name", axis_name)
    sample_mesh_axes = _axis_names("batch_axis_name", batch_axis_name)
    if both := set(class_mesh_axes) & set(sample_mesh_axes):
        raise ValueError(f"`axis_name` and `batch_axis_name` must not share a mesh axis, got {sorted(map(str, both))}.")

    # An axis that nothing binds is one of the mesh in context: this call binds it.
    bound_class_axes = tuple(name for name in class_mesh_axes if not _is_bound(name))
    unbound_sample_names = tuple(name for name in sample_mesh_axes if not _is_bound(name))
    bound_sample_axes, typed_mesh = ((),) * len(samples), None
    if bound_class_axes or unbound_sample_names or always:
        bound_sample_axes, typed_class_axes, typed_mesh = typed_axes()
        if not class_mesh_axes:
            bound_class_axes = class_mesh_axes = typed_class_axes
        bound_sample_axes = tuple(
            tuple(name for name in names if name not in class_mesh_axes) for names in bound_sample_axes
        )

    # A named axis that is in no array's type shards the first sample dimension.
    typed_sample_names = {name for names in bound_sample_axes for name in names}
    missing = tuple(name for name in unbound_sample_names if name not in typed_sample_names)
    if missing and not samples:
        raise ValueError(f"`batch_axis_name` {missing} splits samples, but there is a single one, without an axis.")
    if missing:
        bound_sample_axes = (missing + bound_sample_axes[0], *bound_sample_axes[1:])

    context_mesh = jax.sharding.get_abstract_mesh()
    mesh = typed_mesh if context_mesh.empty else None
    for names, length in zip(bound_sample_axes, samples, strict=True):
        _require_divisible("batch_axis_name", names, length, "samples", mesh or context_mesh)
    _require_divisible("axis_name", bound_class_axes, classes, "classes", mesh or context_mesh)

    sample_mesh_axes += tuple(name for names in bound_sample_axes for name in names if name not in sample_mesh_axes)
    vmap_axes = _vmap_axes(class_mesh_axes, bound_class_axes)
    found = Split(
        () if vmap_axes else class_mesh_axes, vmap_axes, sample_mesh_axes, bound_sample_axes, bound_class_axes, mesh
    )
    return found.without(found.bound_axes & _auto_axes_of_one_device(mesh or context_mesh))


def _auto_axes_of_one_device(mesh: Any) -> set[Hashable]:
    """The Auto axes of the mesh with one device. They shard nothing, so a call need not bind them.

    XLA (jaxlib 0.10.2) cannot compile a collective over such an axis while another Auto axis is not bound: "Cross-
    partition allreduce must be in (partial) manual partitioning mode".
    """
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in types if kind == AxisType.Auto and mesh.shape[name] == 1}


def _vmap_axes(class_mesh_axes: AxisNames, bound_class_axes: AxisNames) -> AxisNames:
    """The axes of `class_mesh_axes` that a `vmap` binds, which must be all of them or none.

    `bound_class_axes` are those that this call binds.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    vmap_axes = tuple(name for name in class_mesh_axes if name not in bound_class_axes and name not in manual)
    if vmap_axes and vmap_axes != class_mesh_axes:
        raise ValueError(
            f"`axis_name` {class_mesh_axes} must not mix axes of a `vmap`, {vmap_axes}, with those of a mesh."
        )
    return vmap_axes


def require_varying_classes(found: Split, name: str, array: Array) -> Split:
    """The split, if the array varies over the mesh axes that shard its classes.

    An invariant array has the same classes on every device, so the sums over the devices would count each one again.
    """
    bound_outside = tuple(name for name in found.class_mesh_axes if name not in found.bound_class_axes)
    if same := invariant_names(array, bound_outside):
        raise ValueError(
            f"`axis_name` {same[0]!r} splits the classes, but `{name}` is the same on every device of that axis. Give "
            f"each device its own classes, by the `in_specs` of the `shard_map`; or leave `axis_name` out; or, if they "
            f'are its own, say so: jax.lax.pcast({name}, {same[0]!r}, to="varying").'
        )
    return found


def explicit_axes(array: Array) -> tuple[list[AxisNames], Any]:
    """The sharding in an array's type: the Explicit mesh axes of each dimension, and the mesh (None without any)."""
    sharding = jax.typeof(array).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return [()] * array.ndim, None
    return [names_in_entry(entry) for entry in sharding.spec], sharding.mesh


def platform_of(array: Array) -> str:
    """The platform for which the program is compiled, as in `jax.default_backend()`.

    A mesh, in the array's type or in context, may be of devices that this process does not have.
    """
    for mesh in (jax.typeof(array).sharding.mesh, jax.sharding.get_abstract_mesh()):
        # older versions of JAX do not have these properties
        platform = getattr(getattr(mesh, "abstract_device", None), "platform", None)
        if platform is not None:
            return platform
    return jax.default_backend()


def holds_every_class(split: Split, *arrays: Array) -> bool:
    """Whether each device holds all classes: they are not sharded, and no Auto axis is left that XLA might use."""
    if split.class_mesh_axes or split.vmap_axes:
        return False
    context_mesh = split.mesh or jax.sharding.get_abstract_mesh()
    meshes = [mesh for mesh in (context_mesh, *(jax.typeof(a).sharding.mesh for a in arrays)) if not mesh.empty]
    if not meshes:
        return jax.device_count() == 1
    types = {
        name: kind
        for mesh in meshes
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if mesh.shape[name] > 1
    }
    return AxisType.Auto not in {types[name] for name in types.keys() - split.bound_axes}


def _axis_names(argument: str, value: Any) -> tuple[Any, ...]:
    """The caller's axis names as a tuple: given as None, one string, or a tuple or list of strings."""
    if value is None:
        return ()
    names = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"`{argument}` must name mesh axes by strings, got {type(name).__name__}: {name!r:.60}.")
    if len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must name each mesh axis once, got {names}.")
    return names


def _is_bound(name: Hashable) -> bool:
    """Whether a surrounding `shard_map` or `vmap` binds this axis."""
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def _require_divisible(argument: str, names: AxisNames, length: Length, what: str, mesh: Any) -> None:
    """Raises an error unless the mesh has these axes, and they divide the length."""
    for name in names:
        if name not in mesh.axis_names:
            known = f"the mesh in context has the axes {', '.join(map(repr, mesh.axis_names))}"
            if not mesh.axis_names:
                cure = "with an older `with mesh:` write `with mesh, jax.set_mesh(mesh):`"
                known = f"there is no mesh in context (`jax.set_mesh`; {cure})"
            raise ValueError(f"`{argument}` {name!r} is bound by no `shard_map` or `vmap`, and {known}.")
    devices = math.prod(mesh.shape[name] for name in names)
    if length % devices:
        hint = "; pad with classes that `where` leaves out" if what == "classes" else ""
        raise ValueError(
            f"`{argument}` {'×'.join(map(str, names))} splits the {what} over {devices} devices, "
            f"but {length} {what} do not divide by {devices}{hint}."
        )
