"""How one call is sharded over a mesh: its mesh axes, and what follows from them for its arrays.

There are two ways to name a mesh axis:

- A surrounding `shard_map` or `vmap` binds it. Then the call's arrays are one device's shards.
- Nothing binds it: it is an axis of the mesh in context (`jax.set_mesh`). Then the arrays are global, and the call
  binds the axis itself, by its own `shard_map`.

Under Explicit axes the types of the arrays hold their shardings, and no axis need be named.
"""

import math
from collections.abc import Callable, Hashable, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from softjax._args import arrays
from softjax._args.labels import FewProbabilities, Labels, Teacher, is_distribution, target_from_labels
from softjax._args.types import Array, Length, Shape
from softjax._mesh.axes import AxisNames, ClassAxis, axis_size


class Split(NamedTuple):
    """The mesh axes of a call. It is static and hashable."""

    class_mesh_axes: AxisNames
    """Mesh axes that shard the class dimension, bound by a surrounding `shard_map` or by this call."""
    vmap_axes: AxisNames
    """Axes of a surrounding `vmap` that shard the class dimension. The call gathers the classes of all its examples."""
    sample_mesh_axes: AxisNames
    """Mesh axes that shard the samples, bound by a surrounding `shard_map` or `vmap`, or by this call."""
    bound_sample_axes: tuple[AxisNames, ...]
    """For each sample dimension, the mesh axes that shard it and that this call binds."""
    bound_class_axes: AxisNames
    """The mesh axes that shard the class dimension and that this call binds."""
    mesh: Any
    """The mesh of the axes that this call binds; None for the mesh in context."""
    feature_axes: AxisNames = ()
    """Some of the axes in `bound_sample_axes`: those that shard the kernel's features. See `gather_features`."""

    def gather_classes(self, array: Any, axis: int) -> Any:
        """The array with the classes of all examples of a `vmap`, if that shards them."""
        if array is None or not self.vmap_axes:
            return array
        return lax.all_gather(array, self.vmap_axes, axis=axis % array.ndim, tiled=True)

    def slice_classes(self, array: Array, axis: int) -> Array:
        """This example's classes of an array with the classes of all examples: the inverse of `gather_classes`."""
        if not self.vmap_axes:
            return array
        length = array.shape[axis] // axis_size(self.vmap_axes)
        return lax.dynamic_slice_in_dim(array, lax.axis_index(self.vmap_axes) * length, length, axis)

    def local_inputs(self, logits: Array, labels: Any, where: Any, axis: int) -> tuple[ClassAxis, Array, Any, Any]:
        """The class axis, logits, target and class mask from which a device computes. Call it inside `shard_map`."""
        classes, (logits, where) = ClassAxis(axis, self.class_mesh_axes), self.local_classes(axis, logits, where)
        if isinstance(labels, Teacher):
            rows_shape, dtype = classes.keepdims_shape(logits), arrays.accumulation_dtype(logits, labels.logits)
            teacher = labels._replace(logits=self.gather_classes(labels.logits, axis))
            target = teacher.broadcast_to_rows(rows_shape, dtype, axis)
        else:
            target = self.target(labels, classes.num_classes(logits), axis)
        few = isinstance(target, FewProbabilities)
        return classes, logits, jax.tree.map(partial(_sharded_like, logits, axis, few=few), target), where

    def local_classes(self, axis: int, logits: Array, where: Any) -> tuple[Array, Any]:
        """The logits and the class mask from which a device computes. Call it inside `shard_map`."""
        if where is not None and self.vmap_axes:
            shape = list(where.shape)
            shape[axis] = logits.shape[axis]  # a mask for all classes of an example, to be gathered with them
            where = jnp.broadcast_to(where, shape)
        logits, where = self.gather_classes(logits, axis), self.gather_classes(where, axis)
        logits, where = jax.tree.map(partial(_sharded_like, logits, axis), (logits, where))
        return logits, where

    def local_class_weights(self, logits: Array, class_weights: Array, axis: int) -> Array:
        """Class weights of the rank of the logits, for the logits that `local_inputs` returns."""
        return _sharded_like(logits, axis, self.gather_classes(class_weights, axis))

    def target(self, labels: Labels, classes: Length, axis: int) -> Any:
        """The target that the labels stand for, given the number of classes on all devices."""
        labels = self.gather_classes(labels, axis) if is_distribution(labels) else labels
        return target_from_labels(labels, classes, axis)

    @property
    def all_bound_sample_axes(self) -> AxisNames:
        """The mesh axes that shard samples and that this call binds."""
        return tuple(name for names in self.bound_sample_axes for name in names)

    def num_devices(self, name: Hashable) -> int:
        """The number of devices along a mesh axis that this call binds."""
        return (self.mesh or jax.sharding.get_abstract_mesh()).shape[name]

    def _spec_entry(self, names: AxisNames, length: Length) -> AxisNames | None:
        """The entry of a PartitionSpec for a dimension of this length: None for one that is broadcast over devices."""
        broadcast = length == 1 and any(self.num_devices(name) > 1 for name in names)
        return names if names and not broadcast else None

    @property
    def bound_axes(self) -> set[Hashable]:
        """All mesh axes that this call binds."""
        return set(self.bound_class_axes).union(*self.bound_sample_axes)

    def without(self, axes: Set[Hashable]) -> "Split":
        """The split of a call that does not bind these mesh axes."""

        def others(names: AxisNames) -> AxisNames:
            return tuple(name for name in names if name not in axes)

        return self._replace(
            class_mesh_axes=others(self.class_mesh_axes),
            sample_mesh_axes=others(self.sample_mesh_axes),
            bound_sample_axes=tuple(map(others, self.bound_sample_axes)),
            bound_class_axes=others(self.bound_class_axes),
        )

    @property
    def output_spec(self) -> P:
        """PartitionSpec of an array with one value per sample."""
        return P(*(names or None for names in self.bound_sample_axes))

    def samples_spec(self, array: Array | None) -> P:
        """PartitionSpec of an array `[*samples, …]`. A dimension of length 1 is not sharded over several devices."""
        shape = () if array is None else array.shape
        return P(*(self._spec_entry(names, n) for names, n in zip(self.bound_sample_axes, shape, strict=False)))

    def logits_spec(self, array: Array | None, axis: int) -> P:
        """PartitionSpec of the logits, or of an array of their rank, with the class dimension at `axis`."""
        if array is None:
            return P()
        entries = list(self.bound_sample_axes)
        entries.insert(axis % array.ndim, self.bound_class_axes)
        return P(*(self._spec_entry(names, n) for names, n in zip(entries, array.shape, strict=True)))

    def labels_spec(self, labels: Any, axis: int) -> Any:
        """PartitionSpecs of a distribution, a `Teacher`, or a pytree of arrays `[*samples, …]`, such as class ids."""
        if is_distribution(labels):
            return self.logits_spec(labels, axis)
        if isinstance(labels, Teacher):
            temperature = jax.tree.map(self.samples_spec, labels.temperature)
            beta = jax.tree.map(lambda _: P(), labels.beta)
            return Teacher(self.logits_spec(labels.logits, axis), temperature, beta)
        return jax.tree.map(self.samples_spec, labels)

    def input_specs(self, logits: Array, labels: Any, where: Any, axis: int) -> tuple[P, Any, P]:
        """PartitionSpecs of the logits, the labels and the class mask."""
        return self.logits_spec(logits, axis), self.labels_spec(labels, axis), self.logits_spec(where, axis)

    def local_sizes(self, samples: Shape, classes: Length) -> tuple[Length, Length]:
        """The number of samples and of classes on one device, given the shapes of the call's own arrays."""
        devices = [
            math.prod(map(self.num_devices, names)) for names in (*self.bound_sample_axes, self.bound_class_axes)
        ]
        *local_samples, local_classes = (length // n for length, n in zip((*samples, classes), devices, strict=True))
        return math.prod(local_samples), local_classes

    def shard_map(self, function: Callable[..., Any], specs: Sequence[Any], out: Any) -> Callable[..., Any]:
        """`function` in a `shard_map` over the axes that this call binds; `function` itself if it binds none.

        The arguments are resharded to `specs` where the types hold shardings (Explicit axes). `out` is `out_specs`.
        """
        if not self.bound_axes:
            return function
        specs = tuple(specs)
        local = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out, axis_names=self.bound_axes)
        return lambda *arrays: local(*jax.tree.map(self._reshard, arrays, specs, is_leaf=lambda leaf: leaf is None))

    def _reshard(self, array: Array | None, spec: P | None) -> Array | None:
        """The array, resharded over the Explicit axes of `spec`."""
        mesh = self.mesh or jax.sharding.get_abstract_mesh()
        types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        if array is None or spec is None or AxisType.Explicit not in types.values():
            return array
        entries = [tuple(name for name in names_in_entry(entry) if types[name] == AxisType.Explicit) for entry in spec]
        return jax.sharding.reshard(array, NamedSharding(mesh, P(*(entry or None for entry in entries))))


