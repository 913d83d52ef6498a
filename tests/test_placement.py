"""What of the mesh a call takes: by names, by types. What it does is tested on eight devices, by test_mesh.py."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from softjax import _placement


def split(shape, axis, names, batch):
    return _placement.split_of_logits(names, batch, jnp.zeros(shape), axis)


def test_the_axes_of_a_vmap_are_put_together():
    def one(x):
        found = split(x.shape, -1, "shards", None)
        assert (found.classes, found.mapped) == ((), ("shards",))
        whole = found.gathered(x, -1)
        assert whole.shape == (6,)
        return found.scattered(whole, -1)

    x = jnp.arange(6.0).reshape(3, 2)
    assert (jax.vmap(one, axis_name="shards")(x) == x).all()


def test_axes_of_a_vmap_and_of_a_mesh_do_not_mix():
    mesh = jax.make_mesh((1,), ("classes",), axis_types=(AxisType.Auto,))

    def one(x):
        return split(x.shape, -1, ("shards", "classes"), None)

    with jax.set_mesh(mesh), pytest.raises(ValueError, match="must not mix axes of a `vmap`"):
        jax.vmap(one, axis_name="shards")(jnp.ones((2, 4)))
