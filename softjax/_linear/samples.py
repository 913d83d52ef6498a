"""The samples of a linear layer, cut into chunks, and what one chunk needs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.labels import Distribution, Target
from softjax._args.types import Array, Bool, Float, Length, Shape
from softjax._linear.chunks import Packing, merge_chunks
from softjax._linear.layer import Layer, Parameters
from softjax._mesh.axes import AxisNames, ClassAxis, varying_like, with_same_varying_axes
from softjax._rows.block import Block, RowRule, make_block, with_target_varying
from softjax._rows.edges import zero_ignored
from softjax._xla.transpose import with_transpose


class ChunkConfig(NamedTuple):
    """The static part of a run over chunks."""

    rule: RowRule
    layer: Layer
    classes: ClassAxis
    sample_mesh_axes: AxisNames = ()
    """Mesh axes that shard the samples."""
    row_loss: Any = None
    """`(shared, values, row_args)` to the loss of each row and its aux. It closes over no array."""


class Samples(NamedTuple):
    """Arrays `[chunks, rows, …]`; inside a scan those of one chunk, `[rows, …]`.

    With a `packing` all but the weights are `[samples, …]`, in the caller's order. A chunk takes its rows from them, so
    that no second copy of the hidden states is made.
    """

    hidden: Float[Array, "... features"]
    target: Target
    weights: Float[Array, "chunks rows 1"] | None
    """None if every weight is 1."""
    row_args: Any = ()
    active_chunks: Bool[Array, " chunks"] | None = None
    """Which chunks hold a sample of weight ≠ 0, None for all."""
    teacher_hidden: Any = None
    """The teacher's hidden states, which are constants; None without a teacher."""
    temperature: Float[Array, "... 1"] | None = None
    """What divides the logits, None for 1."""
    packing: Any = None
    """The `Packing` of the rows; None if they are in the caller's order."""

    @property
    def num_chunks(self) -> Length:
        return self._chunked.shape[0]

    @property
    def chunk_size(self) -> int:
        return self._chunked.shape[1]

    @property
    def _chunked(self) -> Array:
        return self.hidden if self.packing is None else self.packing.sample

    def scanned(self) -> "Samples":
        """The arrays that a scan cuts into chunks."""
        if self.packing is None:
            return self
        sample_of_row = Packing(self.packing.sample, None)
        return Samples(None, None, self.weights, (), self.active_chunks, packing=sample_of_row)  # pyright: ignore[reportArgumentType]

    def chunk(self, scanned: "Samples") -> "Samples":
        """The samples of one chunk, from what the scan gives of it."""
        if self.packing is None:
            return scanned
        taken = scanned.packing.take(self._replace(weights=None, active_chunks=None, packing=None))
        return taken._replace(weights=scanned.weights)

    def restore(self, gradients: "Samples") -> "Samples":
        """Gradients of the chunks, `[chunks, rows, …]`, in the shapes of these arrays."""
        if self.packing is None:
            return gradients
        return self.packing.restore(gradients._replace(weights=None))._replace(weights=gradients.weights)

    def merge(self, values: Any, shape: Shape) -> Any:
        """Values `[chunks, rows, …]` as `[*samples, …]`, in the caller's order."""
        if self.packing is None:
            return merge_chunks(values, shape)
        return jax.tree.map(lambda a: a.reshape((*shape, *a.shape[1:])), self.packing.restore(values))

    @property
    def active(self) -> Bool[Array, "..."] | None:
        """Which samples have weight ≠ 0, None for all. Ignored samples may hold anything."""
        return None if self.weights is None else self.weights != 0

    @property
    def safe_hidden(self) -> Array:
        """The hidden states, finite in ignored samples."""
        return zero_ignored(self.hidden, self.active)

    @property
    def safe_temperature(self) -> Array | None:
        """The temperature, 1 for ignored samples."""
        if self.temperature is None or self.active is None:
            return self.temperature
        return jnp.where(self.active, self.temperature, 1)


def align_samples(classes: ClassAxis, parameters: Parameters, samples: Samples) -> tuple[Parameters, Samples]:
    """The same arrays, varying over the mesh axes that a custom derivative of both requires."""
    sharded = parameters, samples.hidden, samples.teacher_hidden
    rest = samples._replace(hidden=None, target=None, teacher_hidden=None)
    (parameters, hidden, teacher), target, rest = with_target_varying(classes, sharded, samples.target, rest)
    return parameters, rest._replace(hidden=hidden, target=target, teacher_hidden=teacher)


