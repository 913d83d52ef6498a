"""The arguments of a linear layer and its loss: checked, laid over the devices, and cut into blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from softjax._args import arrays, options
from softjax._args.labels import Distribution, Labels, Target, Teacher, TopKClasses
from softjax._args.types import Array, Bool, Float, Length, Shape
from softjax._linear import chunks
from softjax._linear.layer import Layer, Parameters
from softjax._linear.samples import ChunkConfig, Samples, align_samples
from softjax._mesh.axes import ClassAxis, axis_size, manual_names, psum, vmap_names
from softjax._mesh.placement import holds_every_class, platform_of, require_varying_classes, split_for_layer
from softjax._mesh.regather import gather_features
from softjax._mesh.split import Split
from softjax._rows.block import RowRule
from softjax._rows.edges import to_float64
from softjax._rows.reduction import mean_from_sum
from softjax._xla.layout import is_transpose


class LayerArrays(NamedTuple):
    """The arrays, in the shapes that they came in; the kernel as a loop takes it."""

    parameters: Parameters
    hidden: Array
    labels: Labels | TopKClasses | Teacher
    weights: Array | None
    teacher: Array | None = None
    """The teacher's hidden vectors."""

    @property
    def shape(self) -> Shape:
        """Of the samples."""
        return self.hidden.shape[:-1]

    @property
    def samples(self) -> Length:
        return math.prod(self.shape)

    def with_kernel(self, kernel: Array) -> "LayerArrays":
        return self._replace(parameters=self.parameters._replace(kernel=kernel))


