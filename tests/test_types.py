"""Shapes in annotations are checked by the test run, and signatures name the types of arguments."""

import inspect

import jax.numpy as jnp
import jaxtyping
import pytest

import softjax
from softjax._rows.reduction import reduce


def test_shapes_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        reduce(jnp.zeros(3), jnp.zeros(4), "mean")


def test_signatures_name_the_types_of_arguments():
    parameters = inspect.signature(softjax.cross_entropy).parameters
    shown = {name: str(parameter).split(" = ")[0].split(": ", 1)[1] for name, parameter in parameters.items()}
    assert shown["logits"] == "ArrayLike"
    assert shown["axis"] == "Axis"
    assert shown["weights"] in ("Optional[ArrayLike]", "ArrayLike | None")  # Python 3.14 shows the second
    assert "Literal['mean', 'sum', 'none']" in shown["reduction"]
