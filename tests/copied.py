"""Helpers to test examples that a user copies: run one file alone, read its output, compare its loss."""

import ast
import contextlib
import io
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_alone(path, empty_folder):
    """Copies a file to an empty folder and runs it there. Returns its output and its module-level names."""
    copy, output = Path(shutil.copy(path, empty_folder)), io.StringIO()
    with (
        contextlib.chdir(empty_folder),
        contextlib.redirect_stdout(output),
        mock.patch.object(optax, "adam", adam_under_strict_promotion),
    ):
        names = runpy.run_path(copy.name, run_name="__main__")
    assert list(empty_folder.iterdir()) == [copy]
    return output.getvalue(), SimpleNamespace(**names)


optax_adam = optax.adam


def adam_under_strict_promotion(*args, **options):
    """`optax.adam`, whose update raises a float to an integer power. JAX's strict type promotion refuses that."""
    optimiser = optax_adam(*args, **options)

    def update(*args, **options):
        with jax.numpy_dtype_promotion("standard"):
            return optimiser.update(*args, **options)

    return optax.GradientTransformationExtraArgs(optimiser.init, update)


def printed_numbers(output):
    """Returns the numbers of each line. A percentage becomes a fraction."""
    lines = []
    for line in output.splitlines():
        matches = re.findall(r"(?<!\w)(-?\d+(?:\.\d+)?)(%?)", line)
        lines.append([float(number) / (100 if percent else 1) for number, percent in matches])
    return lines


def imported_packages(path):
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").partition(".")[0])
    return packages


def line_count(path):
    return len(path.read_text(encoding="utf8").splitlines())


def random_like(params, seed, scale):
    """Returns normal random arrays with the shapes of a pytree."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda array: jnp.float32(scale * generator.normal(size=array.shape)), params)


def dense_nats(logits, labels):
    """Returns −ln softmax(logits)_label of each sample, from materialised logits."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]


def assert_same_value_and_gradient(loss_fn, dense_loss_fn, *args, has_aux=False, rtol=1e-5, atol=2e-6):
    """Compares two functions: their results, and their gradients with respect to the first argument."""

    @jax.jit
    def compare(*args):  # one program, so that XLA compiles once
        return [jax.value_and_grad(function, has_aux=has_aux)(*args) for function in (loss_fn, dense_loss_fn)]

    actual, expected = compare(*args)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


def assert_loss_falls(losses, first, below):
    """Checks that the first loss is `first` to 2 %, and that the last loss is below `below`."""
    np.testing.assert_allclose(losses[0], first, rtol=0.02)
    assert losses[-1] < below