class Plan(NamedTuple):
    """What is static."""

    layer: Layer
    chunk_size: int
    """The samples of a block."""
    split: Split
    teacher: Layer | None = None
    padded_classes: int = 0
    """How many more classes a block's logits have than there are: `blocks.more_classes`."""

    @property
    def classes(self) -> ClassAxis:
        return ClassAxis(-1, self.split.class_names)

    def shard_map(
        self, function: Callable[..., Any], problem: LayerArrays, more: Any, out: Any
    ) -> Callable[..., Any]:
        """`function(problem, shared, row_args)` as one of global arrays: on each device's part of them."""
        split = self.split
        specs = jax.tree.map(split.samples_spec, problem)
        specs = specs._replace(
            parameters=self._parameter_specs(problem.parameters), labels=split.labels_spec(problem.labels, -1)
        )
        shared, row_args = more
        rest = jax.tree.map(lambda _: P(), shared), jax.tree.map(split.samples_spec, row_args)
        if split.feature_axes:
            return self._regathering(function, (specs, *rest), out)
        return split.shard_map(function, (specs, *rest), out)

    def _parameter_specs(self, parameters: Parameters) -> Parameters:
        """Where they lie: the classes split, the features not."""
        columns = self.split.class_axes or None

        def of_layer(layer: Layer, parameters: Parameters) -> Parameters:
            specs = jax.tree.map(lambda _: P(columns), parameters._replace(teacher=None))
            return specs._replace(kernel=P(columns, None) if layer.transposed else P(None, columns))

        return self._of_layers(of_layer, parameters)

    def _of_layers(self, function: Callable[[Layer, Parameters], Parameters], parameters: Parameters) -> Parameters:
        """The function of each of the layers."""
        own = function(self.layer, parameters)
        return own if self.teacher is None else own._replace(teacher=function(self.teacher, parameters.teacher))

    def _regathering(self, function: Callable[..., Any], specs: Any, out: Any) -> Callable[..., Any]:
        """The same, with the gradient of the kernel reduce-scattered along its features."""
        split, features = self.split, self.split.feature_axes
        others = tuple(name for name in split.bound_sample_axes if name not in features)
        gather = partial(gather_features, features, others, self.layer.axes[0])
        columns = split.class_axes or None
        part = P(columns, features) if self.layer.transposed else P(features, columns)

        def local(problem: LayerArrays, part: Array, *more: Any) -> Any:
            return function(problem.with_kernel(gather(problem.parameters.kernel, part)), *more)

        run = split.shard_map(local, (specs[0], part, *specs[1:]), out)

        def of_whole(problem: LayerArrays, *more: Any) -> Any:
            kernel = problem.parameters.kernel
            return run(problem.with_kernel(lax.stop_gradient(kernel)), kernel, *more)

        return of_whole

    def weights(self, problem: LayerArrays) -> Float[Array, "*samples"] | None:
        """One weight for each sample, None for 1. Where no class exists, no sample is counted."""
        weights, exists = problem.weights, problem.parameters.exists
        if exists is not None:
            some = self.any_class(exists)
            weights = some if weights is None else jnp.where(some, weights, jnp.zeros_like(weights))
        return None if weights is None else jnp.broadcast_to(weights, problem.shape).astype(self.layer.dtype)

    @property
    def _every_class(self) -> ClassAxis:
        """The axis of a vector of all classes, also where a `vmap` splits them."""
        return ClassAxis(-1, (*self.split.class_names, *self.split.vmap_axes))

    def any_class(self, exists: Bool[Array, " classes"]) -> Bool[Array, ""]:
        """Whether a class exists, on any device."""
        return self._every_class.any(exists)[0]

    def chunk_config(self, rule: RowRule) -> ChunkConfig:
        return ChunkConfig(rule, self.layer, self.classes, manual_names(self.split.sample_names), self.teacher)

    def reduce(self, problem: LayerArrays, total: Float[Array, ""], reduction: str) -> Float[Array, ""]:
        """The sum over the blocks as that of all devices, or as the mean."""
        names = self.split.sample_names
        total = psum(total, vmap_names(names))
        return total if reduction == "sum" else mean_from_sum(total, self.weights(problem), problem.samples, names)

    def into_chunks(self, problem: LayerArrays, row_args: Any = ()) -> tuple[Parameters, Samples]:
        """The samples cut into blocks; those that fill up the last one weigh nothing, if any sample has a weight."""
        count, weights = problem.samples, self.weights(problem)

        def cut(array: Array) -> Array:
            return chunks.split_into_chunks(
                array.reshape((count, *array.shape[len(problem.shape) :])), count, self.chunk_size
            )

        each = problem.hidden, self._target(problem), row_args, problem.teacher
        hidden, target, row_args, teacher = jax.tree.map(cut, each)
        if weights is not None:
            missing = math.prod(hidden.shape[:2]) - count
            weights = jnp.pad(weights.reshape(-1), (0, missing)).reshape((*hidden.shape[:2], 1))
        # Where the classes are split, a block's numbers are sums over devices, which all of them must come to.
        occupied = None
        if weights is not None and problem.weights is not None and not self.split.class_names:
            occupied = chunks.active_chunks(weights[..., 0])
        if self.padded_classes and isinstance(target, Distribution):
            target = target.pad_classes(self.padded_classes)
        samples = Samples(hidden, target, weights, row_args, occupied, teacher)
        return align_samples(self.classes, self._of_layers(self._padded_parameters, problem.parameters), samples)

    def _padded_parameters(self, layer: Layer, parameters: Parameters) -> Parameters:
        """With the classes of all examples of a `vmap`, and those that do not exist; every class where none exists, as
        no sample is counted then.
        """
        kernel, bias, exists, _ = parameters
        exists = None if exists is None else self._every_class.exists_or_all(exists)
        bias, exists = (self.split.gather_classes(vector, 0) for vector in (bias, exists))
        whole = Parameters(self.split.gather_classes(kernel, layer.axes[1]), bias, exists)
        return layer.pad_classes(self.padded_classes, whole) if self.padded_classes else whole

    def into_full_chunks(self, problem: LayerArrays, row_args: Any = ()) -> tuple[Parameters, Samples]:
        """The same, with weights wherever samples fill up the last block."""
        if self.weights(problem) is not None or chunks.chunks_are_full(problem.samples, self.chunk_size):
            return self.into_chunks(problem, row_args)
        ones = jnp.ones(problem.shape, self.layer.dtype)
        parameters, samples = self.into_chunks(problem._replace(weights=ones), row_args)
        return parameters, samples._replace(active_chunks=None)

    def _target(self, problem: LayerArrays) -> Target | Teacher:
        labels, split = problem.labels, self.split
        classes = self.layer.num_classes(problem.parameters) * axis_size(split.class_names) * axis_size(split.vmap_axes)
        if isinstance(labels, Teacher):
            return labels.broadcast_to_rows((*problem.shape, 1), self.layer.dtype)
        if isinstance(labels, TopKClasses):
            return labels.checked(classes)
        target = split.target(labels, classes, -1)
        return jax.tree.map(to_float64, target) if self.layer.dtype == jnp.float64 else target


