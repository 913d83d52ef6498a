"""The names that shapes and dtypes go by in annotations.

The axes, in words: `*samples` are the batch axes, `classes` the class axis; `*rows` stands for the shape of
the logits with the class axis kept at length 1, so that a number of a row broadcasts against its logits.
Annotations are checked by the test run (`--jaxtyping-packages=softjax,beartype.beartype`), never in use.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    # What a caller may get wrong is refused at the door (`_checks.py`), with a message that says what was meant; the
    # checks of annotations would come before it.
    ArrayLike = Annotated[Any, "array"]
    Function = Annotated[Any, "function"]
    Axis = Count = Annotated[Any, "int"]
    Axes = Annotated[Any, "int | tuple[int, ...]"]
    # lengths that `jax.export` may leave open, which are no integers then
    Length, Shape = Annotated[Any, "int"], Annotated[Any, "tuple[int, ...]"]
    AxisName = Annotated[Any, "str | tuple[str, ...] | None"]
    Flag = Annotated[Any, "bool"]
    Number = Annotated[Any, "int | float"]
    Reduction = Annotated[Any, "mean", "sum", "none"]
    Kind = Annotated[Any, "forward_kl", "reverse_kl", "jensen_shannon"]
