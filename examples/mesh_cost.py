"""What the last layer and its loss cost on a mesh, told by the compiler for simulated devices: nothing is run.

    python examples/mesh_cost.py                       # as in results/README.md, some minutes
    python examples/mesh_cost.py --classes 131072 --devices 8

Of one step, loss and gradients of `softjax.linear_cross_entropy` in float32: the bytes that each device gives to
all-reduces, and its memory, beside that of the plain way (optax on sharded logits, split by the compiler).
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.NOTHING_WRITTEN)

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "jax" not in sys.modules:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=512"

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from benchmarks import machine, mesh_report
from common.settings import command_line

_BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s64": 8, "u64": 8, "u8": 1, "s8": 1}
_COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the last layer and its loss cost on a mesh, told by the compiler for simulated devices."""

    samples: int = 65536
    """Tokens of a step, on all devices together."""
    features: int = 4096
    classes: tuple[int, ...] = (131072, 262144, 1048576)
    devices: tuple[int, ...] = (8, 64, 512)
    """At most 512, eight of which share the classes."""
    output: Path = Path(__file__).resolve().parent / "results"
    """Folder of mesh-cost.json."""


class Collective(NamedTuple):
    """One instruction of the compiled program."""

    kind: str
    sizes: tuple[tuple[str, int], ...]
    """The type and the number of elements of each array."""
    repeated: bool
    """It stands in a loop."""


def collectives(hlo: str) -> Iterator[Collective]:
    """The collective instructions of a compiled program, and whether they are in the body of a loop."""
    loops = set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", hlo))
    called: dict[str, set[str]] = {}
    found: list[tuple[str, str, str]] = []
    inside = ""
    for line in hlo.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header and not line.startswith(" "):
            inside = header[1]
        called.setdefault(inside, set()).update(re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line))
        for names in re.findall(r"branch_computations=\{([^}]*)\}", line):
            called[inside].update(name.strip(" %") for name in names.split(","))
        match = re.search(rf" = (.*?) ({_COLLECTIVES})(?:-start)?\(", line)
        if match and _group(line) > 1:
            found.append((inside, match[2], match[1]))
    reached, new = set(loops), set(loops)
    while new:
        new = set().union(*(called.get(name, set()) for name in new)) - reached
        reached |= new
    for computation, kind, types in found:
        sizes = []
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
            elements = 1
            for length in filter(None, shape.split(",")):
                elements *= int(length)
            sizes.append((dtype, elements))
        yield Collective(kind, tuple(sizes), computation in reached)


def _group(line: str) -> int:
    """How many devices take part."""
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


def row(settings: Settings, classes: int, devices: int) -> dict[str, Any]:
    """Bytes of a device."""
    mesh = mesh_of(devices // 8, 8)
    shape = (settings.samples, settings.features, classes)
    steps = [compiled(loss, shape, mesh) for loss in (ours, plain)]
    memory = [step.memory_analysis() for step in steps]
    matrix = settings.features * min(settings.samples * 8 // devices, classes // 8)  # the smaller of the two gradients
    summed, blocks = {True: 0, False: 0}, _blocks(steps[0].as_text())
    for part in collectives(steps[0].as_text()):
        for dtype, elements in part.sizes:
            summed[elements >= matrix] += _BYTES[dtype] * elements * (blocks if part.repeated else 1)
    return {
        "classes": classes,
        "devices": devices,
        "shares": [devices // 8, 8],
        "gradients_summed": summed[True],
        "statistics_summed": summed[False],
        "arrays_held": memory[0].argument_size_in_bytes + memory[0].output_size_in_bytes,
        "temporaries": memory[0].temp_size_in_bytes,
        "temporaries_of_the_plain_way": memory[1].temp_size_in_bytes,
    }


def _blocks(hlo: str) -> int:
    """How often the loop over blocks goes round."""
    counts = [int(n) for n in re.findall(r'"known_trip_count":\{"n":"(\d+)"\}', hlo)]
    return max(counts, default=1)


@program.exit_status(program.NOTHING_WRITTEN)
def main(argv: Sequence[str] | None = None) -> None:
    settings = command_line(Settings, argv)
    program.make_writable(settings.output)
    print(mesh_report.caption(dataclasses.asdict(settings)), *mesh_report.heading(), sep="\n")
    rows = []
    for classes in settings.classes:
        for devices in settings.devices:
            rows.append(row(settings, classes, devices))
            print(mesh_report.line(rows[-1]), flush=True)
    used = {name: value for name, value in dataclasses.asdict(settings).items() if name != "output"}
    results = {"machine": machine.describe(("jax", "jaxlib", "optax")), "settings": used, "rows": rows}
    path = settings.output / "mesh-cost.json"
    program.write(path, (json.dumps(results, indent=1) + "\n").encode())
    print(f"\nWrote {path}")


if __name__ == "__main__":
    program.leave(main())