def make_plan(
    hidden: Any,
    kernel: Any,
    labels: Callable[[Shape], Labels | TopKClasses | Teacher],
    *,
    names: tuple[Any, Any],
    weights: Any = None,
    **given: Any,
) -> tuple[Plan, LayerArrays]:
    """What the caller gave, refused by name if it does not fit; the labels are given for logits of a shape."""
    hidden, kernel, bias = arrays.layer_arrays(hidden, kernel, given["bias"])
    samples, (features, classes) = hidden.shape[:-1], kernel.shape
    target = labels((*samples, classes))
    weights, exists = arrays.weights(weights, samples), arrays.class_mask(given["where"], classes)
    cap, precision = options.softcap(given["logit_softcap"]), options.precision(given["precision"])
    split = split_for_layer(*names, hidden, kernel)
    count, classes = split.local_sizes(samples, classes)
    dtype = arrays.accumulation_dtype(hidden, kernel, *jax.tree.leaves(target))
    rows, platform = options.block_size(given["block_size"]), platform_of(hidden)
    if rows is None:
        rows = chunks.chunk_size(count, features, classes, jnp.dtype(dtype).itemsize, platform)
    layer, kernel = _layer_and_kernel(kernel, cap, dtype, precision)
    more = chunks.padding_for_tensor_cores(classes, platform) if holds_every_class(split, hidden, kernel) else 0
    plan = Plan(layer, chunks.cap_chunk(rows, count), split, padded_classes=more)
    return plan, LayerArrays(Parameters(kernel, bias, exists), hidden, target, weights)


def _layer_and_kernel(kernel: Array, cap: float | None, dtype: Any, precision: Any) -> tuple[Layer, Array]:
    """What is static of the layer, and its kernel as a loop takes it."""
    transposed = is_transpose(kernel)
    return Layer(transposed, cap, jnp.dtype(dtype), precision), kernel.T if transposed else kernel


def with_teacher(
    plan: Plan, problem: LayerArrays, hidden: Any, kernel: Any, bias: Any, cap: Any
) -> tuple[Plan, LayerArrays]:
    """The same, with a second layer beside the first, of as many samples and classes."""
    hidden, kernel, bias = arrays.layer_arrays(hidden, kernel, bias, prefix="teacher_")
    samples, classes = problem.shape, plan.layer.num_classes(problem.parameters)
    if hidden.shape[:-1] != samples:
        raise ValueError(f"`teacher_hidden` must have the samples of `hidden`, {samples}; got {hidden.shape[:-1]}.")
    if kernel.shape[1] != classes:
        raise ValueError(f"`teacher_kernel` must have the {classes} classes of `kernel`, got shape {kernel.shape}.")
    require_varying_classes(plan.split, "teacher_kernel", kernel)
    dtype = max(
        plan.layer.dtype, jnp.dtype(arrays.accumulation_dtype(hidden, kernel)), key=lambda dtype: dtype.itemsize
    )
    teacher, kernel = _layer_and_kernel(
        kernel, options.softcap(cap, "teacher_logit_softcap"), dtype, plan.layer.precision
    )
    plan = plan._replace(layer=plan.layer._replace(dtype=dtype), teacher=teacher)
    parameters = problem.parameters._replace(teacher=Parameters(kernel, bias))
    return plan, problem._replace(parameters=parameters, teacher=hidden)
