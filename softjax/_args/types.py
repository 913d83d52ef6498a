"""The names of shapes and dtypes in annotations.

Axes are named in words: `*samples` are the batch axes, `classes` is the class axis. `*rows` is the shape of the logits
with the class axis at length 1, so that a value of each row broadcasts against the logits. Only the test run checks
annotations (`--jaxtyping-packages=softjax,beartype.beartype`); users pay nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NewType

from jax.typing import ArrayLike as ArrayLike
from jaxtyping import Array as Array
from jaxtyping import Bool as Bool
from jaxtyping import Float as Float
from jaxtyping import Integer as Integer

if TYPE_CHECKING:
    Function = Callable[..., Any]
    Axis = Count = Length = int
    Axes = int | tuple[int, ...]
    Shape = tuple[int, ...]
    AxisName = str | tuple[str, ...] | None
    Flag = bool
    Number = int | float
    Reduction = Literal["mean", "sum", "none"]
    Kind = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
else:

    def any_value(name: str) -> Any:
        """A type of every value, which `help` shows by its name.

        The argument checks refuse wrong values with a better message than beartype, to which a `NewType` of `object` is
        any object. `help` leaves out the module of a name only if that is `typing`.
        """
        new_type = NewType(name, object)
        new_type.__module__ = "typing"
        return new_type

    ArrayLike, Function, Flag, Number = map(any_value, ("ArrayLike", "Function", "Flag", "Number"))
    Axis, Axes, Count, AxisName = map(any_value, ("Axis", "Axes", "Count", "AxisName"))
    Length, Shape = map(any_value, ("Length", "Shape"))  # symbolic under `jax.export`
    Reduction, Kind = map(any_value, ("Reduction", "Kind"))
