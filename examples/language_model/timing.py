"""A training step to be timed."""

from typing import Any, Protocol

import jax
from jax.stages import Wrapped


class Batches(Protocol):
    def __getitem__(self, step: int, /) -> Any: ...


class TimedStep:
    """A compiled training step and its state. Each call takes the next batch and waits for the result."""

    def __init__(self, train_step: Wrapped, state: Any, batches: Batches, config: Any, *loss: Any):
        self.state, self._batches, self._loss = state, batches, loss
        self._step = train_step.lower(state, batches[0], config, *loss).compile()
        self._next = 0
        self.temporary_bytes = getattr(self._step.memory_analysis(), "temp_size_in_bytes", None)

    def __call__(self) -> None:
        self.state = jax.block_until_ready(self._step(self.state, self._batches[self._next], *self._loss))
        self._next += 1
