"""The last linear layer on a chunk of samples: its logits, and their VJP.

Each matmul takes its operands in their own dtype and accumulates in float32 or wider. The backward matmuls widen
float16 operands, since gradients of logits would underflow in float16.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from softjax._args import arrays
from softjax._args.types import Array, Bool, Float
from softjax._linear.chunks import compute_if
from softjax._mesh.axes import ClassAxis, varying_like
from softjax._xla import one_cpu
from softjax._xla.transpose import add_with_transpose


class Parameters(NamedTuple):
    """The arrays of a layer."""

    kernel: Float[Array, "_ _"]
    bias: Float[Array, " classes"] | None
    exists: Bool[Array, " classes"] | None = None
    """The classes that `where` keeps, None for all."""
    teacher: Any = None
    """The parameters of `Layer.teacher`, which are constants; None without a teacher."""
    class_weights: Array | None = None
    """The weight of each class, a constant; None if all are 1."""

    @property
    def where(self) -> Bool[Array, "1 classes"] | None:
        """The classes that exist, for every row."""
        return None if self.exists is None else self.exists[None, :]

    @property
    def row_class_weights(self) -> Float[Array, "1 classes"] | None:
        """The weight of each class, for every row."""
        return None if self.class_weights is None else self.class_weights[None, :]


class Layer(NamedTuple):
    """The static part of the layer cap · tanh((h W + b) / cap) / T."""

    transposed: bool
    """Whether the kernel is kept as `[classes, features]`."""
    softcap: float | None
    dtype: jnp.dtype
    """The dtype of the logits and of all that is computed from them: float32 or wider."""
    precision: Any = None
    """Of every matmul. It is stored, since the backward pass is traced later, under another default perhaps."""
    teacher: "Layer | None" = None
    """The layer that makes a teacher's logits from its own hidden states."""

    @property
    def axes(self) -> tuple[int, int]:
        """The feature axis and the class axis of the kernel."""
        return (1, 0) if self.transposed else (0, 1)

    def num_classes(self, parameters: Parameters) -> int:
        return parameters.kernel.shape[self.axes[1]]

    def pad_classes(self, count: int, parameters: Parameters) -> Parameters:
        """The parameters with `count` more classes, which are masked."""
        kernel, bias, exists, _, class_weights = parameters
        exists = jnp.ones(self.num_classes(parameters), bool) if exists is None else exists
        widths = [(0, count) if axis == self.axes[1] else (0, 0) for axis in (0, 1)]
        bias, class_weights = (
            None if vector is None else jnp.pad(vector, (0, count)) for vector in (bias, class_weights)
        )
        return Parameters(jnp.pad(kernel, widths), bias, jnp.pad(exists, (0, count)), None, class_weights)

    def logits(
        self,
        hidden: Float[Array, "rows features"],
        parameters: Parameters,
        temperature: Float[Array, "rows 1"] | None = None,
    ) -> Float[Array, "rows classes"]:
        kernel, bias, *_ = parameters
        u = self.matmul(hidden, kernel, 1, self.axes[0]).astype(self.dtype)
        if bias is not None:
            u = u + bias.astype(u.dtype)[None, :]
        # A class with bias −inf keeps logit −inf, where tanh(−inf) would be −1.
        if self.softcap is not None:
            u = jnp.where(u == -jnp.inf, u, self.softcap * jnp.tanh(u / self.softcap))
        return u if temperature is None else u / temperature

    def logits_vjp(
        self,
        dx: Float[Array, "rows classes"],
        x: Float[Array, "rows classes"],
        temperature: Float[Array, "rows 1"] | None,
        classes: ClassAxis,
    ) -> tuple[Float[Array, "rows classes"], Float[Array, "rows 1"] | None]:
        """du of u = h W + b, and dT, from dx of the logits x."""
        # x = cap · tanh(u / cap) / T  ⇒  ∂x/∂u = (1 − (x T / cap)²) / T    ∂x/∂T = −x / T
        dtemperature = None
        if temperature is not None:
            products = dx * jnp.where(x == -jnp.inf, 0, x)
            dtemperature = classes.divide_cotangent(-classes.sum_keepdims(products) / temperature)
            dx, x = dx / temperature, x * temperature
        if self.softcap is not None:
            dx = dx * (1 - (jnp.where(x == -jnp.inf, 0, x) / self.softcap) ** 2)
        return dx, dtemperature

    def hidden_gradient(
        self, du: Float[Array, "rows classes"], kernel: Array, active: Bool[Array, ""] | None = None
    ) -> Float[Array, "rows features"]:
        """dh = du Wᵀ; du is 0 if the chunk is not `active`, None for active."""
        class_axis = self.axes[1]
        if active is None and kernel.dtype == du.dtype:
            return self.matmul(du, kernel, 1, class_axis)
        cast = _cast_cotangent_to(kernel, du)
        zeros = lax.pad(du[:, :0], jnp.zeros((), du.dtype), [(0, 0, 0), (0, kernel.shape[1 - class_axis], 0)])
        add, back = _if_active(
            active,
            lambda y, du: y + self.matmul(*cast(du), 1, class_axis).astype(du.dtype),
            lambda y: self.matmul(*cast(y), 1, 1 - class_axis).astype(du.dtype),
        )
        return add_with_transpose(add, back, zeros, du)

    def add_kernel_gradient(
        self,
        accumulator: Float[Array, "classes features"] | None,
        du: Float[Array, "rows classes"],
        hidden: Array,
        active: Bool[Array, ""] | None = None,
    ) -> Float[Array, "classes features"]:
        """accumulator + duᵀ h = accumulator + dWᵀ; None is 0. A CPU takes half the time of hᵀ du for it.

        du is 0 if the chunk is not `active`, None for active.

        An accumulator keeps the layout [classes, features]. A single matmul writes straight into the layout of the
        kernel gradient.
        """
        cast = _cast_cotangent_to(hidden, du)
        add_matmul = one_cpu.add_in_tiles
        if accumulator is None:
            add_matmul = lambda zeros, matmul, x: zeros + matmul(x)  # noqa: E731
            accumulator = varying_like(jnp.zeros((du.shape[1], hidden.shape[1]), du.dtype), du, hidden)

        def add(accumulator: Array, du: Array) -> Array:
            du, h = cast(du)
            return add_matmul(accumulator, lambda du: self.matmul(du, h, 0, 0).astype(accumulator.dtype), du)

        def transpose(accumulator: Array) -> Array:
            accumulator, h = cast(accumulator)
            return self.matmul(h, accumulator, 1, 1).astype(du.dtype)

        return add_with_transpose(*_if_active(active, add, transpose), accumulator, du)

    def matmul(self, a: Array, b: Array, i: int, j: int) -> Array:
        """Contracts axis i of a with axis j of b."""
        axes, dtype = (((i,), (j,)), ((), ())), arrays.accumulation_dtype(a, b)
        return lax.dot_general(a, b, axes, precision=self.precision, preferred_element_type=dtype)


def _if_active(
    active: Bool[Array, ""] | None, add: Callable[[Array, Array], Array], back: Callable[[Array], Array]
) -> tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]:
    """The two functions of `add_with_transpose`, which add and give 0 if the chunk is not `active`."""
    if active is None:
        return add, back
    return (
        lambda total, x: lax.cond(active, add, lambda total, _: total, total, x),
        lambda y: compute_if(active, lambda: back(y)),
    )


def _cast_cotangent_to(other: Array, du: Array) -> Callable[[Array], tuple[Array, Array]]:
    """Maps a cotangent to the pair of matmul operands (cotangent, other), both in the dtype of `other`.

    float16 is the exception: the cotangent would underflow, so `other` is widened.
    """
    if other.dtype == jnp.float16:
        return lambda cotangent: (cotangent, other.astype(du.dtype))
    return lambda cotangent: (cotangent.astype(other.dtype), other)
