"""What the last layer and its loss cost on a mesh, told by the compiler: nothing is run.

    python examples/mesh_cost.py                       # as in results/README.md, some minutes
    python examples/mesh_cost.py --classes 131072 --devices 8
    python examples/mesh_cost.py --topology v6e:4x2 v5p:2x2x1   # for TPUs, after pip install -e '.[examples,tpu]'
    python examples/mesh_cost.py --topology h200:8 h200:2x8     # for GPUs, after pip install -e '.[examples,gpu]'

Of one step, loss and gradients of `softjax.linear_cross_entropy`: the bytes that each device gives to all-reduces, its
memory and its matrix products, beside those of the plain way (optax on sharded logits, split by the compiler). For
simulated devices, in float32; or, in bfloat16, for as many chips of a TPU or a GPU as a topology has, none of which is
needed.
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
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of the driver's libraries
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a server which TPU this machine has
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")  # whichever the topology, or libtpu warns that it has none
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
    """What the last layer and its loss cost on a mesh, told by the compiler."""

    samples: int = 65536
    """Tokens of a step, on all devices together."""
    features: int = 4096
    classes: tuple[int, ...] = (131072, 262144, 1048576)
    devices: tuple[int, ...] = (8, 64, 512)
    """Simulated ones, at most 512, eight of which share the classes."""
    topology: tuple[str, ...] = ()
    """Chips to compile for instead, TPUs as v6e:4x2 or GPUs as h200:2x8, half of which share the classes."""
    output: Path = Path(__file__).resolve().parent / "results"
    """Folder of mesh-cost.json, mesh-cost-tpu.json or mesh-cost-gpu.json."""


class Collective(NamedTuple):
    """One instruction of the compiled program."""

    kind: str
    sizes: tuple[tuple[str, int], ...]
    """The type and the number of elements of each array."""
    repeated: bool
    """It stands in a loop."""


def collectives(hlo: str) -> Iterator[Collective]:
    """The collective instructions of a compiled program."""
    for line, repeated in _instructions(hlo):
        match = re.search(rf" = (.*?) ({_COLLECTIVES})(?:-start)?\(", line)
        if match and _group(line) > 1:
            result = re.sub(r"^\(\(.*?\), ", "", match[1])  # where a start gives its operands, too
            sizes = [(dtype, _elements(shape)) for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
            yield Collective(match[2], tuple(sizes), repeated)


def _instructions(hlo: str) -> Iterator[tuple[str, bool]]:
    """The lines of a compiled program, and whether they are in the body of a loop, or called from there."""
    loops = set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", hlo))
    called: dict[str, set[str]] = {}
    lines: list[tuple[str, str]] = []
    inside = ""
    for line in hlo.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header and not line.startswith(" "):
            inside = header[1]
        called.setdefault(inside, set()).update(re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line))
        for names in re.findall(r"branch_computations=\{([^}]*)\}", line):
            called[inside].update(name.strip(" %") for name in names.split(","))
        lines.append((inside, line))
    reached, new = set(loops), set(loops)
    while new:
        new = set().union(*(called.get(name, set()) for name in new)) - reached
        reached |= new
    for computation, line in lines:
        yield line, computation in reached


def _elements(shape: str) -> int:
    return math.prod(int(length) for length in shape.split(",") if length)


def _group(line: str) -> int:
    """How many devices take part."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        lengths = dict(re.findall(r"('\w+')=(\d+)", named[1]))
        return math.prod(int(lengths[name]) for name in re.findall(r"'\w+'", named[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return len(listed[1].split(",")) if listed else int(counted[1]) if counted else 2


def ours(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.linear_cross_entropy(hidden, kernel, labels, axis_name="classes", batch_axis_name="data")


def plain(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def compiled(loss: Callable[..., Any], shape: tuple[int, int, int], mesh: Any, dtype: Any = jnp.float32) -> Any:
    """Loss and gradients, compiled for a mesh of data by classes."""
    samples, features, classes = shape
    arrays = [
        ((samples, features), dtype, P("data", None)),
        ((features, classes), dtype, P(None, "classes")),
        ((samples,), jnp.int32, P("data")),
    ]
    with jax.set_mesh(mesh):
        types = [jax.ShapeDtypeStruct(s, t, sharding=NamedSharding(mesh, spec)) for s, t, spec in arrays]
        shardings = (NamedSharding(mesh, P()), tuple(t.sharding for t in types[:2]))
        return jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=shardings).lower(*types).compile()


def mesh_of(data: int, classes: int) -> Any:
    devices = jax.devices()[: data * classes]
    return jax.make_mesh((data, classes), ("data", "classes"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def mesh_of_chips(topology: str) -> Any:
    options = targets.options(topology)
    try:
        devices = topologies.get_topology_desc(**options).devices
    except Exception as error:  # the plugin's own, which differ from version to version
        extra, told = targets.compiler_of(topology).extra, str(error).strip().partition("\n")[0]
        raise WrongInput(f"cannot compile for {topology}; is the extra `{extra}` installed? {told}") from error
    every = np.array(devices).reshape(min(2, len(devices)), -1)
    return Mesh(every, ("data", "classes"), axis_types=(AxisType.Auto,) * 2)


def row(settings: Settings, classes: int, devices: int | str) -> dict[str, Any]:
    """Bytes and products of a device; `devices` are so many simulated ones, or a topology."""
    simulated = isinstance(devices, int)
    mesh, dtype = (mesh_of(devices // 8, 8), jnp.float32) if simulated else (mesh_of_chips(devices), jnp.bfloat16)
    shape, shares = (settings.samples, settings.features, classes), (mesh.shape["data"], mesh.shape["classes"])
    step, of_plain = compiled(ours, shape, mesh, dtype), _fitting(plain, shape, mesh, dtype)
    text, memory = step.as_text(), step.memory_analysis()
    # the smaller of the two gradients
    matrix = settings.features * min(settings.samples // shares[0], classes // shares[1])
    summed, blocks = {True: 0, False: 0}, _blocks(text)
    for part in collectives(text):
        for kind, elements in part.sizes:
            summed[elements >= matrix] += _BYTES[kind] * elements * (blocks if part.repeated else 1)
    return {
        "classes": classes,
        "devices": devices,
        "shares": shares,
        "blocks": blocks,
        "products": _operations(step, text, blocks) / (2 * math.prod(shape) / mesh.size),
        "gradients_summed": summed[True],
        "statistics_summed": summed[False],
        "arrays_held": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "temporaries_of_the_plain_way": of_plain and of_plain.memory_analysis().temp_size_in_bytes,
    }


def _fitting(loss: Callable[..., Any], shape: tuple[int, int, int], mesh: Any, dtype: Any) -> Any:
    """The compiled step, or None if its device has not the memory for it."""
    try:
        return compiled(loss, shape, mesh, dtype)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _operations(step: Any, hlo: str, blocks: int) -> float:
    """As the compiler tells; where it does not, as for a GPU that is not there, those of the matrix products."""
    told = step.cost_analysis()
    if told:
        return told["flops"] * blocks
    shapes = dict(re.findall(r"(%[\w.\-]+) = \w+\[([\d,]*)\]", hlo))
    operations = 0
    for line, repeated in _instructions(hlo):
        dot = re.search(r" = \w+\[([\d,]*)\]\S* dot\((%[\w.\-]+), .*lhs_contracting_dims=\{(\d+)\}", line)
        if dot:
            summed = int(shapes[dot[2]].split(",")[int(dot[3])])
            operations += 2 * _elements(dot[1]) * summed * (blocks if repeated else 1)
    return operations


def _blocks(hlo: str) -> int:
    """How often the loop over blocks goes round: as the compiler says, or what its condition compares with."""
    counts = [1, *map(int, re.findall(r'known_trip_count":\{"n":"(\d+)"', hlo))]
    for name in re.findall(r"condition=%?([\w.\-]+)", hlo):
        condition = re.search(rf"^%?{re.escape(name)} \(.*?^}}", hlo, re.MULTILINE | re.DOTALL)
        counts += [int(n) for n in re.findall(r" constant\((\d+)\)", condition[0])] if condition else []
    return max(counts)


@program.exit_status(program.NOTHING_WRITTEN)
def main(argv: Sequence[str] | None = None) -> None:
    settings = command_line(Settings, argv)
    compiler = targets.compiler_of_all(settings.topology) if settings.topology else None
    program.make_writable(settings.output)
    print(mesh_report.caption(dataclasses.asdict(settings)), *mesh_report.heading(), sep="\n")
    rows = []
    for classes in settings.classes:
        for devices in settings.topology or settings.devices:
            rows.append(row(settings, classes, devices))
            print(mesh_report.line(rows[-1]), flush=True)
    used = {name: value for name, value in dataclasses.asdict(settings).items() if name != "output"}
    versions = ("jax", "jaxlib", "optax", *((compiler.package,) if compiler else ()))
    results = {"machine": machine.describe(versions), "settings": used, "rows": rows}
    path = settings.output / (f"mesh-cost-{compiler.extra}.json" if compiler else "mesh-cost.json")
    program.write(path, (json.dumps(results, indent=1) + "\n").encode())
    print(f"\nWrote {path}")


if __name__ == "__main__":
    program.leave(main())
