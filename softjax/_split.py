"""How a call is split over a mesh: by axes that a `shard_map` or `vmap` around it binds, or by itself.

Named axes that nothing binds are those of the mesh in context; then the arrays are global, and the call wraps itself in
a `shard_map` over them. Under Explicit axes the types of the arrays say where they lie.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from softjax import _checks as checks
from softjax import _labels
from softjax._classes import Classes, Names, size
from softjax._types import Array, Length, Shape


class Split(NamedTuple):
    """The mesh axes of a call: what is static."""

    classes: Names
    """Over which the classes are split."""
    mapped: Names
    """Axes of `vmap` over which the classes are split. It has all of them at hand, so that they are put together."""
    samples: Names
    """Over which the samples are split."""
    rows: tuple[Names, ...]
    """For each axis of the samples, the mesh axes that the call binds itself."""
    columns: Names
    """For the classes, the mesh axes that the call binds itself."""
    mesh: Any
    """The mesh of these, None for the one in context."""
    features: Names = ()
    """Over which the gradient of a kernel is split along its features, some of those of the samples."""
    typed: bool = True
    """Whether the types of the arrays say so (Explicit axes)."""

    def gathered(self, array: Any, axis: int) -> Any:
        """The array with the classes of all examples of a `vmap`."""
        if array is None or not self.mapped:
            return array
        return lax.all_gather(array, self.mapped, axis=axis % array.ndim, tiled=True)

    def scattered(self, array: Array, axis: int) -> Array:
        """Of an array with the classes of all examples, those of this one."""
        if not self.mapped:
            return array
        length = array.shape[axis] // size(self.mapped)
        return lax.dynamic_slice_in_dim(array, lax.axis_index(self.mapped) * length, length, axis)

    def dense(self, logits: Array, labels: Array, where: Any, axis: int) -> tuple[Classes, Array, Any, Any]:
        """One device's class axis, logits, target and mask."""
        logits, where = self.gathered(logits, axis), self.gathered(where, axis)
        labels = labels if _labels.is_ids(labels) else self.gathered(labels, axis)
        classes = Classes(axis, self.classes)
        return classes, logits, _labels.target_of(labels, classes.count(logits), axis), where

    @property
    def leading(self) -> Names:
        """The mesh axes of the samples that the call binds itself."""
        return tuple(name for axis in self.rows for name in axis)

    def devices(self, name: Hashable) -> int:
        """How many devices a mesh axis has that the call binds itself."""
        return (self.mesh or jax.sharding.get_abstract_mesh()).shape[name]

    @property
    def own(self) -> set[Hashable]:
        """The mesh axes that the call binds itself."""
        return set(self.columns).union(*self.rows)

    @property
    def result(self) -> P:
        """Where one number for each sample lies."""
        return P(*(names or None for names in self.rows))

    def of_samples(self, array: Array | None) -> P:
        """Where `[*samples, …]` lies; an axis of length 1 is that of an array to be broadcast."""
        shape = () if array is None else array.shape
        return P(*(_entry(names, n) for names, n in zip(self.rows, shape, strict=False)))

    def of_logits(self, array: Array | None, axis: int) -> P:
        """Where an array of the rank of the logits lies, with its classes at `axis`."""
        if array is None:
            return P()
        entries = list(self.rows)
        entries.insert(axis % array.ndim, self.columns)
        return P(*(_entry(names, n) for names, n in zip(entries, array.shape, strict=True)))

    def of_labels(self, labels: Array, axis: int) -> P:
        """Where class ids, or distributions over the classes, lie."""
        return self.of_samples(labels) if labels.ndim == len(self.rows) else self.of_logits(labels, axis)

    def of_dense(self, logits: Array, labels: Array, where: Any, axis: int) -> tuple[P, P, P]:
        return self.of_logits(logits, axis), self.of_labels(labels, axis), self.of_logits(where, axis)

    def share(self, samples: Shape, classes: Length) -> tuple[Length, Length]:
        """How many samples and how many classes one device holds, of so many of the call's arrays."""
        parts = [math.prod(map(self.devices, names)) for names in (*self.rows, self.columns)]
        *local, columns = (length // part for length, part in zip((*samples, classes), parts, strict=True))
        return math.prod(local), columns

    def over(self, function: Callable[..., Any], specs: Sequence[Any], out: Any) -> Callable[..., Any]:
        """The function of global arrays that is `function` on each device's part of them."""
        if not self.own:
            return function
        specs = tuple(specs)
        local = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out, axis_names=self.own)
        return lambda *arrays: local(*jax.tree.map(self._placed, arrays, specs, is_leaf=lambda leaf: leaf is None))

    def _placed(self, array: Array | None, spec: P | None) -> Array | None:
        on = self.mesh or jax.sharding.get_abstract_mesh()
        types = dict(zip(on.axis_names, on.axis_types, strict=True))
        if array is None or spec is None or AxisType.Explicit not in types.values():
            return array
        entries = [tuple(name for name in _names(entry) if types[name] == AxisType.Explicit) for entry in spec]
        return jax.sharding.reshard(array, NamedSharding(on, P(*(entry or None for entry in entries))))


