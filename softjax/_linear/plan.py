"""The plan of a call on a linear layer: arguments checked, shardings found, samples cut into chunks."""

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
from softjax._mesh.axes import AxisNames, ClassAxis, axis_size, manual_names, psum, vmap_names
from softjax._mesh.placement import holds_every_class, platform_of, require_varying_classes, split_for_layer
from softjax._mesh.regather import gather_features
from softjax._mesh.split import Split
from softjax._rows.block import RowRule, weigh_target
from softjax._rows.edges import to_float64
from softjax._rows.reduction import mean_from_sum
from softjax._xla.layout import is_transpose


class CheckedLayer(NamedTuple):
    """The arrays of a layer, of shapes that fit."""

    hidden: Array
    kernel: Array
    bias: Array | None

    @property
    def logits_shape(self) -> Shape:
        return (*self.hidden.shape[:-1], self.kernel.shape[1])


def check_layer(hidden: Any, kernel: Any, bias: Any, prefix: str = "") -> CheckedLayer:
    return CheckedLayer(*arrays.layer_arrays(hidden, kernel, bias, prefix))


class LayerOptions(NamedTuple):
    """The options that every `linear_*` function shares, as the caller gave them."""

    where: Any
    logit_softcap: Any
    block_size: Any
    precision: Any
    axis_name: Any
    batch_axis_name: Any
    weights: Any = None
    temperature: Any = 1.0
    class_weights: Any = None


class LayerInputs(NamedTuple):
    """The arrays of a call, in the caller's shapes; the kernel in the layout that a loop reads."""

    parameters: Parameters
    hidden: Array
    labels: Labels | TopKClasses | Teacher
    weights: Array | None
    teacher_hidden: Array | None = None
    temperature: Array | None = None
    """What divides the logits, broadcastable to the samples; None for 1."""

    @property
    def shape(self) -> Shape:
        """The shape of the samples."""
        return self.hidden.shape[:-1]

    @property
    def num_samples(self) -> Length:
        return math.prod(self.shape)

    def with_kernel(self, kernel: Array) -> "LayerInputs":
        return self._replace(parameters=self.parameters._replace(kernel=kernel))


