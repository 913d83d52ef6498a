"""Print what the last layer and its loss cost on a device mesh. The program compiles a step but does not run it.

    python examples/mesh_cost.py                       # the table of results/README.md; some minutes
    python examples/mesh_cost.py --classes 131072 --devices 8
    python examples/mesh_cost.py --topology v6e:4x2 v5p:2x2x1   # for TPUs, after pip install -e '.[examples,tpu]'
    python examples/mesh_cost.py --topology h200:8 h200:2x8     # for GPUs, after pip install -e '.[examples,gpu]'

A step computes the loss and the gradients of `softjax.linear_cross_entropy`. The table shows what each device
contributes to all-reduces, its memory and its matmuls. It also shows the temporary memory of the unfused baseline:
optax on sharded logits, partitioned by the compiler. Devices are simulated, in float32. With `--topology` they are TPUs
or GPUs, in bfloat16, and none of them has to be present.

A second table compares the same call under Auto axes with and without its axis names, on four simulated devices.
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.NOTHING_WRITTEN)

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # do not check the CUDA libraries
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would query a server for the TPU of this machine
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")  # any value works; libtpu warns if there is none
if "jax" not in sys.modules:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=512"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from benchmarks import machine, mesh_report, targets
from common.program import WrongInput
from common.settings import command_line

_BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s64": 8, "u64": 8, "u8": 1, "s8": 1}
_COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Print what the last layer and its loss cost on a device mesh, without running them."""

    samples: int = 65536
    """Samples per step, on all devices together."""
    features: int = 4096
    """Length of a hidden state."""
    classes: tuple[int, ...] = (131072, 262144, 1048576)
    """Numbers of classes, one table row each."""
    devices: tuple[int, ...] = (8, 64, 512)
    """Numbers of simulated devices, at most 512. The class axis of the mesh has 8 devices."""
    topology: tuple[str, ...] = ()
    """Compile for these chips instead: TPUs as v6e:4x2, GPUs as h200:2x8. The data axis of the mesh has 2 devices."""
    output: Path = Path(__file__).resolve().parent / "results"
    """Folder for mesh-cost.json, mesh-cost-tpu.json or mesh-cost-gpu.json."""


class Collective(NamedTuple):
    """One collective instruction of a compiled program."""

    kind: str
    arrays: tuple[tuple[str, int], ...]
    """Dtype and number of elements of each array."""
    in_loop: bool
    """Whether the instruction runs once per chunk."""


