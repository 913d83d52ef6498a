"""The communication of each layout, read from the compiled program.

A kernel that is also sharded along its features is gathered once per call. Its gradient is reduce-scattered once, to
the sharding of the kernel. Classes are never gathered.
"""

import re
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import covering
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

SAMPLES, FEATURES, CLASSES, ROWS = 64, 32, 48, 4
THREE, TWO = {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}
# the mesh, the specs of the hidden states and of the kernel, and the axis names
LAYOUTS = {
    "fsdp": (TWO, P("fsdp", None), P("fsdp", None), {"batch_axis_name": "fsdp"}),
    "fsdp and tensor": (TWO, P("fsdp", None), P("fsdp", "tensor"), {"axis_name": "tensor", "batch_axis_name": "fsdp"}),
    "three axes": (
        THREE,
        P(("data", "fsdp"), None),
        P("fsdp", "tensor"),
        {"axis_name": "tensor", "batch_axis_name": ("data", "fsdp")},
    ),
}
# where the hidden states and the kernel lie, known to the compiler by their types alone
BY_TYPES = {
    "row-parallel": (P("fsdp", "tensor"), P("tensor", None)),
    "sequence-parallel": (P(("fsdp", "tensor"), None), P(None, "tensor")),
    "tensor-parallel": (P("fsdp", None), P(None, "tensor")),
    "features alone": (P(None, "fsdp"), P("fsdp", "tensor")),
}
MODES = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
KINDS = [("explicit", "mean"), ("auto", "none"), ("explicit", "none"), ("auto", "mean")]


def problem():
    hidden, kernel, _ = cases.layer(CLASSES, features=FEATURES, samples=SAMPLES)
    return hidden, kernel, cases.class_ids(CLASSES, SAMPLES)


def moved(text):
    """(operation, elements, in a loop) of each collective that moves more than a few values per sample."""
    found, inside = [], ""
    for line in text.splitlines():
        if re.match(r"^(ENTRY )?%?\S+ .*\{$", line):
            inside = line.split()[0]
        match = re.search(r"= \w+\[([\d,]+)\]\S* (all-reduce|all-gather|reduce-scatter|all-to-all)(-start)?\(", line)
        if match:
            elements = np.prod([int(n) for n in match[1].split(",")])
            found.append((match[2], elements, inside != "ENTRY"))
    return [each for each in found if each[1] > SAMPLES]


def placed(axes, mode, hidden_at, kernel_at):
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(MODES[mode],) * len(axes))
    specs = hidden_at, kernel_at, P(hidden_at[0])
    return mesh, [jax.device_put(a, NamedSharding(mesh, at)) for a, at in zip(problem(), specs, strict=True)]


def loss(hidden, kernel, labels, reduction, **names):
    rows = softjax.linear_cross_entropy(hidden, kernel, labels, reduction=reduction, block_size=ROWS, **names)
    return rows if reduction == "mean" else jnp.sum(rows) / SAMPLES


