"""Describes TPUs and GPUs to their compilers, which need no such device to compile for it."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from common.program import WrongInput


class Compiler(NamedTuple):
    extra: str
    """Extra of this project that installs the compiler."""
    package: str
    """Package of the compiler."""


TPU, GPU = Compiler("tpu", "libtpu"), Compiler("gpu", "jax-cuda13-plugin")

_MEMORY = {"h100": (80, 3.35), "h200": (141, 4.8)}
"""Size in GB and bandwidth in TB/s."""


def compiler_for(topology: str) -> Compiler:
    return GPU if topology.partition(":")[0] in _MEMORY else TPU


def common_compiler(topologies: Iterable[str]) -> Compiler:
    """The compiler of all topologies.

    Raises:
      WrongInput: if they need two.
    """
    compilers = set(map(compiler_for, topologies))
    if len(compilers) > 1:
        raise WrongInput("--topology takes TPUs or GPUs, not both: each has its own compiler")
    return compilers.pop()


def topology_arguments(topology: str) -> dict[str, Any]:
    """Arguments for `jax.experimental.topologies.get_topology_desc`.

    v6e:4x2 is a slice of 4 × 2 TPUs. h200:2x8 is two machines of 8 GPUs.

    Raises:
      WrongInput: if the topology is malformed.
    """
    if compiler_for(topology) is TPU:
        return {"platform": "tpu", "topology_name": topology}
    match = re.fullmatch(r"(\w+):(?:([1-9]\d*)x)?([1-9]\d*)", topology)
    if not match:
        raise WrongInput(f"--topology {topology}: write GPUs as h200:8, or as h200:2x8 for two machines of 8")
    chip, machines, gpus = match.groups()
    return {
        "platform": "cuda",
        "topology_name": "",
        "topology": f"1x{machines or 1}x{gpus}",
        "target_config": _target_config(chip),
    }


def _target_config(chip: str) -> str:
    """XLA's `GpuTargetConfigProto` as text: the values of all Hopper GPUs, with the memory of this chip."""
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