def collectives(hlo: str) -> Iterator[Collective]:
    """The collective instructions of a compiled program that involve more than one device."""
    for line, in_loop in _instructions(hlo):
        match = re.search(rf" = (.*?) ({_COLLECTIVES})(?:-start)?\(", line)
        if match and _group_size(line) > 1:
            result = re.sub(r"^\(\(.*?\), ", "", match[1])  # the result of a `-start` begins with its operands
            arrays = [(dtype, _count_elements(shape)) for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
            yield Collective(match[2], tuple(arrays), in_loop)


def _instructions(hlo: str) -> Iterator[tuple[str, bool]]:
    """The lines of a compiled program, and whether each belongs to a loop or to a computation called from one."""
    loops = set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", hlo))
    called: dict[str, set[str]] = {}
    lines: list[tuple[str, str]] = []
    computation = ""
    for line in hlo.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header and not line.startswith(" "):
            computation = header[1]
        called.setdefault(computation, set()).update(
            re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
        )
        for names in re.findall(r"branch_computations=\{([^}]*)\}", line):
            called[computation].update(name.strip(" %") for name in names.split(","))
        lines.append((computation, line))
    in_loops, new = set(loops), set(loops)
    while new:
        new = set().union(*(called.get(name, set()) for name in new)) - in_loops
        in_loops |= new
    for computation, line in lines:
        yield line, computation in in_loops


def _count_elements(shape: str) -> int:
    return math.prod(int(length) for length in shape.split(",") if length)


def _group_size(line: str) -> int:
    """Number of devices that communicate with each other."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        lengths = dict(re.findall(r"('\w+')=(\d+)", named[1]))
        return math.prod(int(lengths[name]) for name in re.findall(r"'\w+'", named[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return len(listed[1].split(",")) if listed else int(counted[1]) if counted else 2


def fused_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.linear_cross_entropy(hidden, kernel, labels, axis_name="classes", batch_axis_name="data")


def unfused_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def nameless_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.linear_cross_entropy(hidden, kernel, labels)


def compile_step(
    loss: Callable[..., Any],
    shape: tuple[int, int, int],
    mesh: Any,
    dtype: Any = jnp.float32,
    kernel_spec: P = P(None, "classes"),  # noqa: B008
) -> Any:
    """Compiles the loss and its gradients for a mesh with the axes data and classes."""
    samples, features, classes = shape
    arrays = [
        ((samples, features), dtype, P("data", None)),
        ((features, classes), dtype, kernel_spec),
        ((samples,), jnp.int32, P("data")),
    ]
    with jax.set_mesh(mesh):
        arguments = [jax.ShapeDtypeStruct(s, t, sharding=NamedSharding(mesh, spec)) for s, t, spec in arrays]
        shardings = (NamedSharding(mesh, P()), tuple(a.sharding for a in arguments[:2]))
        return jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=shardings).lower(*arguments).compile()


def simulated_mesh(data: int, classes: int) -> Any:
    devices = jax.devices()[: data * classes]
    return jax.make_mesh((data, classes), ("data", "classes"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def topology_mesh(topology: str) -> Any:
    """A mesh of chips that need not be present.

    Raises:
      WrongInput: if their compiler is not installed or does not know them.
    """
    arguments = targets.topology_arguments(topology)
    try:
        devices = topologies.get_topology_desc(**arguments).devices
    except Exception as error:  # each version of a plugin has its own exceptions
        extra, reason = targets.compiler_for(topology).extra, str(error).strip().partition("\n")[0]
        raise WrongInput(f"cannot compile for {topology}; is the extra `{extra}` installed? {reason}") from error
    device_grid = np.array(devices).reshape(min(2, len(devices)), -1)
    return Mesh(device_grid, ("data", "classes"), axis_types=(AxisType.Auto,) * 2)


def measure_row(settings: Settings, classes: int, devices: int | str) -> dict[str, Any]:
    """Bytes and matmuls per device. `devices` is a number of simulated devices, or a topology."""
    simulated = isinstance(devices, int)
    mesh = simulated_mesh(devices // 8, 8) if simulated else topology_mesh(devices)
    dtype = jnp.float32 if simulated else jnp.bfloat16
    shape, mesh_shape = (settings.samples, settings.features, classes), (mesh.shape["data"], mesh.shape["classes"])
    step, unfused = compile_step(fused_loss, shape, mesh, dtype), _compile_if_it_fits(unfused_loss, shape, mesh, dtype)
    hlo, memory = step.as_text(), step.memory_analysis()
    chunks = _count_chunks(hlo)
    # An all-reduce of at least this size is a gradient's; a smaller one sums statistics.
    smaller_gradient = settings.features * min(settings.samples // mesh_shape[0], classes // mesh_shape[1])
    gradient_bytes = statistics_bytes = 0
    for collective in collectives(hlo):
        for dtype_name, elements in collective.arrays:
            size = _BYTES[dtype_name] * elements * (chunks if collective.in_loop else 1)
            if elements >= smaller_gradient:
                gradient_bytes += size
            else:
                statistics_bytes += size
    return {
        "classes": classes,
        "devices": devices,
        "mesh_shape": mesh_shape,
        "chunks": chunks,
        "matmuls": _count_flops(step, hlo, chunks) / (2 * math.prod(shape) / mesh.size),
        "gradient_all_reduce_bytes": gradient_bytes,
        "statistics_all_reduce_bytes": statistics_bytes,
        "argument_and_result_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "unfused_temporary_bytes": unfused and unfused.memory_analysis().temp_size_in_bytes,
    }


NAMES_SHAPE = (4096, 256, 8192)
"""Samples, features and classes of the comparison of axis names."""
LAYOUTS = {
    "data parallel": ((4, 1), P()),
    "FSDP": ((4, 1), P("data", None)),
    "tensor parallel": ((2, 2), P(None, "classes")),
}


def measure_names(layout: str, named: bool) -> dict[str, Any]:
    """What four simulated devices with Auto axes exchange, with and without the axis names of the call."""
    mesh_shape, kernel_spec = LAYOUTS[layout]
    loss = fused_loss if named else nameless_loss
    step = compile_step(loss, NAMES_SHAPE, simulated_mesh(*mesh_shape), kernel_spec=kernel_spec)
    hlo = step.as_text()
    chunks = _count_chunks(hlo)
    in_chunks = [c for c in collectives(hlo) if c.in_loop]
    largest = max(in_chunks, key=_count_bytes, default=None)
    return {
        "layout": layout,
        "named": named,
        "chunks": chunks,
        "collective": largest and largest.kind,
        "collective_bytes": largest and _count_bytes(largest),
        "exchanged_bytes": sum(_count_bytes(c) * (chunks if c.in_loop else 1) for c in collectives(hlo)),
        "matmuls": _count_flops(step, hlo, chunks) / (2 * math.prod(NAMES_SHAPE) / 4),
    }


def _count_bytes(collective: Collective) -> int:
    return sum(_BYTES[dtype] * elements for dtype, elements in collective.arrays)


def _compile_if_it_fits(loss: Callable[..., Any], shape: tuple[int, int, int], mesh: Any, dtype: Any) -> Any:
    """The compiled step, or None if a device lacks the memory for it."""
    try:
        return compile_step(loss, shape, mesh, dtype)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _count_flops(step: Any, hlo: str, chunks: int) -> float:
    """The compiler's figure. If it gives none, as for an absent GPU, the operations of the matmuls in the program."""
    costs = step.cost_analysis()
    if costs:
        return costs["flops"] * chunks
    shapes = dict(re.findall(r"(%[\w.\-]+) = \w+\[([\d,]*)\]", hlo))
    flops = 0
    for line, in_loop in _instructions(hlo):
        dot = re.search(r" = \w+\[([\d,]*)\]\S* dot\((%[\w.\-]+), .*lhs_contracting_dims=\{(\d+)\}", line)
        if dot:
            contracted = int(shapes[dot[2]].split(",")[int(dot[3])])
            flops += 2 * _count_elements(dot[1]) * contracted * (chunks if in_loop else 1)
    return flops


def _count_chunks(hlo: str) -> int:
    """Trip count of the loop over chunks: the compiler's figure, or the constant in the loop condition."""
    counts = [1, *map(int, re.findall(r'known_trip_count":\{"n":"(\d+)"', hlo))]
    for name in re.findall(r"condition=%?([\w.\-]+)", hlo):
        condition = re.search(rf"^%?{re.escape(name)} \(.*?^}}", hlo, re.MULTILINE | re.DOTALL)
        counts += [int(n) for n in re.findall(r" constant\((\d+)\)", condition[0])] if condition else []
    return max(counts)


@program.exit_status(program.NOTHING_WRITTEN)
def main(argv: Sequence[str] | None = None) -> None:
    settings = command_line(Settings, argv)
    compiler = targets.common_compiler(settings.topology) if settings.topology else None
    program.make_writable(settings.output)
    print(mesh_report.caption(dataclasses.asdict(settings)), *mesh_report.head(), sep="\n")
    rows = []
    for classes in settings.classes:
        for devices in settings.topology or settings.devices:
            rows.append(measure_row(settings, classes, devices))
            print(mesh_report.line(rows[-1]), flush=True)
    names = []
    if not settings.topology:
        print("", mesh_report.names_caption(NAMES_SHAPE), *mesh_report.names_head(), sep="\n")
        for layout in LAYOUTS:
            for named in (True, False):
                names.append(measure_names(layout, named))
                print(mesh_report.names_line(names[-1]), flush=True)
    recorded = {name: value for name, value in dataclasses.asdict(settings).items() if name != "output"}
    versions = ("jax", "jaxlib", "optax", *((compiler.package,) if compiler else ()))
    results = {"machine": machine.describe(versions), "settings": recorded, "rows": rows}
    if names:
        results["axis_names"] = {"shape": NAMES_SHAPE, "rows": names}
    path = settings.output / (f"mesh-cost-{compiler.extra}.json" if compiler else "mesh-cost.json")
    program.write(path, (json.dumps(results, indent=1) + "\n").encode())
    print(f"\nWrote {path}")


if __name__ == "__main__":
    program.leave(main())
