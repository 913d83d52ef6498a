"""One process of several: `python process_worker.py process processes port`, run by test_processes.py.

Compares losses and gradients of global arrays, of which each process holds some shards, with those of one device. Then
runs the README's snippet for many hosts.
"""

import sys

import cases
import jax
import numpy as np
import readme
from closeness import near
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

SAMPLES, CLASSES = 16, 24
ROWS, COLUMNS, MATRIX = P("data"), P("classes"), P("data", "classes")
NAMES = {"axis_name": "classes", "batch_axis_name": "data"}


def initialize(process, processes, port):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, process, initialization_timeout=120)


def mesh_of(grid, kind):
    return Mesh(grid, ("data", "classes"), axis_types=(kind,) * 2)


def layer_loss(h, k, b, y, w, **names):
    options = {"weights": w, "label_smoothing": 0.1, "z_loss": 1e-3, "block_size": 3}
    return softjax.linear_cross_entropy(h, k, y, bias=b, **options, **names)


def logits_loss(x, b, y, w):
    return softjax.cross_entropy(x + b, y, weights=w, label_smoothing=0.1, z_loss=1e-3)


def agrees(function, mesh, arrays, specs, expected):
    """Compares the value and the gradients of a loss of global arrays. Each process compares its own shards."""
    with jax.set_mesh(mesh):
        arrays = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
        actual = jax.jit(jax.value_and_grad(function, (0, 1)))(*arrays)
    for array, unsharded in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert array.addressable_shards
        for shard in array.addressable_shards:
            # `near` measures errors relative to the largest entry, which may be in another shard.
            with_shard = np.array(unsharded)
            with_shard[shard.index] = shard.data
            near(with_shard, unsharded, SAMPLES + CLASSES)


def compare(processes):
    devices = np.array(jax.devices()).reshape(processes, 2)
    # the classes are sharded over all devices, over those of a process, or over one device of each process
    everywhere, inside, across = devices.reshape(1, -1), devices, devices.T
    labels, weights = cases.class_ids(CLASSES, SAMPLES), cases.weights(SAMPLES).at[:8].set(0)

    layer = (*cases.layer(CLASSES, samples=SAMPLES), labels, weights)
    specs = (P("data", None), P(None, "classes"), COLUMNS, ROWS, ROWS)
    expected = jax.jit(jax.value_and_grad(layer_loss, (0, 1)))(*layer)
    mesh = mesh_of(everywhere, AxisType.Auto)

    def named(*arrays):
        return layer_loss(*arrays, **NAMES)

    mapped = jax.shard_map(named, mesh=mesh, in_specs=specs, out_specs=P())
    agrees(mapped, mesh, layer, specs, expected)
    agrees(named, mesh_of(across, AxisType.Auto), layer, specs, expected)
    agrees(layer_loss, mesh_of(inside, AxisType.Explicit), layer, specs, expected)

    dense = (cases.logits(CLASSES, 3.0, SAMPLES), layer[2][None], labels, weights)
    expected = jax.jit(jax.value_and_grad(logits_loss, (0, 1)))(*dense)
    specs = (MATRIX, P(None, "classes"), ROWS, ROWS)
    agrees(logits_loss, mesh_of(across, AxisType.Explicit), dense, specs, expected)


def run_the_snippet(devices):
    scope = {}
    exec(readme.mesh_snippets()["many hosts"], scope)
    assert scope["kernel"].sharding.mesh.size == devices
    jax.block_until_ready(scope["gradients"])


if __name__ == "__main__":
    process, processes, port = map(int, sys.argv[1:])
    initialize(process, processes, port)
    compare(processes)
    run_the_snippet(2 * processes)
    print("agrees")
