"""The checkpoints of a run: the last two, each whole or not there at all, whenever the program dies (Orbax)."""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from _config import WrongInput
from _run import refuse_other_settings

FOLDER = "checkpoints"


class Checkpoints:
    """In `folder`, one folder for each step. One that is cut short is not counted, and the next run removes it."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what Orbax tells of here, it raises too
        self.folder = folder.resolve()
        self._settings = settings
        # In the foreground: what fails is known before the run goes on.
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False, create=True)
        with _in_one_line(f"cannot use {self.folder}"):
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "settings"))

    def last(self) -> str:
        """In words, for messages."""
        step = self._manager.latest_step()
        if step is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.folder / str(step)}"

    def save(self, step: int, state: Any) -> None:
        if step == self._manager.latest_step():
            return
        saved = {"state": ocp.args.StandardSave(_named(state)), "settings": ocp.args.JsonSave(self._settings)}
        with _in_one_line(f"cannot save step {step}; {self.last()}"):
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def restore(self, like: Any) -> Any:
        """The last state, or `like` if there is none.

        Args:
          like: a state of the structure, shapes, types and shardings that are expected.

        Raises:
          WrongInput: if the checkpoint is damaged, or was written with other settings or for another state.
        """
        step = self._manager.latest_step()
        if step is None:
            return like
        where = self.folder / str(step)
        with _in_one_line(f"{where} cannot be read; delete it to go on from the one before it, if there is one"):
            saved = self._manager.restore(step, args=ocp.args.Composite(settings=ocp.args.JsonRestore()))["settings"]
        refuse_other_settings(where, saved, self._settings)
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
        with _in_one_line(f"{where} cannot be read; delete it to go on from the one before it, if there is one"):
            items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
            named = self._manager.restore(step, args=items)["state"]
        return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in _named(like)])

    def close(self) -> None:
        self._manager.close()


class _in_one_line:  # noqa: N801
    """Whatever Orbax and its storage raise, and they raise anything, as one line the user can act on."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            raise WrongInput(f"{self.what}: {str(error).splitlines()[0] if str(error) else kind.__name__}") from error


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
