"""The names that shapes and dtypes go by in annotations.

The axes, in words: `*samples` are the batch axes, `classes` the class axis; `*rows` stands for the shape of
the logits with the class axis kept at length 1, so that a number of a row broadcasts against its logits.
Annotations are checked by the test run (`--jaxtyping-packages=softjax,beartype.beartype`), never in use.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

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

    class Anything(type):
        """A type of everything, of which `help` shows the name, which must be no other type's: the checks go by names.

        What a caller may get wrong is refused at the door (`_checks.py`), with a message that says what was meant; the
        checks of annotations would come before it.
        """

        def __new__(cls, name):
            return super().__new__(cls, name, (), {"__module__": "builtins"})

        def __init__(cls, name):
            super().__init__(name, (), {})

        def __instancecheck__(cls, instance):
            return True

    ArrayLike, Function, Flag, Number = map(Anything, ("ArrayLike", "Function", "Flag", "Number"))
    Axis, Axes, Count, AxisName = map(Anything, ("Axis", "Axes", "Count", "AxisName"))
    Length, Shape = map(Anything, ("Length", "Shape"))  # which `jax.export` may leave open, and no integers then
    Reduction = Anything("'mean' | 'sum' | 'none'")
    Kind = Anything("'forward_kl' | 'reverse_kl' | 'jensen_shannon'")
