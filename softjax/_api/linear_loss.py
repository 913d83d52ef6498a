"""A custom loss of the row statistics of a linear layer, with auxiliary outputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from softjax._api.evaluate import LayerConfig, run_layer_loss
from softjax._args import arrays, options
from softjax._args.labels import SparseLabels
from softjax._args.types import Array, ArrayLike, AxisName, Count, Flag, Function, Number, Reduction, Shape
from softjax._args.validation import check_labels
from softjax._linear.plan import LayerOptions, check_layer, make_plan
from softjax._linear.row_losses import CallerLoss
from softjax._rows.statistics import STATISTICS_IN_CACHE, Statistics


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

    An eager call traces `row_loss`, and reuses the compiled program of an earlier one that traces to the same. So it
    sees a global that has changed. If `row_loss` closes over an array or calls back to the host, each eager call
    compiles anew: pass the array as one of `row_args`, or call under `jit`.

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
    caller_loss = CallerLoss(row_loss, tree, options.flag("has_aux", has_aux))
    config = LayerConfig(plan, STATISTICS_IN_CACHE, None, options.reduction(reduction))
    value, aux = _compiled(caller_loss, config, inputs.shape, leaves)(config, inputs, leaves)
    return (value, aux) if has_aux else value


def _linear_loss(row_loss, config, inputs, leaves):
    return run_layer_loss(config._replace(row_loss=row_loss.caller_loss), inputs, (), leaves)


class _RowLoss:
    """A row loss that equals another one if both trace to the same program. So the compiled program fits both."""

    def __init__(self, caller_loss: CallerLoss, program: str):
        self.caller_loss, self.program = caller_loss, program

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _RowLoss) and self.program == other.program

    def __hash__(self) -> int:
        return hash(self.program)


_cached_linear_loss = jax.jit(_linear_loss, static_argnums=(0, 1))


def _compiled(loss: CallerLoss, config: LayerConfig, samples: Shape, leaves: list[Array]) -> Callable[..., Any]:
    """`_linear_loss` of this loss under `jit`. A program is kept for later calls if its text says all of it."""
    program = _traced_program(loss, config, samples, leaves)
    if program.consts or _holds_function(program.jaxpr):
        return jax.jit(partial(_linear_loss, _RowLoss(loss, "")), static_argnums=0)
    return partial(_cached_linear_loss, _RowLoss(loss, f"{program} {jax.tree.structure((loss.tree, loss.has_aux))}"))


def _holds_function(jaxpr: Any) -> bool:
    """Whether an equation holds a function, such as a callback to the host, whose text may be that of another one."""
    parameters = jax.tree.leaves([list(equation.params.values()) for equation in jaxpr.eqns])
    inner = [getattr(value, "jaxpr", value) for value in parameters]
    not_functions = type, jax.sharding.Mesh, jax.sharding.AbstractMesh  # which may be called all the same
    return any(callable(value) and not isinstance(value, not_functions) for value in parameters) or any(
        _holds_function(value) for value in inner if hasattr(value, "eqns")
    )


def _traced_program(loss: CallerLoss, config: LayerConfig, samples: Shape, leaves: list[Array]) -> Any:
    """The jaxpr of the loss of one sample, of its aux and of its VJP, which holds the rules of custom derivatives."""
    real, integer = (jax.ShapeDtypeStruct((), dtype) for dtype in (config.plan.layer.dtype, jnp.int32))
    one_sample = [jax.ShapeDtypeStruct(leaf.shape[len(samples) :], leaf.dtype) for leaf in leaves]
    arguments, structure = jax.tree.flatten((Statistics.fill(real, integer), one_sample))
    floating = [jnp.issubdtype(argument.dtype, jnp.floating) for argument in arguments]

    def value_and_vjp(arguments: list[Array]) -> Any:
        def of_floating(differentiated: list[Array]) -> tuple[Array, Any]:
            remaining = iter(differentiated)
            merged = [next(remaining) if is_floating else a for a, is_floating in zip(arguments, floating, strict=True)]
            return loss.one_sample(*jax.tree.unflatten(structure, merged))

        differentiated = [a for a, is_floating in zip(arguments, floating, strict=True) if is_floating]
        value, pull, aux = jax.vjp(of_floating, differentiated, has_aux=True)
        return value, aux, pull(jnp.ones_like(value))

    return jax.make_jaxpr(value_and_vjp)(arguments)