def chunk_block(
    config: ChunkConfig, parameters: Parameters, samples: Samples, x: Float[Array, "rows classes"]
) -> Block:
    """The block of a chunk's logits x; with a teacher, its logits become the target."""
    target, teacher = samples.target, config.layer.teacher
    if teacher is not None:
        y = teacher.logits(zero_ignored(samples.teacher_hidden, samples.active), parameters.teacher)
        target = target._replace(logits=lax.stop_gradient(y))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return make_block(config.classes, x, target, parameters.where, samples.active, parameters.row_class_weights)


def guard_ignored(tree: Any, active: Bool[Array, "rows 1"]) -> Any:
    """Arrays `[rows, …]` whose values and cotangents are finite in ignored rows.

    A caller's loss may turn a cotangent of 0 into 0 · inf there.
    """

    def guard(array: Array) -> Array:
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return array
        # JAX 0.10 cannot lower `with_transpose` where it has to cast the mask: a weight for all samples is invariant.
        mask = varying_like(active.reshape((-1, *(1,) * (array.ndim - 1))), array)
        return _guard_tangent(zero_ignored(array, mask), mask)

    return jax.tree.map(guard, tree)


@jax.custom_jvp
def _guard_tangent(array, active):
    return array


@_guard_tangent.defjvp
def _guard_tangent_jvp(primals, tangents):
    # The tangent, and in reverse mode the cotangent, with non-finite values of ignored rows replaced by 0. JAX does not
    # take this map for linear, so its transpose is given by hand: itself.
    def zeroed(tangent: Array) -> Array:
        return zero_ignored(tangent, primals[1])

    return _guard_tangent(*primals), with_transpose(zeroed, zeroed, tangents[0])


class CompensatedSum(NamedTuple):
    """Sums over chunks with the rounding error of each: as exact as a sum of a few terms."""

    total: Any
    error: Any

    @classmethod
    def start(cls, zeros: Any) -> "CompensatedSum":
        return cls(zeros, zeros)

    def add(self, terms: Any) -> "CompensatedSum":
        # Kahan's summation with Knuth's two-sum, whose error is exact whichever summand is larger.
        terms = jax.tree.map(jnp.add, terms, self.error)
        totals = jax.tree.map(jnp.add, self.total, terms)
        return CompensatedSum(totals, jax.tree.map(_rounding_error, self.total, terms, totals))


def _rounding_error(a: Array, b: Array, total: Array) -> Array:
    """a + b − total; 0 if the total is not finite."""
    b_rounded = total - a
    return jnp.where(jnp.isfinite(total), (a - (total - b_rounded)) + (b - b_rounded), 0)


def zero_of_rows(config: ChunkConfig, parameters: Parameters, samples: Samples) -> Float[Array, ""]:
    """0, varying over the mesh axes that a row value varies over."""
    _, rest = align_samples(config.classes, parameters, samples)
    if isinstance(rest.target, Distribution):
        rest = rest._replace(target=None)
    rest = rest._replace(hidden=None, teacher_hidden=None)
    zero, sharded = jnp.zeros((), config.layer.dtype), (samples.hidden, parameters)
    _, (zero, _) = with_same_varying_axes(config.classes.names, sharded, (zero, rest))
    return zero


def zero_gradients(layer: Layer, parameters: Parameters, samples: Samples) -> tuple[Array | None, Array | None]:
    """Accumulators of the kernel gradient, `[classes, features]`, and of the bias gradient.

    The first is None for a single chunk, whose matmul is the whole gradient.
    """
    classes, chunks, features = layer.num_classes(parameters), samples.num_chunks, samples.hidden.shape[-1]
    is_single = isinstance(chunks, int) and chunks == 1
    dkernel = None if is_single else jnp.zeros((classes, features), layer.dtype)
    dbias = None if parameters.bias is None else jnp.zeros(classes, layer.dtype)
    return jax.tree.map(lambda zeros: varying_like(zeros, samples.hidden, parameters.kernel), (dkernel, dbias))


def add_gradients(
    layer: Layer,
    gradients: tuple[Array | None, Array | None],
    du: Float[Array, "rows classes"],
    hidden: Array,
    active: Bool[Array, ""] | None = None,
) -> tuple[Array, Array | None]:
    """dW + hᵀ du and db + Σ du; du is 0 if the chunk is not `active`, None for active."""
    dkernel, dbias = gradients
    dbias = None if dbias is None else dbias + jnp.sum(du, 0)
    return layer.add_kernel_gradient(dkernel, du, hidden, active), dbias


def in_kernel_layout(layer: Layer, dkernel: Array, dbias: Array | None) -> Parameters:
    """The gradients as parameters, the kernel's in the layout of the kernel."""
    return Parameters(dkernel if layer.transposed else dkernel.T, dbias)
