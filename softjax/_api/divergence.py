"""Distillation losses: the divergence of a student from its teacher, of logits or of two linear layers."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from softjax._api.evaluate import LayerConfig, LogitsConfig, layer_loss, logits_loss
from softjax._args import arrays, options
from softjax._args.labels import Teacher
from softjax._args.types import Array, ArrayLike, Axis, AxisName, Count, Kind, Number, Reduction, Shape
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
    """The divergence of a student's distribution from its teacher's, in hartleys by default.

    With q = softmax(logits / T) of the student, p = softmax(teacher_logits / T) and m = β p + (1 − β) q:

        "forward_kl"      Σ_j p_j log_b(p_j / q_j)
        "reverse_kl"      Σ_j q_j log_b(q_j / p_j)
        "jensen_shannon"  β Σ_j p_j log_b(p_j / m_j) + (1 − β) Σ_j q_j log_b(q_j / m_j)

    Use it to distil a teacher. Forward KL makes the student cover every class that the teacher finds probable. Reverse
    KL keeps the student away from classes that the teacher finds improbable. Jensen-Shannon is 0 at β = 0 and at β = 1.

    The teacher gets no gradient. The student's gradient is analytic; for forward KL it is (q_j − p_j) / (T ln b).

    Args:
        logits: the student's logits, `[*samples, classes]`, real floating; the class axis is `axis`.
        teacher_logits: real floating, of the shape of `logits`.
        kind: "forward_kl", "reverse_kl" or "jensen_shannon".
        beta: β in [0, 1]. May be a traced scalar, for schedules and for the derivative with respect to it. The value of
            a traced scalar is not checked.
        temperature: T > 0, a number, a traced scalar, or one per sample, broadcastable to `[*samples]`. The derivative
            with respect to it exists. The value of an array is not checked, and a sample of weight 0 may have any. The
            divergence is not multiplied by T². Some implementations do that to combine it with a cross-entropy.
        where: boolean, broadcastable to `logits`: True for the classes that exist, for student and teacher.
        base, axis, weights, reduction, axis_name, batch_axis_name: as in `cross_entropy`.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, never negative. The dtype is float64 if
        the student's or the teacher's logits are float64, else float32. A class with logit −inf has probability 0. If
        only the student has probability 0 at a class, forward KL is +inf and reverse KL finite. If only the teacher
        has, it is the other way round.

    Raises:
        TypeError: logits are not real floating, `where` is not boolean, or another dtype is wrong.
        ValueError: a shape, `axis`, `kind`, `beta`, `temperature`, `base` or `reduction` is not valid.

    Source: Hinton et al. 2015, arXiv:1503.02531. The generalised Jensen-Shannon divergence: Agarwal et al. 2024,
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
    target = _teacher_target(kind, beta, temperature, arrays.samples_shape(logits.shape, axis))
    target = target._replace(logits=lax.stop_gradient(teacher))
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
    """The divergence between two linear layers, a student's and its teacher's, with neither's logits materialised.

        divergence(hidden @ kernel + bias, teacher_hidden @ teacher_kernel + teacher_bias)

    Use it to distil from stored hidden states of the teacher, which are many times smaller than its logits. It computes
    the logits of both layers in chunks of samples. With the student's gradients it takes four matmuls for "mean" and
    "sum", six for "none". Samples of weight 0 cost none, as in `linear_cross_entropy`.

    Args:
        hidden: the student's hidden states `[*samples, features]`, real floating.
        kernel: the student's kernel `[features, classes]`, as in `linear_cross_entropy`.
        teacher_hidden: `[*samples, teacher_features]`; its width and dtype may differ from the student's.
        teacher_kernel: `[teacher_features, classes]`.
        kind, beta, temperature: as in `divergence`.
        bias, teacher_bias: `[classes]`.
        where: as in `linear_cross_entropy`, for student and teacher.
        logit_softcap, teacher_logit_softcap: as `logit_softcap` in `linear_cross_entropy`.
        base, weights, reduction, block_size, precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`, for both layers.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, never negative, float32 or float64. The
        teacher gets no gradient.

    Raises:
        TypeError: an array is not real floating, or another dtype is wrong.
        ValueError: a shape or a value is not valid.

    Source: as in `divergence`. Gradients in the forward pass: Hsu et al. 2024, arXiv:2410.10989.

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
    inputs = inputs._replace(labels=_teacher_target(kind, beta, temperature, inputs.shape))
    row_loss = ElementwiseLoss(_divergence_loss, options.base(base))
    return layer_loss(LayerConfig(plan, DIVERGENCES[kind], row_loss, options.reduction(reduction)), inputs)[0]


def _teacher_target(kind: Any, beta: Any, temperature: Any, samples: Shape) -> Teacher:
    """The target of a divergence, still without the teacher's logits."""
    options.choice("kind", kind, DIVERGENCES)
    t = options.temperature(temperature, samples)
    b = options.scalar("beta", beta, "in [0, 1]", lambda number: 0 <= number <= 1)
    return Teacher(None, t, jnp.asarray(b) if kind == "jensen_shannon" else None)


def _divergence_loss(_: Any, divergence: Array, base: float) -> Array:
    return from_nats(divergence, base)
