"""The door from Python: arguments of the public calls, checked, and errors in their words.

In front of everything that ``fresco_trt`` has a name for. What is wrong is said once, where it is
found, in the words of the command line; :func:`in_python` says it again with the names that the
function has. Whatever is of another type is refused here by the argument's name.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fresco_trt.errors import FrescoError, IncompatibleOptions, InvalidArgument, one_line
from fresco_trt.plan.paths import check_path, paths_refused

if TYPE_CHECKING:
    from pathlib import Path

    from fresco_trt.plan.config import PresetConfig
    from fresco_trt.plan.sizes import Size

P = ParamSpec("P")
R = TypeVar("R")

# --- words ------------------------------------------------------------------------------------

_COMMAND = re.compile(r"'fresco-trt [^']*'")
_NO_VALUE = r"(?!(?:or|and|in|with|on|that|they|for|such|only|out|beside|without|too|is|it)\b)"
_VALUE = r"'[^']*'|[A-Za-z0-9_./*][A-Za-z0-9_./*+=,-]*(?<![.,])"
_FLAG = re.compile(rf"--([a-z][a-z-]*)(?: {_NO_VALUE}({_VALUE}))?")


def _spelt(name: str, value: str | None) -> str:
    """An option of the command line as an argument of a call."""
    if value is None:
        return name
    bare = value.isdecimal() or value.isupper() or value.startswith("'")
    return f"{name}={value}" if bare else f'{name}="{value}"'


_SIDES = ("width", "height", "num_frames")


def _size_of_a_call(name: str, value: str | None) -> str:
    """The size of a call of a diffusers pipeline, which has an argument for each of its numbers."""
    numbers = (value or "").split("x")
    if len(numbers) not in (2, 3) or not all(each.isdigit() for each in numbers):
        return "width and height"
    return ", ".join(f"{name}={each}" for name, each in zip(_SIDES, numbers, strict=False))


def _steps_of_a_call(name: str, value: str | None) -> str:
    return _spelt("num_inference_steps", value)


Spelling = Callable[[str, str | None], str]
_OF_PYTHON: Mapping[str, Spelling] = {"trust": lambda name, value: "trust_native_code=True"}
"""Options that are arguments of another name in Python, whatever call it is."""

OF_A_CALL: Mapping[str, Spelling] = {"size": _size_of_a_call, "steps": _steps_of_a_call}
"""How the options of a size and of steps are spelt in a call of an enabled pipeline."""


def translated(text: str, spellings: Mapping[str, Spelling] | None = None) -> str:
    """A message with arguments in place of options, on one line. Whole commands in quotation marks
    stay: they are to be typed into a shell, whoever asks for them.
    """
    known = {**_OF_PYTHON, **(spellings or {})}

    def spell(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return known.get(name, _spelt)(name, found[2])

    line, done, parts = one_line(text), 0, []
    for command in _COMMAND.finditer(line):
        parts += [_FLAG.sub(spell, line[done : command.start()]), command[0]]
        done = command.end()
    return "".join((*parts, _FLAG.sub(spell, line[done:])))


@contextmanager
def in_python(spellings: Mapping[str, Spelling] | None = None) -> Iterator[None]:
    """Let errors of the package through in the words of a caller in Python."""
    try:
        yield
    except FrescoError as error:
        error.given, error.expected, error.fix = (
            translated(each, spellings) for each in (error.given, error.expected, error.fix)
        )
        error.context = tuple(translated(each, spellings) for each in error.context)
        raise


def python_door(public: Callable[P, R]) -> Callable[P, R]:
    """A public function whose errors are those of :func:`in_python` and :func:`paths_refused`."""

    @wraps(public)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with in_python(), paths_refused():
            return public(*args, **kwargs)

    return call


# --- values -----------------------------------------------------------------------------------


def whole(name: str, value: Any) -> int:
    """A whole number, of NumPy too. Raises InvalidArgument."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise _invalid(name, value, "a whole number", "3")


def number(name: str, value: Any) -> float:
    """A number. Raises InvalidArgument."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise _invalid(name, value, "a number", "0.5")
    return float(value)


def finite(name: str, value: Any) -> float:
    """A number that is neither infinite nor none at all. Raises InvalidArgument."""
    if not math.isfinite(given := number(name, value)):
        raise _invalid(name, value, "a finite number", "0.5")
    return given


def flag(name: str, value: Any) -> bool:
    """Yes or no. Raises InvalidArgument."""
    if not isinstance(value, bool):
        raise _invalid(name, value, "True or False", "True")
    return value


def word(name: str, value: Any) -> str:
    """A text. Raises InvalidArgument."""
    if not isinstance(value, str):
        raise _invalid(name, value, "a text", '"..."')
    return value


def unicode(name: str, value: Any) -> str:
    """A text that can be written down: no half of a surrogate pair. Raises InvalidArgument."""
    text = word(name, value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(name, value, "a text of whole characters", '"..."') from None
    return text


def place(name: str, value: Any) -> Path:
    """A path that the system takes, or a text that is one. Raises InvalidArgument."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise _invalid(name, value, "a path, or a text that is one", '"folder"')
    check_path(f"{name}={_shown(value)}", value)
    from pathlib import Path

    return Path(value)


def function(name: str, value: Any) -> Callable[..., Any]:
    """Something to call. Raises InvalidArgument."""
    if not callable(value):
        raise _invalid(name, value, "a function", "print")
    called: Callable[..., Any] = value
    return called


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Values by name. Raises InvalidArgument."""
    if not isinstance(value, Mapping):
        raise _invalid(name, value, "a dict", "{}")
    return value


def size_of(name: str, value: Any) -> Size:
    """(width, height) in whole pixels, or a clip's three numbers, or a text that spells them.
    Raises InvalidArgument, and UnsupportedSize for another text.
    """
    from fresco_trt.plan.sizes import parse_size

    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, tuple | list) and len(value) in (2, 3):
        first, second, *frames = (whole(name, each) for each in value)
        return (first, second, frames[0]) if frames else (first, second)
    raise _invalid(name, value, "(width, height), or a text like '512x384'", "(512, 384)")


def optional(check: Callable[[str, Any], R], name: str, value: Any) -> R | None:
    """What ``check`` gives, or None for None."""
    return None if value is None else check(name, value)


def preset_of(preset: Any, delta: Any, shift: Any) -> PresetConfig:
    """A preset's name or spelling, "balanced,delta=0.05", and what is changed of it. Raises
    PlanError for another text, InvalidArgument, and IncompatibleOptions for a change given twice.
    """
    from dataclasses import replace

    from fresco_trt.plan.config import PresetConfig

    found = PresetConfig() if preset in (None, "") else _preset(preset)
    for name, value in (("delta", delta), ("shift", shift)):
        if value is None:
            continue
        if getattr(found, name) is not None:
            raise IncompatibleOptions(
                f"{name}={value!r} with preset={preset!r}",
                expected=f"{name} once",
                fix=f"leave one of the two {name} out",
            )
        change: dict[str, Any] = {name: number(name, value)}
        found = replace(found, **change)
    return found


def _preset(preset: Any) -> PresetConfig:
    from fresco_trt.plan.config import PresetConfig

    return preset if isinstance(preset, PresetConfig) else PresetConfig.of(word("preset", preset))


def _invalid(name: str, value: object, expected: str, example: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name}={_shown(value)}", expected=expected, fix=f"pass one like {name}={example}"
    )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"a {type(value).__name__}"
