"""The checkpoints of a run: the last two, each whole or not there at all, whenever the program dies (Orbax)."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from common import checksums as checksums
from common.run import refuse_other_settings
from common.settings import WrongInput

FOLDER = "checkpoints"
_KEPT = 2


class Checkpoints:
    """In `folder`, one folder for each step: the state, as Orbax writes it, the settings, and the checksums of both.

    It is written under another name and gets its own when all of it is there; before it is deleted, it loses its name.
    So where a step's folder does not agree with its checksums, something other than this program's death damaged it.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what Orbax tells of here, it raises too
        self.folder = folder.resolve()
        self.folder.mkdir(exist_ok=True)
        for rest in self.folder.glob(".*.tmp"):
            shutil.rmtree(rest)
        self._settings = settings

    def last(self) -> str:
        """In words, for messages."""
        for step in reversed(self._steps()):
            if checksums.hold(self._at(step)):
                return f"the last good checkpoint is {self._at(step)}"
        return "there is no good checkpoint"

    def save(self, step: int, state: Any) -> None:
        """Writes the state in the foreground: where that fails, it is known before the run goes on."""
        written = self._temporary(step)
        try:
            written.mkdir()
            with _orbax() as orbax:
                orbax.save(written / "state", args=ocp.args.StandardSave(_named(state)))
            (written / "settings.json").write_text(json.dumps(self._settings), encoding="utf-8")
            checksums.write(written)
            written.rename(self._at(step))
        except Exception as error:
            raise WrongInput(f"cannot save step {step}; {self.last()}: {_first_line(error)}") from error
        self._remove(self._steps()[:-_KEPT])

    def restore(self, like: Any) -> Any:
        """The last state, or `like` if there is none.

        Args:
          like: a state of the structure, shapes, types and shardings that are expected.

        Raises:
          WrongInput: if the checkpoint is damaged, or was written with other settings or for another state.
        """
        steps = self._steps()
        if not steps:
            return like
        where = self._at(steps[-1])
        if not checksums.hold(where):
            raise WrongInput(f"{where} is damaged; {self.last()}. Delete {where} to go on without it.")
        refuse_other_settings(where, json.loads((where / "settings.json").read_bytes()), self._settings)
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
        try:
            with _orbax() as orbax:
                named = orbax.restore(where / "state", args=ocp.args.StandardRestore(shapes))
        except Exception as error:  # Orbax and its storage raise anything
            raise WrongInput(f"{where} holds another program's state: {_first_line(error)}") from error
        return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in _named(like)])

    def clear(self) -> None:
        self._remove(self._steps())

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def _at(self, step: int) -> Path:
        return self.folder / str(step)

    def _temporary(self, step: int) -> Path:
        return self.folder / f".{step}.tmp"

    def _remove(self, steps: list[int]) -> None:
        for step in steps:
            shutil.rmtree(self._at(step).rename(self._temporary(step)))


def _orbax() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
