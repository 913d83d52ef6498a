"""A program's settings: a TOML file, checked against a frozen dataclass, then overridden by the command line."""

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

from common.program import WrongInput

# Beside the folder of the programs; in the same folder as they, where they have been copied.
_PLACES = [folder / "configs" for folder in Path(__file__).resolve().parents[1:3]]
CONFIGS = _PLACES[0] if _PLACES[0].is_dir() else _PLACES[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The options of a program inherit from this and add `settings: Annotated[Kind, tyro.conf.arg(name="")]`."""

    config: Path
    """TOML file of the settings, which the other options override."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Source):
    """The options of a program that trains; adds what becomes of an earlier run."""

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the folder's last checkpoint, with the settings of the run that wrote it."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start anew in a folder that holds a run."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise WrongInput("--resume and --overwrite contradict each other: pass one of them.")


Options = TypeVar("Options", bound=Source)
Settings = TypeVar("Settings")


def parse(kind: type[Options], argv: Sequence[str] | None, default_config: Path) -> Options:
    """The options in `argv`, and the settings of the file that `--config` names where `argv` does not override them.

    Raises:
      WrongInput: for a file or an option that cannot be used.
    """
    source, _ = command_line(
        Source, argv, default=Source(config=default_config), return_unknown_args=True, add_help=False
    )
    settings = read(source.config, get_type_hints(kind)["settings"])
    return command_line(kind, argv, default=kind(config=source.config, settings=settings))  # pyright: ignore[reportCallIssue]


def read(path: Path, kind: type[Settings]) -> Settings:
    """The settings of one TOML file, which must hold each field of `kind` and nothing else."""
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
    # TOML's true is no number, though Python's is.
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
    """`tyro.cli`, with the first sentence of its box of help as the error."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(kind, args=argv, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise WrongInput(_first_sentence(shown.getvalue())) from stop


def _first_sentence(box: str) -> str:
    """The text below the box's title, up to the next rule; where stdout is not UTF-8, tyro draws with dashes only."""
    rows = [row.strip("│ ") for row in rich.text.Text.from_ansi(box).plain.splitlines()[1:]]
    text = itertools.dropwhile(_is_rule, rows)
    return " ".join(itertools.takewhile(lambda row: not _is_rule(row), text)) or box


def _is_rule(row: str) -> bool:
    return not row.strip("─-╰╯")


Wanted = Mapping[str, tuple[Callable[[Any], Any], str]]

# Each is false for NaN.
COUNT = (lambda v: v >= 1, "at least 1")
NOT_NEGATIVE = (lambda v: 0 <= v < math.inf, "at least 0 and finite")
POSITIVE = (lambda v: 0 < v < math.inf, "above 0 and finite")
FRACTION = (lambda v: 0 < v < 1, "between 0 and 1")
SEED = (lambda v: 0 <= v < 2**32, "from 0 to 4294967295")


def check(settings: Any, wanted: Wanted) -> None:
    """Refuses the first value of which `wanted` does not hold; there stand, by name, a test and its words."""
    for name, (holds, words) in wanted.items():
        value = getattr(settings, name)
        if not holds(value):
            raise WrongInput(f"`{name}` must be {words}, got {value!r}.")


def decisive(settings: Any) -> dict[str, Any]:
    """The settings that decide the result, in types that JSON keeps: those that are compared."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings) if field.compare}


# The setting `mesh`: devices that share the samples (`data`) and the classes (`classes`).
_MESH = re.compile(r"(?:data=([1-9]\d{0,5}))?(?:(?:^|,)classes=([1-9]\d{0,5}))?")
MESH = (_MESH.fullmatch, "like data=4,classes=2, one of the two, or empty")


def shares(mesh: str) -> tuple[int, int]:
    """Into how many parts the samples and the classes are split."""
    data, classes = _MESH.fullmatch(mesh).groups(default="1")  # pyright: ignore[reportOptionalMemberAccess]
    return int(data), int(classes)


@contextlib.contextmanager
def on_mesh(mesh: str, *, samples: dict[str, int], classes: dict[str, int] | None = None) -> Iterator[None]:
    """Within it, JAX uses the mesh that the setting describes, of Auto axes; none, if that is empty.

    Args:
      mesh: the setting.
      samples: the settings that the devices along `data` divide, by name.
      classes: the same for `classes`.

    Raises:
      WrongInput: if there are too few devices, or something does not divide.
    """
    if not mesh:
        yield
        return
    split = shares(mesh)
    wanted, present = math.prod(split), jax.device_count()
    if wanted > present:
        simulate = f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} simulates them on a CPU"
        raise WrongInput(f"`mesh` {mesh} needs {wanted} devices, there are {present}; {simulate}.")
    for axis, parts, sizes in zip(("data", "classes"), split, (samples, classes or {}), strict=True):
        for name, size in sizes.items():
            if size % parts:
                raise WrongInput(f"`{name}` {size} does not divide by the {axis}={parts} of `mesh`.")
    automatic = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh(split, ("data", "classes"), automatic, devices=jax.devices()[:wanted])):
        yield