def check_gradients(gradients):
    h, k, y = problem()
    _, expected = oracle.linear_cross_entropy(h, k, y, cotangent=np.full(SAMPLES, 1 / SAMPLES))
    for gradient, exact in zip(gradients, expected, strict=False):
        np.testing.assert_allclose(np.asarray(gradient), exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize(("layout", "mode", "reduction"), covering(LAYOUTS, KINDS))
def test_a_kernel_split_along_features(layout, mode, reduction):
    axes, hidden_at, kernel_at, names = LAYOUTS[layout]
    mesh, arrays = placed(axes, mode, hidden_at, kernel_at)
    with jax.set_mesh(mesh):
        # Auto axes do not say that the kernel is split: it is the caller who says where its gradient is to lie
        out = tuple(a.sharding for a in arrays[:2]) if mode == "auto" else None
        program = jax.jit(jax.grad(partial(loss, reduction=reduction, **names), (0, 1)), out_shardings=out)
        compiled = program.lower(*arrays).compile()
        gradients = compiled(*arrays)
    check_gradients(gradients)
    for gradient, argument in zip(gradients, arrays, strict=False):
        assert gradient.sharding.is_equivalent_to(argument.sharding, 2)

    local = FEATURES * CLASSES // (axes["tensor"] if "tensor" in kernel_at else 1)  # of the gathered kernel
    collectives = moved(compiled.as_text())
    assert not any(in_a_loop for *_, in_a_loop in collectives)
    kinds = [what for what, elements, _ in collectives if what == "reduce-scatter" or elements >= local]
    # under Auto axes XLA slices the sum, which is a reduce-scatter on platforms where it has that pass
    assert sorted(kinds) == ["all-gather", "reduce-scatter" if mode == "explicit" else "all-reduce"]
    assert [elements for what, elements, _ in collectives if what == "all-gather"].count(local) == 1
    assert all(elements <= local for _, elements, _ in collectives)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kernel_gathered_in_a_shard_map_of_the_caller(reduction):
    axes, hidden_at, kernel_at, _ = LAYOUTS["three axes"]
    mesh, arrays = placed(axes, "auto", hidden_at, kernel_at)

    def local(hidden, kernel, labels):
        kernel = lax.all_gather(lax.pcast(kernel, "data", to="varying"), "fsdp", axis=0, tiled=True)
        value = loss(hidden, kernel, labels, reduction, axis_name="tensor", batch_axis_name=("data", "fsdp"))
        return value if reduction == "mean" else lax.psum(value, ("data", "fsdp"))

    f = jax.shard_map(local, mesh=mesh, in_specs=(hidden_at, kernel_at, P(hidden_at[0])), out_specs=P())
    compiled = jax.jit(jax.grad(f, (0, 1))).lower(*arrays).compile()
    check_gradients(compiled(*arrays))
    collectives = moved(compiled.as_text())
    assert [what for what, *_ in collectives].count("reduce-scatter") == 1
    assert not any(in_a_loop for *_, in_a_loop in collectives)
    assert not any(what == "all-reduce" and n >= FEATURES * CLASSES // 2 for what, n, _ in collectives)


@pytest.mark.parametrize(("layout", "reduction"), covering(BY_TYPES, ["mean", "none"]))
def test_other_layouts_by_their_types(layout, reduction):
    hidden_at, kernel_at = BY_TYPES[layout]
    mesh, arrays = placed(TWO, "explicit", hidden_at, kernel_at)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(partial(loss, reduction=reduction), (0, 1))).lower(*arrays).compile()
        gradients = compiled(*arrays)
    check_gradients(gradients)
    assert [g.sharding.spec for g in gradients] == [a.sharding.spec for a in arrays[:2]]
    collectives = moved(compiled.as_text())
    assert not any(in_a_loop for *_, in_a_loop in collectives)
    # hidden states may be gathered, the classes of a kernel never
    local = FEATURES * CLASSES // (2 if kernel_at[1] else 1)
    assert all(elements in (local, SAMPLES * FEATURES) or elements < local for _, elements, _ in collectives)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_kernel_split_along_features(mode):
    axes, hidden_at, kernel_at, names = LAYOUTS["three axes"]
    mesh, (h, k, y) = placed(axes, mode, hidden_at, kernel_at)

    def along(k, f):
        return jax.jvp(jax.grad(f), (k,), (jnp.sin(k),))[1]

    with jax.set_mesh(mesh):
        fused = jax.jit(partial(along, f=lambda k: loss(h, k, y, "mean", **names)))(k)
        moved = jax.jit(lambda k: jax.jvp(lambda k: loss(h, k, y, "mean", **names), (k,), (jnp.sin(k),))[1])(k)
    h, k, y = problem()
    plain = lambda k: softjax.cross_entropy(h @ k, y)  # noqa: E731
    expected, tangent = jax.jit(lambda k: (along(k, plain), jax.jvp(plain, (k,), (jnp.sin(k),))[1]))(k)
    np.testing.assert_allclose(fused, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(moved, tangent, rtol=1e-5)
