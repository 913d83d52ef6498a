"""Any loss of the numbers of a row, over the last linear layer, and what is measured beside it."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from softjax._api.evaluate import LayerConfig, run_layer_loss
from softjax._args import arrays, options
from softjax._args.labels import SparseLabels
from softjax._args.types import ArrayLike, AxisName, Count, Flag, Function, Number, Reduction
from softjax._args.validation import check_labels
from softjax._linear.plan import LayerOptions, Plan, check_layer, make_plan
from softjax._linear.row_losses import CallerLoss
from softjax._rows.statistics import STATISTICS_IN_CACHE


def linear_loss(
    row_loss: Function,
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *row_args: Any,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    logit_softcap: Number | None = None,
    reduction: Reduction = "sum",
    has_aux: Flag = False,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Any:
    """Σ weight · row_loss(statistics, *row_args), of the statistics of hidden @ kernel + bias, without the logits.

    Any loss of a policy or a classifier that is a function of the `Statistics` of a row, with its gradient, for three
    matrix products. What `row_loss` does not read is not computed.

    Args:
        row_loss: a function of one sample: `Statistics` of scalars, and the sample's entry of each of `row_args`, to a
            real scalar, or with `has_aux` to `(loss, aux)`, `aux` a pytree of arrays of any dtype. It is mapped over
            the samples. Derivatives reach arrays that it closes over (under Explicit axes JAX allows concrete ones
            only: pass traced ones as `row_args`).
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        labels: integer class ids `[*samples]`, a floating distribution `[*samples, classes]`, or `SparseLabels`.
        row_args: arrays, or pytrees of arrays, `[*samples, …]`; differentiable where they are floating.
        bias: `[classes]`.
        where: boolean, `[classes]` or broadcastable to it: the classes that exist, as if the others had been deleted
            (what the kernel holds for them must be finite).
        weights: boolean or real, broadcastable to `[*samples]`. A sample of weight 0 may hold anything.
        logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        reduction: "sum"; "mean", over Σ weight, 0 where that is 0; "none", one number for each sample, whose gradient
            takes a fourth product.
        has_aux: whether `row_loss` gives `(loss, aux)`. What is measured beside the loss takes no further product, and
            no derivative flows through it; for samples of weight 0 it may be anything.
        block_size: the samples of a block, chosen from the shapes and the platform if None.
        precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", float32 or float64; with `has_aux` `(value, aux)`, each leaf
        of `aux` `[*samples, …]`.

    Raises:
        TypeError: `row_loss` is not a function or gives no real floating number (and `aux`), or a wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    An eager call compiles once for each `row_loss` that is the same object and closes over no array; under `jit` it
    makes no difference.

    Source: the gradients are those of `statistics`, taken in the forward pass as in Hsu et al. 2024, arXiv:2410.10989.

    >>> import jax, jax.numpy as jnp, softjax
    >>> def policy_gradient(s, advantage):
    ...     return advantage * s.cross_entropy - 0.01 * s.entropy
    >>> kernel, labels, advantages = jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]), jnp.array([1.0, -1.0])
    >>> loss = jax.jit(lambda h: softjax.linear_loss(policy_gradient, h, kernel, labels, advantages))
    >>> print(loss(jnp.eye(2)).round(4))
    -2.7431
    >>> def with_accuracy(s):
    ...     return s.cross_entropy, {"hit": s.label_rank == 0}
    >>> value, aux = softjax.linear_loss(with_accuracy, jnp.eye(2), kernel, labels, reduction="mean", has_aux=True)
    >>> print(value.round(4), aux["hit"])
    1.6809 [ True False]
    """
    if not callable(row_loss):
        raise TypeError(f"`row_loss` must be a function, got {type(row_loss).__name__}: {row_loss!r:.60}.")
    layer = check_layer(hidden, kernel, bias)
    labels = check_labels(labels, layer.logits_shape, name="hidden @ kernel")
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name, weights)
    plan, inputs = make_plan(layer, labels, given)
    leaves, tree = arrays.row_args(row_args, inputs.shape)
    config = _CallConfig(plan, tree, options.reduction(reduction), options.flag("has_aux", has_aux))
    value, aux = _compiled(row_loss)(config, inputs, leaves)
    return (value, aux) if has_aux else value


class _CallConfig(NamedTuple):
    """The static part of a call, without the row loss."""

    plan: Plan
    tree: Any
    """The structure of the row arguments."""
    reduction: str
    has_aux: bool


def _linear_loss(get_row_loss, call, inputs, leaves):
    row_loss = CallerLoss(get_row_loss(), call.tree, call.has_aux)
    return run_layer_loss(LayerConfig(call.plan, STATISTICS_IN_CACHE, row_loss, call.reduction), inputs, (), leaves)


_compiled_losses: Any = weakref.WeakKeyDictionary()


def _compiled(row_loss: Callable[..., Any]) -> Callable[..., Any]:
    """`_linear_loss` under `jit`: one for each function that closes over no array, otherwise one for this call."""
    if _may_close_over_arrays(row_loss):
        return jax.jit(partial(_linear_loss, lambda: row_loss), static_argnums=0)
    if row_loss not in _compiled_losses:
        # A weak reference, so that neither the function nor its program outlives the caller's use of it.
        _compiled_losses[row_loss] = jax.jit(partial(_linear_loss, weakref.ref(row_loss)), static_argnums=0)
    return _compiled_losses[row_loss]


def _may_close_over_arrays(function: Callable[..., Any]) -> bool:
    """False for a Python function that closes over plain constants at most; True for any other callable."""
    cells = getattr(function, "__closure__", ())
    if cells is None and not getattr(function, "__defaults__", None) and not getattr(function, "__kwdefaults__", None):
        return False
    if not cells or hasattr(function, "__self__"):
        return True
    constants = (bool, int, float, str, bytes, type(None))
    return not all(isinstance(cell.cell_contents, constants) for cell in cells)
