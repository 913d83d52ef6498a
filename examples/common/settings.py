"""An example's settings: a TOML file, checked against a frozen dataclass, then overridden by the command line."""

import contextlib
import dataclasses
import io
import itertools
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import rich.text
import tyro


class WrongInput(Exception):  # noqa: N818
    """What the user gave cannot be run; the message is the one line that says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The options of an example inherit from this and add `settings: Annotated[Kind, tyro.conf.arg(name="")]`."""

    config: Path
    """TOML file of the settings, which the other options override."""


def exit_status(program: Callable[[], None], *, interrupted: str) -> int:
    """Runs the program. What the user can mend gets one line on stderr and status 2; Ctrl-C, `interrupted` and 130."""
    try:
        program()
        sys.stdout.flush()
    except (WrongInput, OSError) as error:
        # Errors name the file that they are about; only what is printed goes to a file without a name.
        where = "the standard output: " if isinstance(error, OSError) and error.filename is None else ""
        print(f"error: {where}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"error: interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


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
    return {int: "a whole number", float: "a number", str: "a string", Path: "a string"}.get(
        kind
    ) or f"one of {get_args(kind)}"


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
