"""Classes and samples sharded over several processes of `jax.distributed`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("process_worker.py")


def free_port():
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return bound.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_agree_with_one_device(processes, tmp_path):
    # Without JAX's compilation cache, which several processes cannot share.
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0", "XLA_FLAGS": " ".join(flags)}
    port, running = free_port(), []
    logs = [tmp_path / str(process) for process in range(processes)]
    try:
        for process, log in enumerate(logs):
            command = [sys.executable, str(WORKER), str(process), str(processes), str(port)]
            with log.open("wb") as out:
                running.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
        for worker in running:
            worker.wait(timeout=300)
    finally:
        for worker in running:
            worker.kill()
        for worker in running:
            worker.wait()
    outputs = [log.read_text(encoding="utf8", errors="replace") for log in logs]
    assert [worker.returncode for worker in running] == [0] * processes, "\n".join(text[-3000:] for text in outputs)
    assert all("agrees" in text for text in outputs)
