"""The compiled last layer: its matmuls and their dtypes, no array of all logits, no copy of the kernel, its memory."""

import re

import jax
import jax.numpy as jnp
import jaxprs
import pytest
from covering import covering
from jaxprs import matmuls

import softjax
from softjax._xla import one_cpu

N, F, C = 192, 40, 1000
LABELS = jax.ShapeDtypeStruct((N,), jnp.int32)


def loss(hidden, kernel, labels, **options):
    return softjax.linear_cross_entropy(hidden, kernel, labels, block_size=64, **options).sum()


def tied(hidden, embedding, labels, **options):
    return loss(hidden, embedding.T, labels, **options)


def cast_and_tied(hidden, embedding, labels, **options):
    return loss(hidden.astype(jnp.bfloat16), embedding.T.astype(jnp.bfloat16), labels, **options)


def layer(dtype, transposed=False):
    shape = (C, F) if transposed else (F, C)
    return jax.ShapeDtypeStruct((N, F), dtype), jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("dtype", "reduction", "count", "options"),
    covering(
        [jnp.float32, jnp.bfloat16, jnp.float16],
        [("mean", 3), ("none", 4), ("sum", 3)],
        [{"label_smoothing": 0.1, "z_loss": 0.1, "logit_softcap": 30.0}, {}],
    ),
)
def test_the_count_of_matmuls_and_the_dtypes_of_their_operands(dtype, reduction, count, options):
    """Operands keep their dtype, but float16 gradients of logits would underflow and are float32."""
    hidden, kernel = layer(dtype)
    options = options | {"reduction": reduction, "weights": jnp.ones(N)}

    def function(*args):
        return loss(*args, **options)

    assert len(matmuls(function, hidden, kernel, LABELS)) == 1
    found = matmuls(jax.value_and_grad(function, (0, 1)), hidden, kernel, LABELS)
    operands = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[jnp.dtype(dtype).name]
    backward = "f32" if dtype == jnp.float16 else operands
    expected = [(operands, operands, "f32")] * (count - 2) + [(backward, backward, "f32")] * 2
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_gradient_takes_one_matmul_less(reduction):
    hidden, kernel = layer(jnp.float32)

    def function(*args):
        return loss(*args, reduction=reduction)

    for argument in (0, 1):
        found = matmuls(jax.grad(function, argument), hidden, kernel, LABELS)
        assert len(found) == (2 if reduction == "mean" else 3)


def test_a_linear_loss_takes_three_matmuls():
    hidden, kernel = layer(jnp.bfloat16)

    def function(h, k, y):
        return softjax.linear_loss(lambda s: s.entropy + s.label_logit, h, k, y, block_size=64)

    assert len(matmuls(function, hidden, kernel, LABELS)) == 1
    assert len(matmuls(jax.grad(function, (0, 1)), hidden, kernel, LABELS)) == 3


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("function", [loss, tied])
@pytest.mark.parametrize("transform", [lambda f: f, lambda f: jax.value_and_grad(f, (0, 1)), "jvp"])
def test_no_array_of_all_logits(reduction, function, transform):
    hidden, kernel = layer(jnp.float32, function is tied)

    def total(h, k, y):
        return function(h, k, y, reduction=reduction)

    def jvp(h, k, y):
        return jax.jvp(lambda h, k: total(h, k, y), (h, k), (h, k))

    jaxpr = jax.make_jaxpr(jvp if transform == "jvp" else transform(total))(hidden, kernel, LABELS)
    sizes = [v.aval.size for e in jaxprs.equations(jaxpr) for v in e.outvars]
    assert max(sizes) < N * C
    assert max(sizes) >= 64 * C


@pytest.mark.parametrize(
    ("reduction", "function", "differentiated"), covering(["mean", "none"], [tied, cast_and_tied], [True, False])
)
def test_tied_embeddings_are_not_copied(reduction, function, differentiated):
    hidden, embedding = layer(jnp.float32, transposed=True)

    def total(h, e, y):
        return function(h, e, y, reduction=reduction)

    program = jax.jit(jax.value_and_grad(total, (0, 1)) if differentiated else total)
    assert not transposed_copies(program.lower(hidden, embedding, LABELS).compile().as_text())


def test_the_search_for_copies_finds_them():
    copied = jax.jit(lambda e: jnp.sin(e.T) @ jnp.sin(e)).lower(layer(jnp.float32, transposed=True)[1]).compile()
    hidden, kernel = layer(jnp.float32)
    scaled = jax.jit(jax.grad(loss, 1)).lower(hidden, kernel, LABELS).compile()  # transposes a dense kernel's gradient
    assert transposed_copies(copied.as_text()) or transposed_copies(scaled.as_text())


def transposed_copies(hlo):
    copies = re.findall(r"= \w+\[(\d+),(\d+)\]\S* (?:copy|transpose)\(", hlo)
    return [shape for shape in copies if set(map(int, shape)) == {F, C}]


def temporary_bytes(function, samples, features, classes):
    """The temporary memory of the compiled loss and gradient, in bytes."""
    h = jax.ShapeDtypeStruct((samples, features), jnp.float32)
    k = jax.ShapeDtypeStruct((features, classes), jnp.float32)
    y = jax.ShapeDtypeStruct((samples,), jnp.int32)
    program = jax.jit(jax.value_and_grad(function, (0, 1))).lower(h, k, y).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("weighted", "reduction"), covering([False, True], ["none", "mean"]))
def test_memory_does_not_grow_with_the_samples(reduction, weighted):
    """No chunk that may be skipped keeps a copy of the kernel."""

    def loss(h, k, y):
        weights = y if weighted else None
        return softjax.linear_cross_entropy(h, k, y, weights=weights, reduction=reduction, block_size=256).sum()

    grown = temporary_bytes(loss, 8192, 64, 4096) - temporary_bytes(loss, 1024, 64, 4096)
    assert grown <= 4 * (8192 - 1024) * 64 * 4  # four vectors of features per sample


def test_memory_against_the_unfused_baseline():
    def unfused(h, k, y):
        return softjax.cross_entropy(h @ k, y)

    shape = (8192, 512, 32768)
    assert temporary_bytes(softjax.linear_cross_entropy, *shape) < 0.08 * temporary_bytes(unfused, *shape)


@pytest.mark.parametrize(("weighted", "classes"), covering([False, True], [8192, 32769, 600000]))
def test_a_chunk_takes_one_array_of_logits_on_one_cpu(weighted, classes):
    samples, features, rows = 1024, 16, 128

    def loss(h, k, y):
        return softjax.linear_cross_entropy(h, k, y, weights=y if weighted else None, block_size=rows)

    chunk, kernel, hidden = (4 * size for size in (rows * classes, features * classes, samples * features))
    arrays = 1.2 if one_cpu.on_one_cpu(jnp.zeros(())) else 5
    assert temporary_bytes(loss, samples, features, classes) < arrays * chunk + kernel + 4 * hidden


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_single_chunk_takes_one_array_of_logits(reduction):
    samples, features, classes = 64, 128, 32768

    def loss(h, k, y):
        return softjax.linear_cross_entropy(h, k, y, reduction=reduction).sum()

    arrays = 1.1 if one_cpu.on_one_cpu(jnp.zeros(())) else 5
    assert temporary_bytes(loss, samples, features, classes) < arrays * 4 * samples * classes
