"""The names that annotations use for arrays, shapes and options.

Axes have names: `*samples` are the batch axes and `classes` is the class axis. `*rows` is the shape of the logits with
a class axis of length 1, so that one value per row broadcasts against the logits. Only the tests check annotations
(`--jaxtyping-packages=softjax,beartype.beartype`); a user's program never does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType

from jaxtyping import Array as Array
from jaxtyping import Bool as Bool
from jaxtyping import Float as Float
from jaxtyping import Integer as Integer

if TYPE_CHECKING:
    from jax.typing import ArrayLike as ArrayLike

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

    def any_value(name):
        """Returns a type that accepts every value and that `help` shows as `name`.

        The argument checks refuse a wrong value with a message that says what is expected. A checked annotation would
        raise before them, with a message about types.
        """
        hint = NewType(name, object)
        hint.__module__ = "typing"  # `inspect` omits this module's name, so a signature shows `name` without a path
        return hint

    ArrayLike, Function, Flag, Number = map(any_value, ("ArrayLike", "Function", "Flag", "Number"))
    Axis, Axes, Count, AxisName = map(any_value, ("Axis", "Axes", "Count", "AxisName"))
    Length, Shape = map(any_value, ("Length", "Shape"))  # `jax.export` allows symbolic lengths, which are no `int`
    Reduction = Annotated[Any, Literal["mean", "sum", "none"]]
    Kind = Annotated[Any, Literal["forward_kl", "reverse_kl", "jensen_shannon"]]