class Plan(NamedTuple):
    """The static part of a call."""

    layer: Layer
    chunk_size: int
    split: Split
    padded_classes: int = 0
    """How many masked classes to append to the logits of a chunk: `padding_for_tensor_cores`."""

    # On a mesh: each device runs a function on its own shards.

    def shard_map(
        self, function: Callable[..., Any], inputs: LayerInputs, rest: tuple[Any, Any], out: Any
    ) -> Callable[..., Any]:
        """`function(inputs, shared, row_args)` of each device's shards, as a function of global arrays.

        `rest` is (shared, row_args), and `out` is `out_specs`.
        """
        split = self.split
        specs = jax.tree.map(split.samples_spec, inputs)
        parameters, labels = self._parameter_specs(inputs.parameters), split.labels_spec(inputs.labels, -1)
        specs = specs._replace(parameters=parameters, labels=labels)
        shared, row_args = rest
        all_specs = specs, jax.tree.map(lambda _: P(), shared), jax.tree.map(split.samples_spec, row_args)
        if split.feature_axes:
            return self._with_sharded_features(function, all_specs, out)
        return split.shard_map(function, all_specs, out)

    def _parameter_specs(self, parameters: Parameters) -> Parameters:
        """PartitionSpecs of the parameters: classes sharded, features not."""
        bound_class_axes = self.split.bound_class_axes or None

        def layer_specs(layer: Layer, parameters: Parameters) -> Parameters:
            specs = jax.tree.map(lambda _: P(bound_class_axes), parameters._replace(teacher=None))
            return specs._replace(kernel=P(bound_class_axes, None) if layer.transposed else P(None, bound_class_axes))

        return self._map_layers(layer_specs, parameters)

    def _map_layers(self, function: Callable[[Layer, Parameters], Parameters], parameters: Parameters) -> Parameters:
        """The function of the layer, and of the teacher's layer where there is one."""
        mapped, teacher = function(self.layer, parameters), self.layer.teacher
        return mapped if teacher is None else mapped._replace(teacher=function(teacher, parameters.teacher))

    def _with_sharded_features(self, function: Callable[..., Any], specs: Any, out: Any) -> Callable[..., Any]:
        """`shard_map`, with the kernel gradient reduce-scattered along the features that shard the kernel."""
        split, features = self.split, self.split.feature_axes
        others = tuple(name for name in split.all_bound_sample_axes if name not in features)
        gather = partial(gather_features, features, others, self.layer.axes[0])
        bound_class_axes = split.bound_class_axes or None
        shard = P(bound_class_axes, features) if self.layer.transposed else P(features, bound_class_axes)

        def local(inputs: LayerInputs, kernel_shard: Array, *more: Any) -> Any:
            return function(inputs.with_kernel(gather(inputs.parameters.kernel, kernel_shard)), *more)

        run = split.shard_map(local, (specs[0], shard, *specs[1:]), out)

        def run_globally(inputs: LayerInputs, *more: Any) -> Any:
            kernel = inputs.parameters.kernel
            return run(inputs.with_kernel(lax.stop_gradient(kernel)), kernel, *more)

        return run_globally

    # On one device: weights, chunks, and the reduction over them.

    @property
    def classes(self) -> ClassAxis:
        return ClassAxis(-1, self.split.class_mesh_axes)

    @property
    def _all_classes(self) -> ClassAxis:
        """The axis of a vector of all classes, also where a `vmap` shards them."""
        return ClassAxis(-1, (*self.split.class_mesh_axes, *self.split.vmap_axes))

    def any_class(self, exists: Bool[Array, " classes"]) -> Bool[Array, ""]:
        """Whether a class exists on any device."""
        return self._all_classes.any(exists)[0]

    def chunk_config(self, rule: RowRule) -> ChunkConfig:
        return ChunkConfig(rule, self.layer, self.classes, manual_names(self.split.sample_mesh_axes))

    def weights(self, inputs: LayerInputs) -> Float[Array, "*samples"] | None:
        """The weight of each sample, None if all are 1. If no class exists, every sample is ignored."""
        weights, exists = inputs.weights, inputs.parameters.exists
        if exists is not None:
            some = self.any_class(exists)
            weights = some if weights is None else jnp.where(some, weights, jnp.zeros_like(weights))
        return None if weights is None else jnp.broadcast_to(weights, inputs.shape).astype(self.layer.dtype)

    def into_chunks(
        self, inputs: LayerInputs, row_args: Any = (), weight_padding: bool = False
    ) -> tuple[Parameters, Samples]:
        """The samples cut into chunks, the active ones first if the caller gave weights.

        Padding samples have weight 0, if samples have weights; with `weight_padding` they always have.
        """
        count, weights, packing, active = inputs.num_samples, self.weights(inputs), None, None
        if weights is None and weight_padding and not chunks.chunks_are_full(count, self.chunk_size):
            weights = jnp.ones(inputs.shape, self.layer.dtype)

        def flatten(array: Array) -> Array:
            return array.reshape((count, *array.shape[len(inputs.shape) :]))

        if weights is not None:
            num_chunks = chunks.num_chunks(count, self.chunk_size)
            weights = weights.reshape(-1)
            if inputs.weights is not None and not (isinstance(count, int) and count <= self.chunk_size):
                packing = chunks.pack(weights != 0, self.chunk_size)
                weights = weights.at[packing.sample.reshape(-1)[:count]].get(mode="promise_in_bounds")
            weights = jnp.pad(weights, (0, num_chunks * self.chunk_size - count))
            weights = weights.reshape((num_chunks, self.chunk_size, 1))
            active = None if packing is None else chunks.active_chunks(weights[..., 0], self._chunk_axes)
        temperature = inputs.temperature
        if temperature is not None:
            temperature = jnp.broadcast_to(temperature, inputs.shape).astype(self.layer.dtype)[..., None]
        arrays_of_samples = inputs.hidden, self._target(inputs), row_args, inputs.teacher_hidden, temperature
        arrays_of_samples = jax.tree.map(flatten, arrays_of_samples)
        if packing is None:
            arrays_of_samples = chunks.split_into_chunks(arrays_of_samples, count, self.chunk_size)
        hidden, target, row_args, teacher_hidden, temperature = arrays_of_samples
        if self.padded_classes and isinstance(target, Distribution):
            target = target.pad_classes(self.padded_classes)
        samples = Samples(hidden, target, weights, row_args, active, teacher_hidden, temperature, packing)
        return align_samples(self.classes, self._map_layers(self._chunk_parameters, inputs.parameters), samples)

    @property
    def _chunk_axes(self) -> AxisNames:
        """The mesh axes whose devices run the same chunks: those that shard classes, and then all of the call."""
        # The collectives of a chunk are over the class axes. XLA does not promise that devices which are not part of a
        # collective may skip it.
        classes = self.split.class_mesh_axes
        samples = (name for name in manual_names(self.split.sample_mesh_axes) if name not in classes)
        return (*classes, *samples) if classes else ()

    def _chunk_parameters(self, layer: Layer, parameters: Parameters) -> Parameters:
        """The parameters of all examples of a `vmap` over classes, with padded classes.

        If no class exists, all of them do: every sample is ignored then, and its row stays finite.
        """
        kernel, bias, exists, _, class_weights = parameters
        exists = None if exists is None else self._all_classes.exists_or_all(exists)
        vectors = bias, exists, class_weights
        bias, exists, class_weights = (self.split.gather_classes(vector, 0) for vector in vectors)
        gathered = Parameters(self.split.gather_classes(kernel, layer.axes[1]), bias, exists, None, class_weights)
        return layer.pad_classes(self.padded_classes, gathered) if self.padded_classes else gathered

    def _target(self, inputs: LayerInputs) -> Target | Teacher:
        return self._target_and_label_weights(inputs)[0]

    def label_weights(self, inputs: LayerInputs) -> Float[Array, "*samples"] | None:
        """The class weight w_y of each class id; None for other labels, or without class weights."""
        return None if inputs.parameters.class_weights is None else self._target_and_label_weights(inputs)[1]

    def _target_and_label_weights(self, inputs: LayerInputs) -> tuple[Target | Teacher, Any]:
        labels, split, class_weights, label_weights = inputs.labels, self.split, inputs.parameters.class_weights, None
        classes = (
            self.layer.num_classes(inputs.parameters) * axis_size(split.class_mesh_axes) * axis_size(split.vmap_axes)
        )
        if isinstance(labels, Teacher):
            return labels.broadcast_to_rows((*inputs.shape, 1), self.layer.dtype), None
        if isinstance(labels, TopKClasses):
            return labels.checked(classes), None
        target = split.target(labels, classes, -1)
        if class_weights is not None:
            w = split.gather_classes(class_weights, 0)
            target, label_weights = weigh_target(self.classes, w.reshape((*(1,) * len(inputs.shape), -1)), target)
        return jax.tree.map(to_float64, target) if self.layer.dtype == jnp.float64 else target, label_weights

    def reduce(
        self, inputs: LayerInputs, total: Float[Array, ""], reduction: str, label_weights: Array | None = None
    ) -> Float[Array, ""]:
        """The sum over all devices, or the mean, from the sum over the chunks."""
        names = self.split.sample_mesh_axes
        total = psum(total, vmap_names(names))
        if reduction == "sum":
            return total
        return mean_from_sum(total, self.weights(inputs), inputs.num_samples, names, label_weights)


