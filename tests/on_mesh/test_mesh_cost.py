"""What a mesh costs, read from the compiled program: what is sent, what is computed, and what memory it takes."""

import functools
import math

import cases
import jax
import jax.numpy as jnp
import pytest
import worlds
from covering import covering
from jax.sharding import PartitionSpec as P
from worlds import LOGITS, NAMES, ROWS

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
        lambda mesh, reduction, block_size: mesh_cost.compiled(
            lambda h, k, y: layer(reduction, block_size)(h, k, y).sum(),
            (SAMPLES, FEATURES, CLASSES),
            worlds.mesh_of(mesh),
            jnp.float32,
        )
    )


@pytest.mark.parametrize(("mesh", "reduction", "block_size"), covering(SHAPES, LAYERS))
def test_the_layer_sums_each_gradient_once_and_sends_a_few_numbers_a_sample(compiled, mesh, reduction, block_size):
    data, classes = mesh
    local = SAMPLES // data
    parts = list(mesh_cost.collectives(compiled(mesh, reduction, block_size).as_text()))
    assert {part.kind for part in parts} == {"all-reduce"}
    sizes = [(elements, part.repeated) for part in parts for _, elements in part.sizes]
    gradients = [(local * FEATURES, False), (FEATURES * CLASSES // classes, False)]
    for gradient in gradients:
        assert sizes.count(gradient) <= 1
        if gradient in sizes:
            sizes.remove(gradient)
    # the others: peak, mass and label logit of each sample, forward and backward, and scalars
    assert all(elements <= local for elements, _ in sizes)
    assert sum(elements for elements, repeated in sizes if not repeated) <= 6 * local + 10
    assert sum(elements for elements, repeated in sizes if repeated) <= 6 * (block_size or local)


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_does_its_share_of_three_products(compiled, mesh):
    share = 3 * 2 * SAMPLES * FEATURES * CLASSES / math.prod(mesh)
    assert (
        share <= compiled(mesh, "mean", None).cost_analysis()["flops"] <= 1.08 * share
    )  # 96 features are few beside a softmax


@pytest.mark.parametrize("mesh", MESHES)
def test_the_memory_of_a_device_is_that_of_its_share(compiled, mesh):
    data, classes = mesh
    share = (SAMPLES // data, FEATURES, CLASSES // classes)
    alone = mesh_cost.compiled(layer("mean", 4), share, worlds.mesh_of((1, 1)), jnp.float32)
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (alone, compiled(mesh, "mean", 4))]
    assert temporary[1] <= 1.05 * temporary[0] + 4096


@pytest.mark.parametrize(
    ("world", "mesh", "options"),
    covering(
        [world for world in worlds.WORLDS if world != "vmap"],
        SHAPES,
        [{"label_smoothing": 0.1, "z_loss": 0.01, "weights": cases.weights(SAMPLES)}, {}],
    ),
)
def test_losses_of_logits_send_a_few_numbers_a_sample(world, mesh, options):
    x, y = cases.logits(CLASSES, 1.0, SAMPLES), cases.class_ids(CLASSES, SAMPLES)
    w = options.get("weights", jnp.ones(SAMPLES))

    def loss(x, y, w):
        return softjax.cross_entropy(x, y, **{**options, "weights": w}, **NAMES)

    f = worlds.split(world, mesh, loss, [LOGITS, ROWS, ROWS], P())
    with worlds.context(world, mesh):
        arrays = worlds.placed(world, mesh, (x, y, w), [LOGITS, ROWS, ROWS])
        if world not in worlds.GLOBAL:
            arrays = worlds.placed("Auto", mesh, (x, y, w), [LOGITS, ROWS, ROWS])
        hlo = jax.jit(jax.value_and_grad(f)).lower(*arrays).compile().as_text()
    parts = list(mesh_cost.collectives(hlo))
    assert {part.kind for part in parts} == {"all-reduce"}
    assert sum(elements for part in parts for _, elements in part.sizes) <= 8 * SAMPLES // mesh[0] + 10


def test_the_program_tells_blocks_and_products():
    settings = mesh_cost.Settings(samples=16384, features=256)
    row = mesh_cost.row(settings, 4096, 8)  # a device's logits are 32 MiB, two blocks
    assert (row["blocks"], row["shares"]) == (2, (1, 8))
    assert 3 <= row["products"] < 3.2
    assert row["gradients_summed"] == 4 * settings.samples * settings.features
    assert row["temporaries"] < row["temporaries_of_the_plain_way"]
    assert "does not fit" in mesh_report.line(row | {"temporaries_of_the_plain_way": None})


def test_a_start_gives_its_operands_too():
    both = "(f32[8]{0}, bf16[2,3]{1,0})"
    (part,) = mesh_cost.collectives(f"  %s = ({both}, {both}) all-reduce-start(%a, %b), replica_groups=[2,4]")
    assert part == mesh_cost.Collective("all-reduce", (("f32", 8), ("bf16", 6)), False)


@pytest.mark.parametrize(
    ("groups", "several"),
    [
        ("{{0,1},{2,3}}", True),
        ("{{0},{1}}", False),
        ("[2,4]<=[8]", True),
        ("[8,1]<=[8]", False),
        ("mesh['data'=1,'classes'=8] {'classes'}", True),
        ("mesh['data'=1,'classes'=8] {'data'}", False),
    ],
)
def test_a_group_of_one_sends_nothing(groups, several):
    line = f"  %s = f32[8]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add"
    assert bool(list(mesh_cost.collectives(line))) == several


@pytest.mark.parametrize("block_size", [None, 4])
def test_products_are_found_in_the_program_where_the_compiler_is_silent(compiled, block_size, monkeypatch):
    step = compiled((2, 4), "mean", block_size)
    blocks = mesh_cost._blocks(step.as_text())
    assert blocks == (1 if block_size is None else SAMPLES // 2 // block_size)
    monkeypatch.setattr(type(step), "cost_analysis", lambda self: None)
    share = 3 * 2 * SAMPLES * FEATURES * CLASSES / 8
    assert mesh_cost._operations(step, step.as_text(), blocks) == share


def test_topologies():
    assert targets.options("v6e:4x2") == {"platform": "tpu", "topology_name": "v6e:4x2"}
    assert targets.options("h200:8")["topology"] == "1x1x8"
    assert targets.options("h100:2x8")["topology"] == "1x2x8"
    assert "device_memory_size: 80000000000" in targets.options("h100:1")["target_config"]
    for wrong in ("h200", "h200:", "h200:0", "h200:2x2x2"):
        with pytest.raises(WrongInput, match=f"^--topology {wrong}: GPUs are written h200:8, or h200:2x8"):
            targets.options(wrong)
    with pytest.raises(WrongInput, match="takes TPUs or GPUs, not both"):
        targets.compiler_of_all(["v6e:4x2", "h200:8"])


@pytest.mark.parametrize(("topology", "extra"), [("h200:8", "gpu"), ("v6e:4x2", "tpu")])
def test_a_compiler_that_is_not_there_is_named(topology, extra, monkeypatch):
    def missing(**_):
        raise RuntimeError("no such platform\nand more")

    monkeypatch.setattr(mesh_cost.topologies, "get_topology_desc", missing)
    with pytest.raises(
        WrongInput, match=f"^cannot compile for {topology}; is the extra `{extra}` installed\\? no such p"
    ):
        mesh_cost.mesh_of_chips(topology)
