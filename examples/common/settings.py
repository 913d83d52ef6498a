"""A program's settings: a TOML file, checked against a frozen dataclass and overridden on the command line."""

import contextlib
import dataclasses
import io
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import jax
import rich.text
import tyro
from jax.sharding import PartitionSpec

from common.program import WrongInput as WrongInput

# Next to the folder of the programs, or inside it where a user has copied both.
_FOLDERS = [folder / "configs" for folder in Path(__file__).resolve().parents[1:3]]
CONFIGS = _FOLDERS[0] if _FOLDERS[0].is_dir() else _FOLDERS[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Base class of a program's options, which add `settings: Annotated[<dataclass>, tyro.conf.arg(name="")]`."""

    config: Path
    """TOML file with the settings; the other options override it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Source):
    """Options of a program that trains: what to do with an earlier run in the output folder."""

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the last checkpoint in the folder, with the settings of the run that wrote it."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start anew in a folder that holds a run."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise WrongInput("--resume and --overwrite contradict each other: pass one of them.")


Options = TypeVar("Options", bound=Source)
Settings = TypeVar("Settings")


def parse(kind: type[Options], argv: Sequence[str] | None, default_config: Path) -> Options:
    """Reads the file that `--config` names and overrides it by the other options in `argv`.

    Raises:
      WrongInput: for a file or an option that cannot be used.
    """
    source, _ = command_line(
        Source, argv, default=Source(config=default_config), return_unknown_args=True, add_help=False
    )
    settings = read(source.config, get_type_hints(kind)["settings"])
    return command_line(kind, argv, default=kind(config=source.config, settings=settings))  # pyright: ignore[reportCallIssue]


def read(path: Path, kind: type[Settings]) -> Settings:
    """Reads a TOML file that has each field of `kind` and nothing else."""
    kinds = get_type_hints(kind)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for key in table:
            if key not in kinds:
                raise ValueError(f"unknown key `{key}`; the keys are {', '.join(kinds)}.")
        for key in kinds:
            if key not in table:
                raise ValueError(f"the key `{key}` is missing.")
        return kind(**{key: _typed(key, kinds[key], table[key]) for key in kinds})
    except OSError as error:
        raise WrongInput(f"cannot read the config {path}: {error.strerror}.") from error
    except (ValueError, OverflowError, WrongInput) as error:
        raise WrongInput(f"{path}: {error}") from error


def _typed(key: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_typed(key, *pair) for pair in zip(kinds, value, strict=True))
    # `true` is not a number in TOML, though it is one in Python.
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is kind or value in get_args(kind):
        return value
    raise ValueError(f"`{key}` must be {_in_words(kind)}, got {value!r}.")


def _in_words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return f"a list of {_in_words(inner[0])}" if inner[-1] is Ellipsis else f"[{', '.join(map(_in_words, inner))}]"
    words = {int: "a whole number", float: "a number", str: "a string", Path: "a string"}
    return words.get(kind) or f"one of {get_args(kind)}"


def command_line(kind: Any, argv: Sequence[str] | None, **options: Any) -> Any:
    """Calls `tyro.cli`, and raises WrongInput with the first sentence of the box that tyro prints for an error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, args=argv, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise WrongInput(_first_sentence(printed.getvalue())) from stop


def _first_sentence(box: str) -> str:
    """The text between the title of the box and the next rule, which is of dashes where stdout is not UTF-8."""
    lines = [line.strip("│ ") for line in rich.text.Text.from_ansi(box).plain.splitlines()[1:]]
    text = itertools.dropwhile(_is_rule, lines)
    return " ".join(itertools.takewhile(lambda line: not _is_rule(line), text)) or box


def _is_rule(line: str) -> bool:
    return not line.strip("─-╰╯")


Wanted = Mapping[str, tuple[Callable[[Any], Any], str]]

# All of these are false for NaN.
COUNT = (lambda v: v >= 1, "at least 1")
NOT_NEGATIVE = (lambda v: 0 <= v < math.inf, "at least 0 and finite")
POSITIVE = (lambda v: 0 < v < math.inf, "above 0 and finite")
FRACTION = (lambda v: 0 < v < 1, "between 0 and 1")
PROBABILITY = (lambda v: 0 <= v <= 1, "from 0 to 1")
SEED = (lambda v: 0 <= v < 2**32, "from 0 to 4294967295")


def check(settings: Any, wanted: Wanted) -> None:
    """Refuses the first setting that fails its test in `wanted`, which holds by name a test and its description."""
    for name, (holds, words) in wanted.items():
        value = getattr(settings, name)
        if not holds(value):
            raise WrongInput(f"`{name}` must be {words}, got {value!r}.")


def decisive(settings: Any) -> dict[str, Any]:
    """The settings that decide the result of a run: the fields without `compare=False`, all of JSON's types."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings) if field.compare}


# The setting `mesh`: how many devices share the samples (`data`) and the classes (`classes`).
_MESH = re.compile(r"(?:data=([1-9]\d{0,5}))?(?:(?:^|,)classes=([1-9]\d{0,5}))?")
MESH = (_MESH.fullmatch, "like data=4,classes=2, one of the two, or empty")


@contextlib.contextmanager
def on_mesh(mesh: str, *, samples: dict[str, int], classes: dict[str, int] | None = None) -> Iterator[None]:
    """Within it, JAX uses the mesh that the setting describes, with Auto axes. An empty setting is no mesh.

    Args:
      mesh: the setting.
      samples: settings that the devices along `data` must divide, by name.
      classes: settings that the devices along `classes` must divide.

    Raises:
      WrongInput: if there are too few devices, or they do not divide a setting.
    """
    if not mesh:
        yield
        return
    matched = _MESH.fullmatch(mesh)
    assert matched, mesh  # `check` has refused others
    shape = tuple(map(int, matched.groups(default="1")))
    wanted, present = math.prod(shape), jax.device_count()
    if wanted > present:
        simulate = f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} simulates them on a CPU"
        raise WrongInput(f"`mesh` {mesh} needs {wanted} devices, there are {present}; {simulate}.")
    for axis, devices, sizes in zip(("data", "classes"), shape, (samples, classes or {}), strict=True):
        for name, size in sizes.items():
            if size % devices:
                raise WrongInput(f"`{name}` {size} does not divide by the {axis}={devices} of `mesh`.")
    automatic = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh(shape, ("data", "classes"), automatic, devices=jax.devices()[:wanted])):
        yield


def shard(array: jax.Array, *axes: str | None) -> jax.Array:
    """Shards the dimensions of an array over these axes of the mesh, inside `jit`. Without a mesh it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*axes))
