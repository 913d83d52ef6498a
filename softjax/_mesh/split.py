"""How a call is split over a mesh: by axes that a `shard_map` or `vmap` around it binds, or by itself.

Named axes that nothing binds are those of the mesh in context; then the arrays are global, and the call wraps itself in
a `shard_map` over them. Under Explicit axes the types of the arrays say where they lie.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from softjax._args import arrays
from softjax._args.labels import Labels, Teacher, is_distribution, target_from_labels
from softjax._args.types import Array, Length, Shape
from softjax._mesh.axes import AxisNames, ClassAxis, axis_size


class Split(NamedTuple):
    """The mesh axes of a call: what is static."""

    class_names: AxisNames
    """Over which the classes are split."""
    vmap_axes: AxisNames
    """Axes of `vmap` over which the classes are split. It has all of them at hand, so that they are put together."""
    sample_names: AxisNames
    """Over which the samples are split."""
    sample_axes: tuple[AxisNames, ...]
    """For each axis of the samples, the mesh axes that the call binds itself."""
    class_axes: AxisNames
    """For the classes, the mesh axes that the call binds itself."""
    mesh: Any
    """The mesh of these, None for the one in context."""
    feature_axes: AxisNames = ()
    """Over which the gradient of a kernel is split along its features, some of those of the samples."""

    def gather_classes(self, array: Any, axis: int) -> Any:
        """The array with the classes of all examples of a `vmap`."""
        if array is None or not self.vmap_axes:
            return array
        return lax.all_gather(array, self.vmap_axes, axis=axis % array.ndim, tiled=True)

    def slice_classes(self, array: Array, axis: int) -> Array:
        """Of an array with the classes of all examples, those of this one."""
        if not self.vmap_axes:
            return array
        length = array.shape[axis] // axis_size(self.vmap_axes)
        return lax.dynamic_slice_in_dim(array, lax.axis_index(self.vmap_axes) * length, length, axis)

    def local_inputs(self, logits: Array, labels: Any, where: Any, axis: int) -> tuple[ClassAxis, Array, Any, Any]:
        """One device's class axis, logits, target and mask."""
        logits, where = self.gather_classes(logits, axis), self.gather_classes(where, axis)
        classes = ClassAxis(axis, self.class_names)
        if isinstance(labels, Teacher):
            of_each, dtype = classes.keepdims_shape(logits), arrays.accumulation_dtype(logits, labels.logits)
            target = labels._replace(logits=self.gather_classes(labels.logits, axis)).broadcast_to_rows(of_each, dtype)
            return classes, logits, jax.tree.map(partial(_sharded_like, logits), target), where
        return classes, logits, self.target(labels, classes.num_classes(logits), axis), where

    def target(self, labels: Labels, classes: Length, axis: int) -> Any:
        """The target of labels for so many classes; a distribution with those of all examples of a `vmap`."""
        labels = self.gather_classes(labels, axis) if is_distribution(labels) else labels
        return target_from_labels(labels, classes, axis)

    @property
    def bound_sample_axes(self) -> AxisNames:
        """The mesh axes of the samples that the call binds itself."""
        return tuple(name for axis in self.sample_axes for name in axis)

    def num_devices(self, name: Hashable) -> int:
        """How many devices a mesh axis has that the call binds itself."""
        return (self.mesh or jax.sharding.get_abstract_mesh()).shape[name]

    @property
    def bound_axes(self) -> set[Hashable]:
        """The mesh axes that the call binds itself."""
        return set(self.class_axes).union(*self.sample_axes)

    @property
    def output_spec(self) -> P:
        """Where one number for each sample lies."""
        return P(*(names or None for names in self.sample_axes))

    def samples_spec(self, array: Array | None) -> P:
        """Where `[*samples, …]` lies; an axis of length 1 is that of an array to be broadcast."""
        shape = () if array is None else array.shape
        return P(*(_spec_entry(names, n) for names, n in zip(self.sample_axes, shape, strict=False)))

    def logits_spec(self, array: Array | None, axis: int) -> P:
        """Where an array of the rank of the logits lies, with its classes at `axis`."""
        if array is None:
            return P()
        entries = list(self.sample_axes)
        entries.insert(axis % array.ndim, self.class_axes)
        return P(*(_spec_entry(names, n) for names, n in zip(entries, array.shape, strict=True)))

    def labels_spec(self, labels: Any, axis: int) -> Any:
        """Where class ids, distributions over the classes, or what there is of each sample lie."""
        if is_distribution(labels):
            return self.logits_spec(labels, axis)
        if isinstance(labels, Teacher):
            return jax.tree.map(lambda _: P(), labels)._replace(logits=self.logits_spec(labels.logits, axis))
        return jax.tree.map(self.samples_spec, labels)

    def input_specs(self, logits: Array, labels: Any, where: Any, axis: int) -> tuple[P, Any, P]:
        return self.logits_spec(logits, axis), self.labels_spec(labels, axis), self.logits_spec(where, axis)

    def local_sizes(self, samples: Shape, classes: Length) -> tuple[Length, Length]:
        """How many samples and how many classes one device holds, of so many of the call's arrays."""
        parts = [math.prod(map(self.num_devices, names)) for names in (*self.sample_axes, self.class_axes)]
        *local, columns = (length // part for length, part in zip((*samples, classes), parts, strict=True))
        return math.prod(local), columns

    def shard_map(self, function: Callable[..., Any], specs: Sequence[Any], out: Any) -> Callable[..., Any]:
        """The function of global arrays that is `function` on each device's part of them."""
        if not self.bound_axes:
            return function
        specs = tuple(specs)
        local = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out, axis_names=self.bound_axes)
        return lambda *arrays: local(*jax.tree.map(self._placed, arrays, specs, is_leaf=lambda leaf: leaf is None))

    def _placed(self, array: Array | None, spec: P | None) -> Array | None:
        on = self.mesh or jax.sharding.get_abstract_mesh()
        types = dict(zip(on.axis_names, on.axis_types, strict=True))
        if array is None or spec is None or AxisType.Explicit not in types.values():
            return array
        entries = [tuple(name for name in names_in_entry(entry) if types[name] == AxisType.Explicit) for entry in spec]
        return jax.sharding.reshard(array, NamedSharding(on, P(*(entry or None for entry in entries))))


def _sharded_like(logits: Array, array: Array) -> Array:
    """The array, of the rank of the logits, split under Explicit axes as they are."""
    sharding = jax.typeof(logits).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    spec = P(*(None if n == 1 else entry for n, entry in zip(array.shape, sharding.spec, strict=True)))
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))


def names_in_entry(entry: Any) -> AxisNames:
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _spec_entry(names: AxisNames, length: Length) -> AxisNames | None:
    return names if names and length != 1 else None
