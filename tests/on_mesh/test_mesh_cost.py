"""What a mesh costs, read from compiled programs: communication, computation and memory."""

import functools
import math

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import pytest
from covering import covering
from jax.sharding import PartitionSpec as P
from mesh_setups import LOGITS, NAMES, ROWS

import mesh_cost
import softjax
from benchmarks import mesh_report, targets
from common.program import WrongInput

MESHES = [(2, 4), (1, 8), (8, 1)]
SHAPES = [(mesh,) for mesh in MESHES]
LAYERS = [("mean", None), ("none", 2), ("mean", 2), ("none", None)]
SAMPLES, FEATURES, CLASSES = 64, 96, 2048


def layer(reduction, block_size):
    return functools.partial(softjax.linear_cross_entropy, reduction=reduction, block_size=block_size, **NAMES)


@pytest.fixture(scope="module")
def compiled():
    return functools.cache(
        lambda mesh, reduction, block_size: mesh_cost.compile_step(
            lambda h, k, y: layer(reduction, block_size)(h, k, y).sum(),
            (SAMPLES, FEATURES, CLASSES),
            mesh_setups.mesh_of(mesh),
            jnp.float32,
        )
    )


@pytest.mark.parametrize(("mesh", "reduction", "block_size"), covering(SHAPES, LAYERS))
def test_the_layer_all_reduces_each_gradient_once_and_a_few_statistics_per_sample(
    compiled, mesh, reduction, block_size
):
    data, classes = mesh
    local = SAMPLES // data
    found = list(mesh_cost.collectives(compiled(mesh, reduction, block_size).as_text()))
    assert {collective.kind for collective in found} == {"all-reduce"}
    sizes = [(elements, collective.in_loop) for collective in found for _, elements in collective.arrays]
    gradients = [(local * FEATURES, False), (FEATURES * CLASSES // classes, False)]
    for gradient in gradients:
        assert sizes.count(gradient) <= 1
        if gradient in sizes:
            sizes.remove(gradient)
    # The rest: peak, mass and label logit of each sample, forward and backward, and scalars.
    assert all(elements <= local for elements, _ in sizes)
    assert sum(elements for elements, in_loop in sizes if not in_loop) <= 6 * local + 10
    assert sum(elements for elements, in_loop in sizes if in_loop) <= 6 * (block_size or local)


@pytest.mark.parametrize("mesh", MESHES)
def test_three_matmuls_are_divided_among_the_devices(compiled, mesh):
    matmul_flops = 3 * 2 * SAMPLES * FEATURES * CLASSES / math.prod(mesh)
    # With only 96 features, the softmax itself has a visible cost.
    assert matmul_flops <= compiled(mesh, "mean", None).cost_analysis()["flops"] <= 1.08 * matmul_flops


@pytest.mark.parametrize("mesh", MESHES)
def test_a_device_needs_the_memory_of_its_shard(compiled, mesh):
    data, classes = mesh
    shard = (SAMPLES // data, FEATURES, CLASSES // classes)
    unsharded = mesh_cost.compile_step(layer("mean", 4), shard, mesh_setups.mesh_of((1, 1)), jnp.float32)
    temporary = [step.memory_analysis().temp_size_in_bytes for step in (unsharded, compiled(mesh, "mean", 4))]
    assert temporary[1] <= 1.05 * temporary[0] + 4096


@pytest.mark.parametrize(
    ("setup", "mesh", "options"),
    covering(
        [setup for setup in mesh_setups.SETUPS if setup != "vmap"],
        SHAPES,
        [{"label_smoothing": 0.1, "z_loss": 0.01, "weights": cases.weights(SAMPLES)}, {}],
    ),
)
def test_losses_of_logits_all_reduce_a_few_statistics_per_sample(setup, mesh, options):
    x, y = cases.logits(CLASSES, 1.0, SAMPLES), cases.class_ids(CLASSES, SAMPLES)
    w = options.get("weights", jnp.ones(SAMPLES))

    def loss(x, y, w):
        return softjax.cross_entropy(x, y, **{**options, "weights": w}, **NAMES)

    f = mesh_setups.shard_function(setup, mesh, loss, [LOGITS, ROWS, ROWS], P())
    with mesh_setups.mesh_context(setup, mesh):
        arrays = mesh_setups.placed(setup, mesh, (x, y, w), [LOGITS, ROWS, ROWS])
        if setup not in mesh_setups.GLOBAL:
            arrays = mesh_setups.placed("Auto", mesh, (x, y, w), [LOGITS, ROWS, ROWS])
        hlo = jax.jit(jax.value_and_grad(f)).lower(*arrays).compile().as_text()
    found = list(mesh_cost.collectives(hlo))
    assert {collective.kind for collective in found} == {"all-reduce"}
    assert sum(elements for collective in found for _, elements in collective.arrays) <= 8 * SAMPLES // mesh[0] + 10


def test_a_row_reports_chunks_and_matmuls():
    settings = mesh_cost.Settings(samples=16384, features=256)
    row = mesh_cost.measure_row(settings, 4096, 8)  # the logits of a device have 32 MiB, two chunks
    assert (row["chunks"], row["mesh_shape"]) == (2, (1, 8))
    assert 3 <= row["matmuls"] < 3.2
    assert row["gradient_all_reduce_bytes"] == 4 * settings.samples * settings.features
    assert row["temporary_bytes"] < row["unfused_temporary_bytes"]
    assert "does not fit" in mesh_report.line(row | {"unfused_temporary_bytes": None})


def test_without_axis_names_a_kernel_with_sharded_features_all_reduces_logits():
    """Under Auto axes. With both names only gradients and the kernel cross between devices, and none per chunk."""
    named, nameless = (mesh_cost.measure_names("FSDP", names) for names in (True, False))
    samples, features, classes = mesh_cost.NAMES_SHAPE
    assert (nameless["collective"], nameless["collective_bytes"]) == ("all-reduce", 4 * samples // 8 * classes)
    assert (named["collective"], nameless["chunks"]) == (None, 8)
    gradients_and_kernel = 4 * (2 * features * classes + 1)
    assert named["exchanged_bytes"] == gradients_and_kernel
    assert nameless["exchanged_bytes"] > 8 * gradients_and_kernel
    assert mesh_report.names_line(nameless).startswith("| FSDP | none | 8 | all-reduce, 16.8 MB |")
    assert mesh_report.names_line(named).startswith("| FSDP | given | 2 | none |")


def test_without_axis_names_every_device_computes_all_samples():
    named, nameless = (mesh_cost.measure_names("data parallel", names)["matmuls"] for names in (True, False))
    assert 3 <= named < 3.1
    assert 12 <= nameless < 12.4


def test_operands_of_a_start_are_not_counted():
    both = "(f32[8]{0}, bf16[2,3]{1,0})"
    (collective,) = mesh_cost.collectives(f"  %s = ({both}, {both}) all-reduce-start(%a, %b), replica_groups=[2,4]")
    assert collective == mesh_cost.Collective("all-reduce", (("f32", 8), ("bf16", 6)), False)


@pytest.mark.parametrize(
    ("groups", "communicates"),
    [
        ("{{0,1},{2,3}}", True),
        ("{{0},{1}}", False),
        ("[2,4]<=[8]", True),
        ("[8,1]<=[8]", False),
        ("mesh['data'=1,'classes'=8] {'classes'}", True),
        ("mesh['data'=1,'classes'=8] {'data'}", False),
    ],
)
def test_a_group_of_one_device_sends_nothing(groups, communicates):
    line = f"  %s = f32[8]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add"
    assert bool(list(mesh_cost.collectives(line))) == communicates


@pytest.mark.parametrize("block_size", [None, 4])
def test_matmuls_are_counted_in_the_program_if_the_compiler_reports_no_cost(compiled, block_size, monkeypatch):
    step = compiled((2, 4), "mean", block_size)
    chunks = mesh_cost._count_chunks(step.as_text())
    assert chunks == (1 if block_size is None else SAMPLES // 2 // block_size)
    monkeypatch.setattr(type(step), "cost_analysis", lambda self: None)
    matmul_flops = 3 * 2 * SAMPLES * FEATURES * CLASSES / 8
    assert mesh_cost._count_flops(step, step.as_text(), chunks) == matmul_flops


def test_topologies():
    assert targets.topology_arguments("v6e:4x2") == {"platform": "tpu", "topology_name": "v6e:4x2"}
    assert targets.topology_arguments("h200:8")["topology"] == "1x1x8"
    assert targets.topology_arguments("h100:2x8")["topology"] == "1x2x8"
    assert "device_memory_size: 80000000000" in targets.topology_arguments("h100:1")["target_config"]
    for wrong in ("h200", "h200:", "h200:0", "h200:2x2x2"):
        with pytest.raises(WrongInput, match=f"^--topology {wrong}: write GPUs as h200:8, or as h200:2x8"):
            targets.topology_arguments(wrong)
    with pytest.raises(WrongInput, match="takes TPUs or GPUs, not both"):
        targets.common_compiler(["v6e:4x2", "h200:8"])


@pytest.mark.parametrize(("topology", "extra"), [("h200:8", "gpu"), ("v6e:4x2", "tpu")])
def test_the_error_names_the_extra_of_a_missing_compiler(topology, extra, monkeypatch):
    def missing(**_):
        raise RuntimeError("no such platform\nand more")

    monkeypatch.setattr(mesh_cost.topologies, "get_topology_desc", missing)
    with pytest.raises(
        WrongInput, match=f"^cannot compile for {topology}; is the extra `{extra}` installed\\? no such p"
    ):
        mesh_cost.topology_mesh(topology)
