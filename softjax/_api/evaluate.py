"""Four runs that all functions share: a loss or row values, of logits or of a linear layer."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax._args import arrays
from softjax._args.types import Array, Shape
from softjax._linear.fused import fused_loss_sum
from softjax._linear.plan import LayerInputs, Plan
from softjax._linear.recomputed import rows_in_shape
from softjax._mesh.split import Split, reshard_rows
from softjax._rows.block import RowRule, apply_rule, make_block, weigh_target
from softjax._rows.reduction import reduce
from softjax._rows.statistics import STATISTICS_IF_READ_IN_CACHE
from softjax._xla.transpose import compute_gradient_once, compute_sum_once


class LogitsConfig(NamedTuple):
    """The static part of a loss of logits."""

    axis: int
    split: Split
    rule: RowRule
    row_loss: Any
    """One of `_linear/row_losses.py`."""
    reduction: str


def logits_loss(config, logits, labels, where, weights, shared, class_weights=None):
    """The weighted and reduced row loss of logits; `shared` are arrays that all rows use."""
    return _logits_loss(config, compute_sum_once(logits), labels, where, weights, shared, class_weights)


@partial(jax.jit, static_argnums=0)
def _logits_loss(config, logits, labels, where, weights, shared, class_weights):
    split, axis = config.split, config.axis
    inputs, weights_spec = split.input_specs(logits, labels, where, axis), split.samples_spec(weights)
    if class_weights is not None:  # in the rank of the logits
        class_weights = jnp.expand_dims(class_weights, [i for i in range(logits.ndim) if i != axis % logits.ndim])
    specs = *inputs, weights_spec, jax.tree.map(lambda _: P(), shared), split.logits_spec(class_weights, axis)
    out = split.output_spec if config.reduction == "none" else P()
    run = split.shard_map(partial(_local_logits_loss, config), specs, out)
    return run(logits, labels, where, weights, shared, class_weights)


def _local_logits_loss(config, logits, labels, where, weights, shared, class_weights):
    samples, row_args, label_weights = arrays.samples_shape(logits.shape, config.axis), (), None
    classes, logits, target, where = config.split.local_inputs(logits, labels, where, config.axis)
    weights = reshard_rows(logits, config.axis, weights)
    if class_weights is not None:
        dtype = arrays.accumulation_dtype(logits, *jax.tree.leaves(target))
        class_weights = config.split.local_class_weights(logits, class_weights, config.axis).astype(dtype)
        target, label_weights = weigh_target(classes, class_weights, target)
        row_args = () if label_weights is None else (label_weights,)
    if weights is not None:
        weights = jnp.broadcast_to(weights, samples).astype(arrays.accumulation_dtype(logits, *jax.tree.leaves(target)))
    if where is not None:
        exists = jnp.broadcast_to(jnp.squeeze(classes.any(where), config.axis), samples)
        weights = exists.astype(arrays.accumulation_dtype(logits)) if weights is None else jnp.where(exists, weights, 0)
        where = classes.exists_or_all(where)
    active = None if weights is None else jnp.expand_dims(weights != 0, config.axis)
    block = make_block(classes, compute_gradient_once(logits), target, where, active, class_weights)
    loss, _ = config.row_loss(shared, apply_rule(config.rule, block), row_args)
    return reduce(loss, weights, config.reduction, config.split.sample_mesh_axes, label_weights)


def logits_rows(select, axis, split, rule, logits, labels, where):
    """`select(classes, values, any_class)` of the row values of logits.

    `any_class` says which rows have an existing class, the class axis kept at length 1; None for all.
    """
    return _logits_rows(select, axis, split, rule, compute_sum_once(logits), labels, where)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _logits_rows(select, axis, split, rule, logits, labels, where):

    def local(logits: Array, labels: Any, where: Array | None) -> Any:
        classes, logits, target, where = split.local_inputs(logits, labels, where, axis)
        any_class, exists = (None, None) if where is None else (classes.any(where), classes.exists_or_all(where))
        values = apply_rule(rule, make_block(classes, compute_gradient_once(logits), target, exists, any_class))
        return select(classes, values, any_class)

    specs = split.input_specs(logits, labels, where, axis)
    return split.shard_map(local, specs, split.output_spec)(logits, labels, where)


class LayerConfig(NamedTuple):
    """The static part of a loss of a linear layer."""

    plan: Plan
    rule: RowRule
    row_loss: Any
    """One of `_linear/row_losses.py`."""
    reduction: str


def run_layer_loss(config: LayerConfig, inputs: LayerInputs, shared: Any = (), row_args: Any = ()) -> tuple[Any, Any]:
    """The weighted and reduced row loss of a linear layer, and its aux; `shared` are arrays that all rows use."""
    plan = config.plan
    shared = jax.tree.map(lambda array: jnp.asarray(array).astype(plan.layer.dtype), shared)
    per_sample = plan.split.output_spec
    local, value_spec = (_local_rows, per_sample) if config.reduction == "none" else (_local_sum, P())
    run = plan.shard_map(partial(local, config), inputs, (shared, row_args), (value_spec, per_sample))
    return run(inputs, shared, row_args)


layer_loss = partial(jax.jit, static_argnums=0)(run_layer_loss)


def _local_sum(config, inputs, shared, row_args):
    """Three matmuls: gradients are taken in the forward pass."""
    plan, row_args = config.plan, _broadcast_to_samples(row_args, inputs.shape)
    label_weights = plan.label_weights(inputs)
    row_args = row_args if label_weights is None else (label_weights,)
    parameters, samples = plan.into_chunks(inputs, row_args, weight_padding=True)
    chunk_config = plan.chunk_config(config.rule)
    row_loss, shared = config.row_loss.hoist(chunk_config, parameters, samples, shared)
    total, aux = fused_loss_sum(chunk_config._replace(row_loss=row_loss), parameters, samples, shared)
    return plan.reduce(inputs, total, config.reduction, label_weights), samples.merge(aux, inputs.shape)


def _local_rows(config, inputs, shared, row_args):
    """Four matmuls: the backward pass computes the logits again."""
    plan, weights, row_args = config.plan, config.plan.weights(inputs), _broadcast_to_samples(row_args, inputs.shape)
    label_weights = plan.label_weights(inputs)
    row_args = row_args if label_weights is None else (label_weights,)
    values = rows_in_shape(plan.chunk_config(config.rule), plan.into_chunks(inputs), inputs.shape)
    loss, aux = config.row_loss.without_chunks(shared, values, row_args, weights)
    return reduce(loss.astype(plan.layer.dtype), weights, "none"), jax.lax.stop_gradient(aux)


def _broadcast_to_samples(row_args: Any, samples: Shape) -> Any:
    """Each leaf as `[*samples, …]`."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*samples, *a.shape[len(samples) :])), row_args)


@partial(jax.jit, static_argnums=(0, 1))
def layer_rows(select, plan, inputs):
    """`select(plan, inputs, values)` of the row values of a linear layer."""

    def local(inputs: LayerInputs, *_: Any) -> Any:
        values = rows_in_shape(plan.chunk_config(STATISTICS_IF_READ_IN_CACHE), plan.into_chunks(inputs), inputs.shape)
        return select(plan, inputs, values)

    return plan.shard_map(local, inputs, ((), ()), plan.split.output_spec)(inputs, (), ())
