"""The `mesh` setting of the examples: devices that share the samples (`data`) and the classes (`classes`)."""

import math
import re

import jax

from common.settings import WrongInput

PATTERN = re.compile(r"(?:data=([1-9]\d{0,5}))?(?:(?:^|,)classes=([1-9]\d{0,5}))?")
WANTED = "like data=4,classes=2, one of the two, or empty"


def shares(mesh: str) -> tuple[int, int] | None:
    """Into how many parts the samples and the classes are split, if there is a mesh."""
    data, classes = PATTERN.fullmatch(mesh).groups(default="1")  # pyright: ignore[reportOptionalMemberAccess]
    return (int(data), int(classes)) if mesh else None


def make_mesh(mesh: str, *, samples: dict[str, int], classes: dict[str, int] | None = None) -> jax.sharding.Mesh | None:
    """The mesh that the setting describes, of Auto axes.

    Args:
      mesh: the setting.
      samples: the settings that the devices along `data` divide, by name.
      classes: the same for `classes`.

    Raises:
      WrongInput: if there are too few devices, or something does not divide.
    """
    split = shares(mesh)
    if split is None:
        return None
    wanted, present = math.prod(split), jax.device_count()
    if wanted > present:
        simulate = f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} simulates them on a CPU"
        raise WrongInput(f"`mesh` {mesh} needs {wanted} devices, there are {present}; {simulate}.")
    for axis, parts, settings in zip(("data", "classes"), split, (samples, classes or {}), strict=True):
        for name, size in settings.items():
            if size % parts:
                raise WrongInput(f"`{name}` {size} does not divide by the {axis}={parts} of `mesh`.")
    automatic = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(split, ("data", "classes"), automatic, devices=jax.devices()[:wanted])
