"""Argument checks of losses and metrics: each error names the argument and what came."""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax import losses

S = softjax.statistics(cases.logits(5), cases.class_ids(5))
CALLS = {
    "gamma": lambda p: losses.focal(S, p),
    "epsilon": lambda p: losses.poly(S, p),
    "exponent": lambda p: losses.generalized(S, p),
    "margin": lambda p: losses.additive_margin(S, p, 8.0),
    "scale": lambda p: losses.angular_margin(S, 0.5, p),
}
LOSSES = [lambda s, f=f, p=p: f(s, *p) for f, p in ((losses.focal, ()), (losses.poly, ()), (losses.generalized, ()))]
LOSSES += [lambda s, f=f: f(s, 0.1, 8.0) for f in (losses.additive_margin, losses.angular_margin)]


@pytest.mark.parametrize("name", CALLS)
def test_a_parameter_out_of_range_is_refused(name):
    call = CALLS[name]
    least = {"gamma": "at least 0", "margin": "at least 0", "epsilon": "finite"}.get(name, "greater than 0")
    out_of_range = {"at least 0": [-1e-9, -1], "greater than 0": [0, -1.0], "finite": []}[least]
    for value in (np.nan, np.inf, -np.inf, 1e39, *out_of_range, jnp.float32(np.nan), np.asarray(-np.inf)):
        shown = re.escape(repr(value if isinstance(value, (int, float)) else value.item()))
        with pytest.raises(ValueError, match=f"^`{name}` must be (finite and )?{least}, got {shown}.$"):
            call(value)
    for value in (True, "2", None, [1.0], 1j, np.bool_(True), jnp.asarray(2), jnp.asarray(True)):
        with pytest.raises(TypeError, match=f"`{name}` must be a (number|real floating array), got"):
            call(value)
    with pytest.raises(ValueError, match=rf"`{name}` must be a scalar, got shape \(11,\)"):
        call(jnp.ones(11))
    allowed = [call(p) for p in (2, 2.0, np.float32(2), np.asarray(2.0, np.float32), jnp.asarray(2, jnp.bfloat16))]
    for value in (*allowed, jax.jit(call)(2.0), jax.jit(call)(jnp.asarray(2, jnp.float16))):
        np.testing.assert_allclose(value, allowed[0], rtol=1e-6)
        assert value.dtype == jnp.float32
    jax.jit(call)(-1.0)  # the value of a traced one is not known


@pytest.mark.parametrize("function", LOSSES)
def test_anything_but_statistics_is_refused(function):
    for value in (cases.logits(5), tuple(S), None):
        with pytest.raises(TypeError, match=r"`s` must be `Statistics`, as `softjax.statistics\(logits, labels\)`"):
            function(value)
