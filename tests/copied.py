"""An example as its reader has it: one file, copied to an empty folder and run there."""

import ast
import contextlib
import io
import re
import runpy
import shutil
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(path, folder):
    """What a copy in the folder prints, and the names that it leaves."""
    copy, printed = Path(shutil.copy(path, folder)), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed), mock.patch.object(optax, "adam", adam):
        names = runpy.run_path(copy.name, run_name="__main__")
    assert list(folder.iterdir()) == [copy]
    return printed.getvalue(), names


_adam = optax.adam


def adam(*args, **options):
    """Optax's own, which raises a float to the power of an integer, as JAX's strict rules for types do not allow."""
    optimiser = _adam(*args, **options)

    def update(*args, **options):
        with jax.numpy_dtype_promotion("standard"):
            return optimiser.update(*args, **options)

    return optax.GradientTransformationExtraArgs(optimiser.init, update)


def numbers(printed):
    """Those of each line, percentages as shares."""
    found = (re.findall(r"-?\d+(?:\.\d+)?%?", line) for line in printed.splitlines())
    return [[float(n[:-1]) / 100 if n.endswith("%") else float(n) for n in line] for line in found]


def imported(path):
    """The packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def lines(path):
    return len(path.read_text(encoding="utf8").splitlines())


def nats(logits, labels):
    """−ln softmax(logits)_label, the plain way."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def same_with_gradient(ours, plain, *args, rtol=1e-5, atol=2e-6):
    """Two functions have the same value, and the same gradient by the first argument."""
    actual, expected = (jax.jit(jax.value_and_grad(function))(*args) for function in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def falls(losses, first, last):
    np.testing.assert_allclose(losses[0], first, rtol=0.02)
    assert losses[-1] < last
