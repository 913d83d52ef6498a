"""A custom loss of the row statistics of a linear layer, with auxiliary outputs."""

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
    temperature: ArrayLike = 1.0,
    reduction: Reduction = "sum",
    has_aux: Flag = False,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Any:
    """A custom loss of the row statistics of `hidden @ kernel + bias`, with the logits never materialised.

        Σ weight · row_loss(s, *row_args)        with s = statistics(hidden @ kernel + bias, labels) of one sample

    Use it for any loss that is a function of the `Statistics` of a sample, such as a policy-gradient loss or the
    functions in `softjax.losses`. Value and gradient take three matmuls. Statistics that `row_loss` does not read are
    not computed.

    An eager call reuses the compiled program of the same `row_loss` object if it closes over no array. Define
    `row_loss` once, outside of a training loop. Under `jit` this makes no difference.

    Args:
        row_loss: a function of one sample, vectorised over the samples. It takes the sample's `Statistics`, in nats, as
            scalars, and the sample's entry of each of `row_args`. It returns a real scalar, or `(loss, aux)` if
            `has_aux` is True. Derivatives also reach arrays that it closes over. On a mesh JAX refuses a closed-over
            array that is traced or lies on the mesh: pass it as one of `row_args`.
        hidden, kernel, labels: as in `linear_cross_entropy`.
        row_args: arrays or pytrees of arrays, `[*samples, …]`; differentiable if floating. Scalars broadcast, and so
            does an axis of length 1 in place of a sample axis.
        weights: boolean or real, broadcastable to `[*samples]`. Samples of weight 0 are ignored, whatever they hold,
            and cost no matmul, as in `linear_cross_entropy`.
        reduction: "sum". "mean" divides the sum by Σ weight, and is 0 when Σ weight is 0. "none" gives one value per
            sample; its gradient takes a fourth matmul.
        has_aux: True if `row_loss` returns `(loss, aux)`, with `aux` a pytree of arrays of any dtype. `aux` takes no
            further matmul, and no derivative flows through it. Its values for samples of weight 0 are unspecified.
        bias, where, logit_softcap, temperature, block_size, precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in the units of `row_loss`, float32 or float64. With
        `has_aux` it is `(value, aux)`, each leaf of `aux` `[*samples, …]`.

    Raises:
        TypeError: `row_loss` is not a function or does not return a real floating scalar (and `aux`), or a dtype is
            wrong.
        ValueError: a shape or a value is not valid.

    Source: the gradients are those of `statistics`, taken in the forward pass as in Hsu et al. 2024, arXiv:2410.10989.

    >>> import jax, jax.numpy as jnp, softjax
    >>> def policy_gradient(s, advantage):
    ...     return advantage * s.cross_entropy - 0.01 * s.entropy
    >>> kernel, labels, advantages = jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]), jnp.array([1.0, -1.0])
    >>> loss = jax.jit(lambda h: softjax.linear_loss(policy_gradient, h, kernel, labels, advantages))
    >>> print(loss(jnp.eye(2)).round(4))
    -2.7431
    >>> def with_accuracy(s):
    ...     return s.cross_entropy, {"correct": s.label_rank == 0}
    >>> value, aux = softjax.linear_loss(with_accuracy, jnp.eye(2), kernel, labels, reduction="mean", has_aux=True)
    >>> print(value.round(4), aux["correct"])
    1.6809 [ True False]
    """
    if not callable(row_loss):
        raise TypeError(f"`row_loss` must be a function, got {type(row_loss).__name__}: {row_loss!r:.60}.")
    layer = check_layer(hidden, kernel, bias)
    labels = check_labels(labels, layer.logits_shape, name="hidden @ kernel")
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name, weights, temperature)
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
