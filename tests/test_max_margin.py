"""`examples/max_margin.py` at a small size: softjax's float32 margin keeps rising where the direct formula's falls."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import max_margin as program
from margin.descent import Samples, Schedule, contenders, hard_margin, margin, torch_descent, unit_vector
from train_classifier import load_digits

SMALL = ("--classes", "3", "--rate", "0.05", "--steps", "6000", "--every", "100")
CONFIDENT = 24 * math.log(2)  # from this gap on, 1 + Σ rounds to 1 in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("margin") / "new"
    assert program.main([*SMALL, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "max-margin.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(results):
    return {(run["library"], run["dtype"]): {k: np.array(v) for k, v in run.items()} for run in results["runs"]}


def samples(classes=3):
    return Samples(*load_digits(classes), classes)


def test_writes_two_files(folder, results):
    assert {path.name for path in folder.iterdir()} == {"max-margin.json", "max-margin.png"}
    assert (folder / "max-margin.png").read_bytes().startswith(b"\x89PNG")
    assert {"python", "jax", "jaxlib", "optax", "torch", "scikit-learn"} <= results["machine"]["versions"].keys()
    assert {"platform", "processor", "cpu_count", "date"} <= results["machine"].keys()
    assert str(folder) not in json.dumps(results)


def test_float32_follows_float64_where_the_direct_formula_collapses(runs, results):
    exact, ours, direct = (runs[key] for key in (program.REFERENCE, ("softjax", "float32"), ("optax", "float32")))
    reached = exact["gap"] > 1.5 * CONFIDENT
    assert np.sum(reached) >= 20
    np.testing.assert_allclose(ours["margin"], exact["margin"], rtol=0.02, atol=1e-3)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(np.log(ours[name]), np.log(exact[name]), rtol=0, atol=0.5)
    assert np.all(direct["margin"][reached] < 0.9 * exact["margin"][reached])
    assert np.all(direct["loss"][reached] == 0)
    assert np.all(direct["gap"] < 1.05 * CONFIDENT)
    assert 0.95 * results["hard_margin"] < ours["margin"][-1] < results["hard_margin"]


def test_first_step_matches_the_formulas():
    """The first step starts at W = 0, where every row is uniform: g = Σ_i x_i (1/C − onehot_i)ᵀ and W = −η g/‖g‖."""
    pixels, labels, classes = samples()
    g = np.float64(pixels).T @ (1 / classes - np.eye(classes)[labels])
    kernel = -0.5 * g / np.linalg.norm(g)
    for library, dtype, descend in contenders():
        trace = descend(samples(), Schedule(0.5, 1, 1))
        np.testing.assert_allclose(trace.kernels[0], kernel, rtol=0, atol=1e-6, err_msg=f"{library} {dtype}")
        logits = pixels @ kernel
        loss = np.sum(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels])
        np.testing.assert_allclose(trace.losses[0], loss, rtol=1e-5)
        q = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        np.testing.assert_allclose(trace.gradients[0], pixels.T @ (q - np.eye(classes)[labels]), rtol=1e-4, atol=1e-3)


def test_torch_and_optax_agree_before_rows_are_confident():
    torch = pytest.importorskip("torch")
    optax = next(descend for library, dtype, descend in contenders() if (library, dtype) == ("optax", "float32"))
    traces = [descend(samples(), Schedule(0.02, 40, 20)) for descend in (optax, torch_descent(torch))]
    for ours, theirs in zip(*traces, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_margin_is_the_smallest_gap_over_the_norm():
    three = Samples(np.eye(3, dtype=np.float32), np.array([0, 1, 1]), 3)
    kernel = np.array([[3.0, 1.0, 0.0], [0.0, 5.0, 0.0], [0.0, 2.0, 1.5]])
    assert margin(kernel, three) == pytest.approx(0.5 / np.linalg.norm(kernel))
    assert margin(-kernel, three) == pytest.approx(-5 / np.linalg.norm(kernel))
    assert margin(0 * kernel, three) == 0


def test_hard_margin_of_orthogonal_samples():
    """For C unit vectors, one per class, the best W has 1 − 1/C on the diagonal and −1/C elsewhere."""
    assert hard_margin(Samples(np.eye(4, dtype=np.float32), np.arange(4), 4)) == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("scale", [1e-36, 1e-23, 1.0, 1e30])
def test_unit_vector_has_length_1_at_any_scale(scale):
    g = np.linspace(-1, 2, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(unit_vector(jnp.asarray(scale * g)), g / np.linalg.norm(g), rtol=1e-5)
    np.testing.assert_array_equal(unit_vector(jnp.zeros((2, 3))), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "2"), "`classes` must be from 3 to 10, got 2."),
        (("--rate", "nan"), "`rate` must be above 0"),
        (("--steps", "150", "--every", "100"), "`steps` must be a multiple of `every`, got 150 and 100."),
        (("--every", "0"), "`steps` must be a multiple of `every`"),
        (("--momentum", "0.9"), "--momentum"),
    ],
)
def test_wrong_options_print_one_line(tmp_path, capsys, options, message):
    assert program.main(["--output", str(tmp_path / "new"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "new").exists()
