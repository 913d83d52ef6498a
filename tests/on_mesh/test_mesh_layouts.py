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
# the PartitionSpecs of the hidden states and of the kernel, in calls without axis names
WITHOUT_AXIS_NAMES = {
    "row-parallel": (P("fsdp", "tensor"), P("tensor", None)),
    "sequence-parallel": (P(("fsdp", "tensor"), None), P(None, "tensor")),
    "tensor-parallel": (P("fsdp", None), P(None, "tensor")),
    "features alone": (P(None, "fsdp"), P("fsdp", "tensor")),
}
MODES = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
MODE_AND_REDUCTION = [("explicit", "mean"), ("auto", "none"), ("explicit", "none"), ("auto", "mean")]


def problem():
    hidden, kernel, _ = cases.layer(CLASSES, features=FEATURES, samples=SAMPLES)
    return hidden, kernel, cases.class_ids(CLASSES, SAMPLES)


def large_collectives(text):
    """(operation, elements, in a loop) of each collective with more elements than there are samples."""
    found, computation = [], ""
    for line in text.splitlines():
        if re.match(r"^(ENTRY )?%?\S+ .*\{$", line):
            computation = line.split()[0]
        match = re.search(r"= \w+\[([\d,]+)\]\S* (all-reduce|all-gather|reduce-scatter|all-to-all)(-start)?\(", line)
        if match:
            elements = np.prod([int(n) for n in match[1].split(",")])
            found.append((match[2], elements, computation != "ENTRY"))
    return [collective for collective in found if collective[1] > SAMPLES]


def placed(axes, mode, hidden_spec, kernel_spec):
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(MODES[mode],) * len(axes))
    specs = hidden_spec, kernel_spec, P(hidden_spec[0])
    return mesh, [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(problem(), specs, strict=True)]


def loss(hidden, kernel, labels, reduction, **names):
    rows = softjax.linear_cross_entropy(hidden, kernel, labels, reduction=reduction, block_size=ROWS, **names)
    return rows if reduction == "mean" else jnp.sum(rows) / SAMPLES


def check_gradients(gradients):
    h, k, y = problem()
    _, expected = oracle.linear_cross_entropy(h, k, y, cotangent=np.full(SAMPLES, 1 / SAMPLES))
    for gradient, exact in zip(gradients, expected, strict=False):
        np.testing.assert_allclose(np.asarray(gradient), exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize(("layout", "mode", "reduction"), covering(LAYOUTS, MODE_AND_REDUCTION))
def test_a_kernel_with_sharded_features(layout, mode, reduction):
    axes, hidden_spec, kernel_spec, names = LAYOUTS[layout]
    mesh, arrays = placed(axes, mode, hidden_spec, kernel_spec)
    with jax.set_mesh(mesh):
        # types with Auto axes do not hold the sharding: the caller gives the sharding of the gradients
        out = tuple(a.sharding for a in arrays[:2]) if mode == "auto" else None
        program = jax.jit(jax.grad(partial(loss, reduction=reduction, **names), (0, 1)), out_shardings=out)
        compiled = program.lower(*arrays).compile()
        gradients = compiled(*arrays)
    check_gradients(gradients)
    for gradient, argument in zip(gradients, arrays, strict=False):
        assert gradient.sharding.is_equivalent_to(argument.sharding, 2)

    local = FEATURES * CLASSES // (axes["tensor"] if "tensor" in kernel_spec else 1)  # of the gathered kernel
    collectives = large_collectives(compiled.as_text())
    assert not any(in_a_loop for *_, in_a_loop in collectives)
    operations = [name for name, elements, _ in collectives if name == "reduce-scatter" or elements >= local]
    # Under Auto axes XLA slices an all-reduce. On some platforms a pass makes it a reduce-scatter.
    assert sorted(operations) == ["all-gather", "reduce-scatter" if mode == "explicit" else "all-reduce"]
    assert [elements for name, elements, _ in collectives if name == "all-gather"].count(local) == 1
    assert all(elements <= local for _, elements, _ in collectives)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kernel_that_the_caller_gathers_in_a_shard_map(reduction):
    axes, hidden_spec, kernel_spec, _ = LAYOUTS["three axes"]
    mesh, arrays = placed(axes, "auto", hidden_spec, kernel_spec)

    def local(hidden, kernel, labels):
        kernel = lax.all_gather(lax.pcast(kernel, "data", to="varying"), "fsdp", axis=0, tiled=True)
        value = loss(hidden, kernel, labels, reduction, axis_name="tensor", batch_axis_name=("data", "fsdp"))
        return value if reduction == "mean" else lax.psum(value, ("data", "fsdp"))

    f = jax.shard_map(local, mesh=mesh, in_specs=(hidden_spec, kernel_spec, P(hidden_spec[0])), out_specs=P())
    compiled = jax.jit(jax.grad(f, (0, 1))).lower(*arrays).compile()
    check_gradients(compiled(*arrays))
    collectives = large_collectives(compiled.as_text())
    assert [name for name, *_ in collectives].count("reduce-scatter") == 1
    assert not any(in_a_loop for *_, in_a_loop in collectives)
    assert not any(name == "all-reduce" and n >= FEATURES * CLASSES // 2 for name, n, _ in collectives)


@pytest.mark.parametrize(("layout", "reduction"), covering(WITHOUT_AXIS_NAMES, ["mean", "none"]))
def test_layouts_without_axis_names(layout, reduction):
    hidden_spec, kernel_spec = WITHOUT_AXIS_NAMES[layout]
    mesh, arrays = placed(TWO, "explicit", hidden_spec, kernel_spec)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(partial(loss, reduction=reduction), (0, 1))).lower(*arrays).compile()
        gradients = compiled(*arrays)
    check_gradients(gradients)
    assert [g.sharding.spec for g in gradients] == [a.sharding.spec for a in arrays[:2]]
    collectives = large_collectives(compiled.as_text())
    assert not any(in_a_loop for *_, in_a_loop in collectives)
    # hidden states may be gathered, the classes of a kernel never
    local = FEATURES * CLASSES // (2 if kernel_spec[1] else 1)
    assert all(elements in (local, SAMPLES * FEATURES) or elements < local for _, elements, _ in collectives)


@pytest.mark.parametrize("mode", MODES)
def test_every_derivative_of_a_kernel_with_sharded_features(mode):
    axes, hidden_spec, kernel_spec, names = LAYOUTS["three axes"]
    mesh, (h, k, y) = placed(axes, mode, hidden_spec, kernel_spec)

    def hessian_vector(k, f):
        return jax.jvp(jax.grad(f), (k,), (jnp.sin(k),))[1]

    with jax.set_mesh(mesh):
        second = jax.jit(partial(hessian_vector, f=lambda k: loss(h, k, y, "mean", **names)))(k)
        tangent = jax.jit(lambda k: jax.jvp(lambda k: loss(h, k, y, "mean", **names), (k,), (jnp.sin(k),))[1])(k)
    h, k, y = problem()
    unfused = lambda k: softjax.cross_entropy(h @ k, y)  # noqa: E731
    expected, expected_tangent = jax.jit(
        lambda k: (hessian_vector(k, unfused), jax.jvp(unfused, (k,), (jnp.sin(k),))[1])
    )(k)
    np.testing.assert_allclose(second, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(tangent, expected_tangent, rtol=1e-5)
