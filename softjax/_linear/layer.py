"""The last linear layer for a block of samples: its logits, and their pull-back to what they were made from.

Every product takes its operands in the type they came in and accumulates in float32 or wider; float16 operands are
widened for the products of the pull-back, since gradients of logits would underflow in float16.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from softjax._args import arrays
from softjax._args.types import Array, Bool, Float
from softjax._mesh.axes import varying_like
from softjax._xla import one_cpu
from softjax._xla.transpose import add_with_transpose


class Parameters(NamedTuple):
    kernel: Float[Array, "_ _"]
    bias: Float[Array, " classes"] | None
    exists: Bool[Array, " classes"] | None = None
    """The classes that exist, None for all."""
    teacher: Any = None
    """Those of the teacher's layer, which are constants; None where there is no teacher."""

    @property
    def where(self) -> Bool[Array, "1 classes"] | None:
        """The classes that exist, for every row."""
        return None if self.exists is None else self.exists[None, :]


class Layer(NamedTuple):
    """What is static of the layer cap · tanh((h W + b) / cap)."""

    transposed: bool
    """The kernel is kept as `[classes, features]`."""
    softcap: float | None
    dtype: jnp.dtype
    """Of the logits and of what is computed from them, float32 or wider."""
    precision: Any = None
    """Of every product: the backward pass is traced later, when the default may be another."""

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of the features and of the classes in the kernel."""
        return (1, 0) if self.transposed else (0, 1)

    def num_classes(self, parameters: Parameters) -> int:
        return parameters.kernel.shape[self.axes[1]]

    def pad_classes(self, count: int, parameters: Parameters) -> Parameters:
        """With `count` more classes, which do not exist."""
        kernel, bias, exists, _ = parameters
        exists = jnp.ones(self.num_classes(parameters), bool) if exists is None else exists
        widths = [(0, count) if axis == self.axes[1] else (0, 0) for axis in (0, 1)]
        bias = None if bias is None else jnp.pad(bias, (0, count))
        return Parameters(jnp.pad(kernel, widths), bias, jnp.pad(exists, (0, count)))

    def logits(self, hidden: Float[Array, "rows features"], parameters: Parameters) -> Float[Array, "rows classes"]:
        kernel, bias, *_ = parameters
        x = self.matmul(hidden, kernel, 1, self.axes[0]).astype(self.dtype)
        if bias is not None:
            x = x + bias.astype(x.dtype)[None, :]
        # a class that −inf leaves out stays out, where tanh(−inf) would be −1
        return x if self.softcap is None else jnp.where(x == -jnp.inf, x, self.softcap * jnp.tanh(x / self.softcap))

    def softcap_vjp(
        self, dx: Float[Array, "rows classes"], x: Float[Array, "rows classes"]
    ) -> Float[Array, "rows classes"]:
        """The cotangent of h W + b from that of the logits."""
        # x = cap · tanh(u / cap)  ⇒  ∂x/∂u = 1 − (x / cap)²
        return dx if self.softcap is None else dx * (1 - (jnp.where(x == -jnp.inf, 0, x) / self.softcap) ** 2)

    def hidden_gradient(self, du: Float[Array, "rows classes"], kernel: Array) -> Float[Array, "rows features"]:
        """dh = du Wᵀ"""
        classes = self.axes[1]
        if kernel.dtype == du.dtype:
            return self.matmul(du, kernel, 1, classes)
        cast = _cast_cotangent(kernel, du)
        nothing = lax.pad(du[:, :0], jnp.zeros((), du.dtype), [(0, 0, 0), (0, kernel.shape[1 - classes], 0)])
        return add_with_transpose(
            lambda y, du: y + self.matmul(*cast(du), 1, classes).astype(du.dtype),
            lambda y: self.matmul(*cast(y), 1, 1 - classes).astype(du.dtype),
            nothing,
            du,
        )

    def add_kernel_gradient(
        self, total: Float[Array, "classes features"] | None, du: Float[Array, "rows classes"], hidden: Array
    ) -> Float[Array, "classes features"]:
        """total + duᵀ h = total + dWᵀ: a CPU takes half the time of that for [features, classes]. None is 0.

        What is added to piece by piece lies in memory as it is; a product alone goes at once to where the kernel's
        gradient is to lie.
        """
        cast = _cast_cotangent(hidden, du)
        add_product = one_cpu.add_in_tiles if total is not None else lambda zero, function, x: zero + function(x)
        if total is None:
            total = varying_like(jnp.zeros((du.shape[1], hidden.shape[1]), du.dtype), du, hidden)

        def add(total: Array, du: Array) -> Array:
            du, h = cast(du)
            return add_product(total, lambda du: self.matmul(du, h, 0, 0).astype(total.dtype), du)

        def back(total: Array) -> Array:
            total, h = cast(total)
            return self.matmul(h, total, 1, 1).astype(du.dtype)

        return add_with_transpose(add, back, total, du)

    def matmul(self, a: Array, b: Array, i: int, j: int) -> Array:
        """Σ over axis i of a and axis j of b."""
        axes, dtype = (((i,), (j,)), ((), ())), arrays.accumulation_dtype(a, b)
        return lax.dot_general(a, b, axes, precision=self.precision, preferred_element_type=dtype)


def _cast_cotangent(other: Array, du: Array) -> Callable[[Array], tuple[Array, Array]]:
    """A cotangent in the type of the other operand; for float16, in which it would underflow, that one is widened."""
    if other.dtype == jnp.float16:
        return lambda cotangent: (cotangent, other.astype(du.dtype))
    return lambda cotangent: (cotangent.astype(other.dtype), other)
