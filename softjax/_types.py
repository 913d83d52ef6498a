"""The names that shapes and dtypes go by in annotations.

The axes, in words: `*samples` are the batch axes, `classes` the class axis; `*rows` stands for the shape of
the logits with the class axis kept at length 1, so that a number of a row broadcasts against its logits.
Annotations are checked by the test run (`--jaxtyping-packages=softjax,beartype.beartype`), never in use.
"""

from jax.typing import ArrayLike as ArrayLike
from jaxtyping import Array as Array
from jaxtyping import Bool as Bool
from jaxtyping import Float as Float
from jaxtyping import Int as Int

Scalar = Float[Array, ""]
Logits = Float[Array, "..."]
Labels = Int[Array, "..."] | Float[Array, "..."]
Mask = Bool[Array, "..."]
