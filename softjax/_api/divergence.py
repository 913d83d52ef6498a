"""Distillation: how far a student's distribution is from that of its teacher, of logits or of two last layers."""

from typing import Any

from jax import lax

from softjax._api.evaluate import LayerConfig, LogitsConfig, layer_loss, logits_loss
from softjax._args import arrays, options
from softjax._args.labels import Teacher
from softjax._args.types import Array, ArrayLike, Axis, AxisName, Count, Kind, Number, Reduction
from softjax._linear.plan import LayerOptions, check_layer, make_plan, with_teacher
from softjax._linear.row_losses import ElementwiseLoss
from softjax._mesh.placement import require_varying_classes, split_for_logits
from softjax._rows.divergence import DIVERGENCES
from softjax._rows.reduction import from_nats


def divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    kind: Kind = "forward_kl",
    beta: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    base: Number = 10.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """How far the student's q = softmax(logits / T) is from the teacher's p = softmax(teacher_logits / T).

    With m = β p + (1 − β) q:

    - "forward_kl": Σ_j p_j log_b(p_j / q_j), which covers all that the teacher finds probable,
    - "reverse_kl": Σ_j q_j log_b(q_j / p_j), which keeps off what the teacher finds improbable,
    - "jensen_shannon": β Σ_j p_j log_b(p_j / m_j) + (1 − β) Σ_j q_j log_b(q_j / m_j), which is 0 at β = 0 and 1.

    The teacher gets no gradient; the student's is analytic, as (q_j − p_j) / (T ln b) of the first.

    Args:
        logits: the student's, `[*samples, classes]`, real floating; the class axis is `axis`.
        teacher_logits: of the shape of `logits`.
        kind: "forward_kl", "reverse_kl" or "jensen_shannon".
        beta: β in [0, 1]. It and `temperature` may be traced scalars, for schedules and for derivatives by them; a
            traced value is not checked.
        temperature: T > 0. The divergence is not multiplied by T², as some do who mix it with a cross-entropy.
        where: boolean, broadcastable to `logits`: the classes that exist, for both.
        base, axis, weights, reduction, axis_name, batch_axis_name: as in `cross_entropy`.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, never negative, float32, or float64 if
        either is float64. A class of logit −inf has no probability: forward KL is finite where the teacher's is none,
        and +inf where only the student's is; reverse KL the other way about.

    Raises:
        TypeError: logits that are not real floating, `where` not boolean, another wrong dtype.
        ValueError: a shape, `axis`, `kind`, `beta`, `temperature`, `base` or `reduction` that does not fit.

    Source: Hinton et al. 2015, arXiv:1503.02531; the generalised Jensen-Shannon divergence: Agarwal et al. 2024,
    arXiv:2306.13649.

    >>> import jax.numpy as jnp, softjax
    >>> student, teacher = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 2.0, 2.0])
    >>> for kind in ("forward_kl", "reverse_kl", "jensen_shannon"):
    ...     print(f"{softjax.divergence(student, teacher, kind=kind):.4f}")
    0.0509
    0.0462
    0.0120
    """
    logits, axis = arrays.logits(logits, axis)
    teacher = arrays.floating("teacher_logits", teacher_logits)
    if teacher.shape != logits.shape:
        raise ValueError(f"`teacher_logits` must have the shape of `logits`, {logits.shape}; got {teacher.shape}.")
    where, weights = arrays.where(where, logits), arrays.weights(weights, arrays.samples_shape(logits.shape, axis))
    target = _teacher_target(kind, beta, temperature)._replace(logits=lax.stop_gradient(teacher))
    split = split_for_logits(axis_name, batch_axis_name, logits, axis)
    require_varying_classes(split, "teacher_logits", teacher)
    row_loss = ElementwiseLoss(_divergence_loss, options.base(base))
    config = LogitsConfig(axis, split, DIVERGENCES[kind], row_loss, options.reduction(reduction))
    return logits_loss(config, logits, target, where, weights, ())


def linear_divergence(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    kind: Kind = "forward_kl",
    beta: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    logit_softcap: Number | None = None,
    teacher_logit_softcap: Number | None = None,
    base: Number = 10.0,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """`divergence(hidden @ kernel + bias, teacher_hidden @ teacher_kernel + teacher_bias)`, without either's logits.

    A teacher's hidden vectors are what to keep of it: many times smaller than its logits. Blocks of samples take their
    turn, with the logits of both layers at hand. That makes four matrix products with the student's gradients for
    "mean" and "sum", six for "none".

    Args:
        hidden: the student's, `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        teacher_hidden: `[*samples, teacher_features]`; its width and type may be others.
        teacher_kernel: `[teacher_features, classes]`.
        kind, beta, temperature: as in `divergence`.
        bias, teacher_bias: `[classes]`.
        where: boolean, `[classes]` or broadcastable to it: the classes that exist, for both.
        logit_softcap, teacher_logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        base, weights, reduction, block_size, precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`, of both layers.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, never negative, float32 or float64. The
        teacher gets no gradient.

    Raises:
        TypeError: an array that is not real floating, or another wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    Source: as of `divergence`; gradients taken in the forward pass as in Hsu et al. 2024, arXiv:2410.10989.

    >>> import jax.numpy as jnp, softjax
    >>> hidden, kernel = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> teacher_hidden, teacher_kernel = jnp.array([[1.0, 1.0, 0.0]]), jnp.eye(3)
    >>> print(softjax.linear_divergence(hidden, kernel, teacher_hidden, teacher_kernel, temperature=2.0).round(4))
    0.0788
    """
    student = check_layer(hidden, kernel, bias)
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name, weights)
    plan, inputs = make_plan(student, Teacher(None, None, None), given)
    teacher = check_layer(teacher_hidden, teacher_kernel, teacher_bias, "teacher_")
    plan, inputs = with_teacher(plan, inputs, lax.stop_gradient(teacher), teacher_logit_softcap)
    inputs = inputs._replace(labels=_teacher_target(kind, beta, temperature))
    row_loss = ElementwiseLoss(_divergence_loss, options.base(base))
    return layer_loss(LayerConfig(plan, DIVERGENCES[kind], row_loss, options.reduction(reduction)), inputs)[0]


def _teacher_target(kind: Any, beta: Any, temperature: Any) -> Teacher:
    """The target of a divergence, still without the teacher's logits."""
    options.choice("kind", kind, DIVERGENCES)
    t = options.scalar("temperature", temperature, "finite and greater than 0", lambda number: number > 0)
    b = options.scalar("beta", beta, "in [0, 1]", lambda number: 0 <= number <= 1)
    return Teacher(None, None if isinstance(t, float) and t == 1 else t, b if kind == "jensen_shannon" else None)


def _divergence_loss(_: Any, divergence: Array, base: float) -> Array:
    return from_nats(divergence, base)