def make_plan(
    layer: CheckedLayer, labels: Labels | TopKClasses | Teacher, given: LayerOptions
) -> tuple[Plan, LayerInputs]:
    """The plan of a call and its arrays; checks the options."""
    hidden, kernel, bias = layer
    samples, (features, classes) = hidden.shape[:-1], kernel.shape
    weights, exists = arrays.weights(given.weights, samples), arrays.class_mask(given.where, classes)
    class_weights = arrays.class_weights(given.class_weights, classes)
    softcap, precision = options.softcap(given.logit_softcap), options.precision(given.precision)
    split = split_for_layer(given.axis_name, given.batch_axis_name, hidden, kernel)
    count, classes = split.local_sizes(samples, classes)
    dtype = arrays.accumulation_dtype(hidden, kernel, *jax.tree.leaves(labels))
    rows, platform = options.block_size(given.block_size), platform_of(hidden)
    if rows is None:
        packed = weights is not None
        rows = chunks.default_chunk_size(count, features, classes, jnp.dtype(dtype).itemsize, platform, packed)
    config, kernel = _layer_and_kernel(kernel, softcap, dtype, precision)
    padding = chunks.padding_for_tensor_cores(classes, platform) if holds_every_class(split, hidden, kernel) else 0
    plan = Plan(config, chunks.cap_chunk_size(rows, count), split, padding)
    temperature = options.temperature(given.temperature, samples)
    if class_weights is not None:
        class_weights = lax.stop_gradient(class_weights.astype(dtype))
    parameters = Parameters(kernel, bias, exists, None, class_weights)
    return plan, LayerInputs(parameters, hidden, labels, weights, None, temperature)


def _layer_and_kernel(kernel: Array, softcap: float | None, dtype: Any, precision: Any) -> tuple[Layer, Array]:
    """The static part of a layer, and its kernel in the layout that a loop reads."""
    transposed = is_transpose(kernel)
    return Layer(transposed, softcap, jnp.dtype(dtype), precision), kernel.T if transposed else kernel


def with_teacher(plan: Plan, inputs: LayerInputs, teacher: CheckedLayer, softcap: Any) -> tuple[Plan, LayerInputs]:
    """The plan with a teacher's layer, which has the same samples and classes. The teacher gets no gradient."""
    hidden, kernel, bias = teacher
    samples, classes = inputs.shape, plan.layer.num_classes(inputs.parameters)
    if hidden.shape[:-1] != samples:
        raise ValueError(f"`teacher_hidden` must have the samples of `hidden`, {samples}; got {hidden.shape[:-1]}.")
    if kernel.shape[1] != classes:
        raise ValueError(f"`teacher_kernel` must have the {classes} classes of `kernel`, got shape {kernel.shape}.")
    require_varying_classes(plan.split, "teacher_kernel", kernel)
    dtypes = plan.layer.dtype, jnp.dtype(arrays.accumulation_dtype(hidden, kernel))
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    softcap = options.softcap(softcap, "teacher_logit_softcap")
    layer, kernel = _layer_and_kernel(kernel, softcap, dtype, plan.layer.precision)
    parameters = inputs.parameters._replace(teacher=Parameters(kernel, bias))
    plan = plan._replace(layer=plan.layer._replace(dtype=dtype, teacher=layer))
    return plan, inputs._replace(parameters=parameters, teacher_hidden=hidden)