def split(
    axis_name: Any,
    batch_axis_name: Any,
    samples: Shape,
    classes: Length,
    placed: Callable[[], tuple[tuple[Names, ...], Names, Any]],
    always: bool = False,
) -> Split:
    """The split of a call on `samples` and `classes`, these being global where a mesh axis is not bound.

    Args:
        placed: gives what the types of the arrays say: the mesh axes of each axis of the samples, those of the classes,
            and the mesh.
        always: take what the types say also if no axis is named.
    """
    named, batch = _checked("axis_name", axis_name), _checked("batch_axis_name", batch_axis_name)
    if both := set(named) & set(batch):
        raise ValueError(f"`axis_name` and `batch_axis_name` must not share a mesh axis, got {sorted(map(str, both))}.")
    columns = tuple(name for name in named if not _bound(name))
    leading = tuple(name for name in batch if not _bound(name))
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
        _check("batch_axis_name", axis, length, "samples", here)
    _check("axis_name", columns, classes, "classes", here)
    batch = batch + tuple(name for axis in rows for name in axis if name not in batch)
    mapped = _of_a_vmap(named, columns)
    return Split(() if mapped else named, mapped, batch, rows, columns, context_mesh)


def _of_a_vmap(named: Names, columns: Names) -> Names:
    """The axes that a `vmap` binds: all of the named ones, or none."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    mapped = tuple(name for name in named if name not in columns and name not in manual)
    if mapped and mapped != named:
        raise ValueError(f"`axis_name` {named} must not mix axes of a `vmap`, {mapped}, with those of a mesh.")
    return mapped


def split_of_logits(axis_name: Any, batch_axis_name: Any, logits: Array, axis: int) -> Split:
    """The split of a call on logits. The compiler splits it by their types if no axis is named."""

    def placed() -> tuple[tuple[Names, ...], Names, Any]:
        names, known = placement_of(logits)
        columns = names.pop(axis)
        return tuple(names), columns, known

    return split(axis_name, batch_axis_name, checks.samples(logits.shape, axis), logits.shape[axis], placed)


def split_of_layer(axis_name: Any, batch_axis_name: Any, hidden: Array, kernel: Array) -> Split:
    """The split of a call on hidden vectors `[*samples, features]` and a kernel `[features, classes]`."""

    def placed() -> tuple[tuple[Names, ...], Names, Any]:
        (*rows, _), known = placement_of(hidden)
        (_, columns), other = placement_of(kernel)
        return tuple(rows), columns, known or other

    samples, (features, classes) = hidden.shape[:-1], kernel.shape
    found = split(axis_name, batch_axis_name, samples, classes, placed, always=True)
    (kept, _), typed = placement_of(kernel)
    if typed is None:  # Auto axes do not say how the kernel lies: all axes that sum its gradient may split it
        kept = found.leading
    kept = tuple(name for name in kept if name in found.leading)
    even = features % math.prod(found.devices(name) for name in kept) == 0
    return found._replace(features=kept if even else (), typed=typed is not None)


def placement_of(array: Array) -> tuple[list[Names], Any]:
    """What the type of an array says: for each of its axes the Explicit mesh axes, and the mesh, or None."""
    sharding = jax.typeof(array).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return [()] * array.ndim, None
    return [_names(entry) for entry in sharding.spec], sharding.mesh


def _names(entry: Any) -> Names:
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _entry(names: Names, length: Length) -> Names | None:
    return names if names and length != 1 else None


def _checked(argument: str, value: Any) -> tuple[Any, ...]:
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


def _bound(name: Hashable) -> bool:
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def _check(argument: str, names: Names, length: Length, what: str, on: Any) -> None:
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
        hint = "; pad with classes that `where`, or a bias of -inf, leaves out" if what == "classes" else ""
        raise ValueError(
            f"`{argument}` {'×'.join(map(str, names))} splits the {what} over {devices} devices, "
            f"but {length} {what} do not divide by {devices}{hint}."
        )
