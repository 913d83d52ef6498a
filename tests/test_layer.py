"""Products in the types that operands came in, no array of all logits, no copy of the kernel."""

import re

import jax
import jax.numpy as jnp
import jaxprs
import pytest
from covering import covering
from jaxprs import products

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


def layer(dtype, turned=False):
    shape = (C, F) if turned else (F, C)
    return jax.ShapeDtypeStruct((N, F), dtype), jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("dtype", "reduction", "count", "options"),
    covering(
        [jnp.float32, jnp.bfloat16, jnp.float16],
        [("mean", 3), ("none", 4), ("sum", 3)],
        [{"label_smoothing": 0.1, "z_loss": 0.1, "logit_softcap": 30.0}, {}],
    ),
)
def test_the_count_of_products_and_the_types_of_their_operands(dtype, reduction, count, options):
    """Those that they come in, but for the gradients of float16 logits, which would underflow."""
    hidden, kernel = layer(dtype)
    options = options | {"reduction": reduction, "weights": jnp.ones(N)}

    def function(*args):
        return loss(*args, **options)

    assert len(products(function, hidden, kernel, LABELS)) == 1
    found = products(jax.value_and_grad(function, (0, 1)), hidden, kernel, LABELS)
    came = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[jnp.dtype(dtype).name]
    pulled = "f32" if dtype == jnp.float16 else came
    assert sorted(found) == sorted([(came, came, "f32")] * (count - 2) + [(pulled, pulled, "f32")] * 2)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_not_differentiated_by_costs_no_product(reduction):
    hidden, kernel = layer(jnp.float32)

    def function(*args):
        return loss(*args, reduction=reduction)

    for argument in (0, 1):
        found = products(jax.grad(function, argument), hidden, kernel, LABELS)
        assert len(found) == (2 if reduction == "mean" else 3)


def test_a_linear_loss_takes_three_products():
    hidden, kernel = layer(jnp.bfloat16)

    def function(h, k, y):
        return softjax.linear_loss(lambda s: s.entropy + s.label_logit, h, k, y, block_size=64)

    assert len(products(function, hidden, kernel, LABELS)) == 1
    assert len(products(jax.grad(function, (0, 1)), hidden, kernel, LABELS)) == 3


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("function", [loss, tied])
@pytest.mark.parametrize("transform", [lambda f: f, lambda f: jax.value_and_grad(f, (0, 1)), "jvp"])
def test_no_array_of_all_logits(reduction, function, transform):
    hidden, kernel = layer(jnp.float32, function is tied)

    def of(h, k, y):
        return function(h, k, y, reduction=reduction)

    def along(h, k, y):
        return jax.jvp(lambda h, k: of(h, k, y), (h, k), (h, k))

    jaxpr = jax.make_jaxpr(along if transform == "jvp" else transform(of))(hidden, kernel, LABELS)
    sizes = [v.aval.size for e in jaxprs.equations(jaxpr) for v in e.outvars]
    assert max(sizes) < N * C
    assert max(sizes) >= 64 * C


@pytest.mark.parametrize(
    ("reduction", "function", "differentiated"), covering(["mean", "none"], [tied, cast_and_tied], [True, False])
)
def test_tied_embeddings_are_not_copied(reduction, function, differentiated):
    hidden, embedding = layer(jnp.float32, turned=True)

    def of(h, e, y):
        return function(h, e, y, reduction=reduction)

    program = jax.jit(jax.value_and_grad(of, (0, 1)) if differentiated else of)
    assert not turned_copies(program.lower(hidden, embedding, LABELS).compile().as_text())


def test_the_search_for_copies_finds_them():
    turned = jax.jit(lambda e: jnp.sin(e.T) @ jnp.sin(e)).lower(layer(jnp.float32, turned=True)[1]).compile()
    hidden, kernel = layer(jnp.float32)
    scaled = jax.jit(jax.grad(loss, 1)).lower(hidden, kernel, LABELS).compile()  # a dense kernel's gradient is turned
    assert turned_copies(turned.as_text()) or turned_copies(scaled.as_text())


def turned_copies(hlo):
    copies = re.findall(r"= \w+\[(\d+),(\d+)\]\S* (?:copy|transpose)\(", hlo)
    return [shape for shape in copies if set(map(int, shape)) == {F, C}]


def temporary(function, samples, features, classes):
    """The bytes that the compiled loss and gradient take besides arguments and results."""
    h = jax.ShapeDtypeStruct((samples, features), jnp.float32)
    k = jax.ShapeDtypeStruct((features, classes), jnp.float32)
    y = jax.ShapeDtypeStruct((samples,), jnp.int32)
    program = jax.jit(jax.value_and_grad(function, (0, 1))).lower(h, k, y).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("weighted", "reduction"), covering([False, True], ["none", "mean"]))
def test_memory_does_not_grow_with_the_samples(reduction, weighted):
    """Nor is the kernel kept once for each block that may be skipped."""

    def ours(h, k, y):
        weights = y if weighted else None
        return softjax.linear_cross_entropy(h, k, y, weights=weights, reduction=reduction, block_size=256).sum()

    grown = temporary(ours, 8192, 64, 4096) - temporary(ours, 1024, 64, 4096)
    assert grown <= 4 * (8192 - 1024) * 64 * 4  # four vectors of features a sample


def test_memory_beside_the_plain_way():
    def plain(h, k, y):
        return softjax.cross_entropy(h @ k, y)

    shape = (8192, 512, 32768)
    assert temporary(softjax.linear_cross_entropy, *shape) < 0.08 * temporary(plain, *shape)


@pytest.mark.parametrize(("weighted", "classes"), covering([False, True], [8192, 32769, 600000]))
def test_on_one_cpu_a_block_is_one_array(weighted, classes):
    samples, features, rows = 1024, 16, 128

    def ours(h, k, y):
        return softjax.linear_cross_entropy(h, k, y, weights=y if weighted else None, block_size=rows)

    block, kernel, hidden = (4 * size for size in (rows * classes, features * classes, samples * features))
    arrays = 1.2 if one_cpu.on_one_cpu(jnp.zeros(())) else 5
    assert temporary(ours, samples, features, classes) < arrays * block + kernel + 4 * hidden


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_single_block_is_all_that_is_held(reduction):
    samples, features, classes = 64, 128, 32768

    def ours(h, k, y):
        return softjax.linear_cross_entropy(h, k, y, reduction=reduction).sum()

    arrays = 1.1 if one_cpu.on_one_cpu(jnp.zeros(())) else 5
    assert temporary(ours, samples, features, classes) < arrays * 4 * samples * classes
