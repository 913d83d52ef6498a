"""The two runs that all losses share: of logits, and of a linear layer."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax._args import arrays
from softjax._linear.plan import LayerArrays
from softjax._linear.recomputed import rows_in_shape
from softjax._mesh.split import Split
from softjax._rows.block import RowRule, make_block
from softjax._rows.reduction import reduce
from softjax._rows.statistics import STATISTICS_IN_CACHE


class LogitsConfig(NamedTuple):
    axis: int
    split: Split
    rule: RowRule
    row_loss: Any
    """As `loss_sum` takes it: of what all rows share, the numbers of the rows, and no arguments of theirs."""
    reduction: str


@partial(jax.jit, static_argnums=0)
def logits_loss(static, logits, labels, where, weights, shared):
    split, axis = static.split, static.axis
    specs = (
        *split.input_specs(logits, labels, where, axis),
        split.samples_spec(weights),
        jax.tree.map(lambda _: P(), shared),
    )
    out = split.output_spec if static.reduction == "none" else P()
    return split.shard_map(partial(_local_loss, static), specs, out)(logits, labels, where, weights, shared)


def _local_loss(static, logits, labels, where, weights, shared):
    samples = arrays.samples_shape(logits.shape, static.axis)
    classes, logits, target, where = static.split.local_inputs(logits, labels, where, static.axis)
    if weights is not None:
        weights = jnp.broadcast_to(weights, samples).astype(arrays.accumulation_dtype(logits, *jax.tree.leaves(target)))
    if where is not None:
        exists = jnp.broadcast_to(jnp.squeeze(classes.any(where), static.axis), samples)
        weights = exists.astype(arrays.accumulation_dtype(logits)) if weights is None else jnp.where(exists, weights, 0)
        where = classes.exists_or_all(where)
    counted = None if weights is None else jnp.expand_dims(weights != 0, static.axis)
    loss, _ = static.row_loss(shared, static.rule.apply(classes, make_block(classes, logits, target, where, counted)))
    return reduce(loss, weights, static.reduction, static.split.sample_names)


@partial(jax.jit, static_argnums=(0, 1))
def layer_rows(read, plan, problem):
    """What `read(plan, problem, row)` takes of the numbers of each row."""

    def local(problem: LayerArrays, *_: Any) -> Any:
        return read(
            plan,
            problem,
            rows_in_shape(plan.chunk_config(STATISTICS_IN_CACHE), plan.into_chunks(problem), problem.shape),
        )

    return plan.shard_map(local, problem, ((), ()), plan.split.output_spec)(problem, (), ())
