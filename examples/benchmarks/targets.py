"""TPUs and GPUs to compile for where there is none: which compiler, and what it asks of one."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from common.program import WrongInput


class Compiler(NamedTuple):
    extra: str
    """Of this project, which installs it."""
    package: str


TPU, GPU = Compiler("tpu", "libtpu"), Compiler("gpu", "jax-cuda13-plugin")

_MEMORY = {"h100": (80, 3.35), "h200": (141, 4.8)}
"""In GB, and TB/s to read and write it."""


def compiler_of(topology: str) -> Compiler:
    return GPU if topology.partition(":")[0] in _MEMORY else TPU


def compiler_of_all(topologies: Iterable[str]) -> Compiler:
    found = set(map(compiler_of, topologies))
    if len(found) > 1:
        raise WrongInput("--topology takes TPUs or GPUs, not both: their compilers are installed apart")
    return found.pop()


def options(topology: str) -> dict[str, Any]:
    """Of `jax.experimental.topologies.get_topology_desc`: 4x2 TPUs are v6e:4x2, 2 machines of 8 GPUs h200:2x8."""
    if compiler_of(topology) is TPU:
        return {"platform": "tpu", "topology_name": topology}
    found = re.fullmatch(r"(\w+):(?:([1-9]\d*)x)?([1-9]\d*)", topology)
    if not found:
        raise WrongInput(f"--topology {topology}: GPUs are written h200:8, or h200:2x8 for two machines of 8")
    chip, machines, gpus = found.groups()
    return {
        "platform": "cuda",
        "topology_name": "",
        "topology": f"1x{machines or 1}x{gpus}",
        "target_config": _target(chip),
    }


def _target(chip: str) -> str:
    """A `GpuTargetConfigProto` of XLA, as text: what all GPUs of the Hopper generation have, and the chip's memory."""
    size, bandwidth = _MEMORY[chip]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth * 10**12:.0f}
  device_memory_size: {size * 10**9}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA {chip.upper()}"
"""
