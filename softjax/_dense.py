"""The loss of logits that are held: of each row, weighed and reduced."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax import _checks as checks
from softjax._block import Page, block_of
from softjax._cpu import wide
from softjax._reduce import reduce
from softjax._split import Split


class Static(NamedTuple):
    axis: int
    split: Split
    page: Page
    row_loss: Any
    """As `loss_sum` takes it: of what all rows share, the numbers of the rows, and no arguments of theirs."""
    reduction: str


@partial(jax.jit, static_argnums=0)
def loss_of_logits(static, logits, labels, where, weights, shared):
    split, axis = static.split, static.axis
    specs = (
        *split.of_dense(logits, labels, where, axis),
        split.of_samples(weights),
        jax.tree.map(lambda _: P(), shared),
    )
    out = split.result if static.reduction == "none" else P()
    return split.over(partial(_local, static), specs, out)(logits, labels, where, weights, shared)


def _local(static, logits, labels, where, weights, shared):
    samples = checks.samples(logits.shape, static.axis)
    classes, logits, target, where = static.split.dense(logits, labels, where, static.axis)
    if weights is not None:
        weights = jnp.broadcast_to(weights, samples).astype(wide(logits, *jax.tree.leaves(target)))
    if where is not None:
        exists = jnp.broadcast_to(jnp.squeeze(classes.any(where), static.axis), samples)
        weights = exists.astype(wide(logits)) if weights is None else jnp.where(exists, weights, 0)
        where = classes.nonempty(where)
    counted = None if weights is None else jnp.expand_dims(weights != 0, static.axis)
    loss, _ = static.row_loss(shared, static.page.numbers(classes, block_of(classes, logits, target, where, counted)))
    return reduce(loss, weights, static.reduction, static.split.samples)