def _sharded_like(logits: Array, axis: int, array: Array, few: bool = False) -> Array:
    """An array of the rank of the logits, with their sharding under Explicit axes, where JAX refuses to mix shardings.

    A dimension of another length than that of the logits is not sharded. Nor is the class axis of row values and of
    `few` classes. A single class looks like a row value, so it is not sharded, either.
    """
    spec = jax.typeof(logits).sharding.spec
    entries = [entry if n == m else None for entry, n, m in zip(spec, array.shape, logits.shape, strict=True)]
    if few or array.shape[axis] == 1:
        entries[axis] = None
    return _reshard_to(array, logits, P(*entries))


def reshard_like(logits: Array, array: Array) -> Array:
    """An array of the shape of the logits, with exactly their sharding under Explicit axes."""
    return _reshard_to(array, logits, jax.typeof(logits).sharding.spec)


def _reshard_to(array: Array, logits: Array, spec: P) -> Array:
    """The array, resharded on the mesh of the logits, if that has Explicit axes."""
    mesh = jax.typeof(logits).sharding.mesh
    return jax.sharding.reshard(array, NamedSharding(mesh, spec)) if AxisType.Explicit in mesh.axis_types else array


def reshard_rows(logits: Array, axis: int, array: Array | None) -> Array | None:
    """An array `[*samples]`, or one that broadcasts to it, sharded like the rows of the logits under Explicit axes.

    JAX 0.10 cannot transpose the broadcast of a dimension of length 1 that is sharded over an axis of one device.
    """
    if array is None:
        return None
    return jnp.squeeze(_sharded_like(logits, axis, jnp.expand_dims(array, axis)), axis)


def names_in_entry(entry: Any) -> AxisNames:
    """The mesh axes in an entry of a PartitionSpec: None, a name, or a tuple of names."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
