"""Blocks of samples of a linear layer, as the sums and rows over them take them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.labels import Distribution, Target
from softjax._args.types import Array, Bool, Float
from softjax._linear.layer import Layer, Parameters
from softjax._mesh.axes import AxisNames, ClassAxis, varying_like, with_same_varying_axes
from softjax._rows.block import Block, RowRule, make_block, with_target_varying
from softjax._rows.edges import zero_ignored


class ChunkConfig(NamedTuple):
    rule: RowRule
    layer: Layer
    classes: ClassAxis
    samples: AxisNames = ()
    """The mesh axes over which the samples are split."""
    teacher: Layer | None = None
    """The layer that makes the target's logits, None for a target that has what it needs."""
    row_loss: Any = None
    """The loss of each row, and what is measured beside it, of what all rows share, the numbers of the rows and their
    own arguments. It is a constant: it closes over no array."""


class Samples(NamedTuple):
    """Each `[blocks, rows, …]`."""

    hidden: Float[Array, "blocks rows features"]
    target: Target
    weights: Float[Array, "blocks rows 1"] | None
    """None for 1."""
    row_args: Any = ()
    active_chunks: Bool[Array, " blocks"] | None = None
    """Which blocks hold a sample whose weight is not 0, None for all."""
    teacher: Any = None
    """The teacher's hidden vectors, which are constants; None where there is no teacher."""

    @property
    def active(self) -> Bool[Array, "..."] | None:
        """The samples whose weight is not 0, None for all. The others may hold anything."""
        return None if self.weights is None else self.weights != 0

    @property
    def safe_hidden(self) -> Array:
        return zero_ignored(self.hidden, self.active)


def align_samples(classes: ClassAxis, parameters: Parameters, samples: Samples) -> tuple[Parameters, Samples]:
    """Varying over the mesh as they must to meet in a custom derivative."""
    split = parameters, samples.hidden, samples.teacher
    rest = samples._replace(hidden=None, target=None, teacher=None)
    (parameters, hidden, teacher), target, rest = with_target_varying(classes, split, samples.target, rest)
    return parameters, rest._replace(hidden=hidden, target=target, teacher=teacher)


def chunk_block(
    static: ChunkConfig, parameters: Parameters, samples: Samples, x: Float[Array, "rows classes"]
) -> Block:
    """The block of these logits of these samples, with the teacher's beside them."""
    target = samples.target
    if static.teacher is not None:
        y = static.teacher.logits(zero_ignored(samples.teacher, samples.active), parameters.teacher)
        target = target._replace(logits=lax.stop_gradient(y))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return make_block(static.classes, x, target, parameters.where, samples.active)


class CompensatedSum(NamedTuple):
    """The sums of many numbers, and what the last rounding has taken from each: as exact as sums of a few."""

    total: Any
    lost: Any

    @classmethod
    def start(cls, zeros: Any) -> "CompensatedSum":
        return cls(zeros, zeros)

    def add(self, parts: Any) -> "CompensatedSum":
        # Kahan's sum, with Knuth's of two numbers, whose error is a number, whichever is larger; that of inf is none
        parts = jax.tree.map(jnp.add, parts, self.lost)
        totals = jax.tree.map(jnp.add, self.total, parts)
        return CompensatedSum(totals, jax.tree.map(_rounding_error, self.total, parts, totals))


def _rounding_error(a: Array, b: Array, total: Array) -> Array:
    taken = total - a
    return jnp.where(jnp.isfinite(total), (a - (total - taken)) + (b - taken), 0)


def zero_of_rows(static: ChunkConfig, parameters: Parameters, samples: Samples) -> Float[Array, ""]:
    """0, varying over the mesh as a number of a row does."""
    _, rest = align_samples(static.classes, parameters, samples)
    if isinstance(rest.target, Distribution):
        rest = rest._replace(target=None)
    rest = rest._replace(hidden=None, teacher=None)
    zero = jnp.zeros((), static.layer.dtype)
    return with_same_varying_axes(static.classes.names, (samples.hidden, parameters), (zero, rest))[1][0]


def zero_gradients(layer: Layer, parameters: Parameters, samples: Samples) -> tuple[Array | None, Array | None]:
    """Zeros, the kernel's as [classes, features], None where a single block adds nothing to it, and the bias's."""
    classes, features = layer.num_classes(parameters), samples.hidden.shape[-1]
    alone = isinstance(samples.hidden.shape[0], int) and samples.hidden.shape[0] == 1
    dkernel = None if alone else jnp.zeros((classes, features), layer.dtype)
    dbias = None if parameters.bias is None else jnp.zeros(classes, layer.dtype)
    return jax.tree.map(lambda zeros: varying_like(zeros, samples.hidden, parameters.kernel), (dkernel, dbias))


def add_gradients(
    layer: Layer, gradients: tuple[Array | None, Array | None], du: Float[Array, "rows classes"], hidden: Array
) -> tuple[Array, Array | None]:
    """dW + hᵀ du and db + Σ du"""
    dkernel, dbias = gradients
    dbias = None if dbias is None else dbias + jnp.sum(du, 0)
    return layer.add_kernel_gradient(dkernel, du, hidden), dbias


def in_kernel_layout(layer: Layer, dkernel: Array, dbias: Array | None) -> Parameters:
    return Parameters(dkernel if layer.transposed else dkernel.T, dbias)
