"""The one spelling of config objects: ``hicache,interval=3,max_order=1``.

The command line, the manifest and Python's strings spell an object in the same way: first the
value of its first field, the head, then ``key=value`` for each field that is not its default, with
commas between them. A field of several words joins them with ``+``. A backslash in front of a
comma, a plus, an equals sign or another backslash takes it literally.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from fresco_trt.errors import PlanError
from fresco_trt.plan.paths import check_path

_KINDS: dict[type, tuple[str, str]] = {
    bool: ("true or false", "true"),
    int: ("a whole number", "3"),
    float: ("a number", "0.05"),
    str: ("a word", "word"),
    Path: ("a path", "folder/file"),
}
"""Of each type that a value may have: what it is called, and an example."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Base of the config objects: frozen dataclasses of keyword-only fields, each with a default.

    A field is a bool, an int, a float, a str or a Path, or None where that is its default, or a
    tuple of words or of whole numbers. The head may be left out of a spelling where its default is
    empty. Raises PlanError for a value of another type, and for a text that is empty or has spaces
    around it, and InvalidArgument for a path that the system takes nowhere.
    """

    option: ClassVar[str]
    """The option of the command line that takes the spelling."""
    example: ClassVar[str]
    """A spelling, for messages."""

    def __post_init__(self) -> None:
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            if not (field.holds(value) or (value is None and field.default is None)):
                raise PlanError(
                    f"{name}={value!r} in {type(self).__name__}",
                    expected=field.expected,
                    fix=f"write {name} like {field.example!r}, without spaces around it",
                )
            if isinstance(value, Path):
                check_path(f"{name}, a path in {self.option}", value)

    def __str__(self) -> str:
        """The spelling, of which :meth:`parse` is the exact inverse."""
        head, *others = _fields(type(self)).values()
        parts = [head.spelt(getattr(self, head.name), ",=")]
        for field in others:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={field.spelt(value, ',')}")
        return ",".join(part for part in parts if part)

    @property
    def changed(self) -> tuple[str, ...]:
        """The fields that are not their default, by name."""
        known = _fields(type(self)).items()
        return tuple(name for name, field in known if getattr(self, name) != field.default)

    @classmethod
    def of(cls, given: Self | str) -> Self:
        """The object itself, or the one that a text spells. Raises PlanError as :meth:`parse`."""
        return given if isinstance(given, cls) else cls.parse(str(given))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The object that ``text`` spells.

        Raises PlanError for an unknown or repeated key, a value of another type, a second word
        without a key, and a head that is missing.
        """
        known, given = _fields(cls), f"{cls.option} {text!r}"
        head, *keys = known
        form = f"one {head}, then key=value for any of {', '.join(keys)}"
        found: dict[str, Any] = {}
        for index, part in enumerate(_split(text, ",") if text.strip() else ()):
            key, *rest = _split(part, "=")
            key, value = key.strip(), "=".join(rest).strip()
            if rest and key not in keys:
                close = difflib.get_close_matches(key, keys, n=1)
                raise PlanError(
                    f"the key {key!r} in {given}",
                    expected=f"one of {', '.join(keys)}",
                    fix=f"did you mean {close[0]}?" if close else f"leave {key} out",
                )
            if index and not rest:
                raise PlanError(
                    f"the word {key!r} in {given}",
                    expected=form,
                    fix=f"write it like {cls.option} {cls.example}",
                )
            name, value = (key, value) if rest else (head, key)
            if name in found:
                raise PlanError(
                    f"{name} twice in {given}",
                    expected="every key once",
                    fix="leave one of them out",
                )
            found[name] = known[name].read(value, given)
        if head not in found and known[head].default:
            raise PlanError(
                f"no {head} in {given}",
                expected=form,
                fix=f"write it like {cls.option} {cls.example}",
            )
        make: Any = cls
        config: Self = make(**found)
        return config


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """A field of a config: the type of its value, or of each of its ``several`` values."""

    name: str
    kind: type
    several: bool
    default: object

    @property
    def expected(self) -> str:
        """What its value has to be, in words."""
        one = _KINDS[self.kind][0]
        return f"{one.removeprefix('a ')}s joined with +" if self.several else one

    @property
    def example(self) -> object:
        """A value that it takes."""
        value = _value(self.kind, _KINDS[self.kind][1])
        return (value,) if self.several else value

    def holds(self, value: object) -> bool:
        """Whether it may have ``value``."""
        if self.several:
            return isinstance(value, tuple) and all(_is_a(self.kind, each) for each in value)
        return _is_a(self.kind, value)

    def spelt(self, value: Any, separators: str) -> str:
        """``value`` with everything that separates escaped."""
        if self.several:
            return "+".join(_escaped(str(each), f"{separators}+") for each in value)
        if value is None:
            return ""
        return str(value).lower() if self.kind is bool else _escaped(str(value), separators)

    def read(self, text: str, given: str) -> object:
        """Inverse of :meth:`spelt`. Raises PlanError for a text that is no such value."""
        try:
            if self.several:
                parts = (_plain(each).strip() for each in _split(text, "+"))
                value: object = tuple(_value(self.kind, each) for each in parts)
            else:
                value = _value(self.kind, _plain(text))
        except ValueError:
            value = None
        if not self.holds(value):
            example = _KINDS[self.kind][1]
            raise PlanError(
                f"{self.name}={text} in {given}",
                expected=self.expected,
                fix=f"write it like {self.name}={'+'.join([example] * (1 + self.several))}",
            )
        return value


_FIELDS: dict[type, dict[str, _Field]] = {}


def _fields(cls: type[Config]) -> dict[str, _Field]:
    """The fields of a config by their names, the head first; read once a class."""
    if cls not in _FIELDS:
        hints, found = get_type_hints(cls), {}
        for each in fields(cls):
            hint = hints[each.name]
            kinds = [kind for kind in get_args(hint) or (hint,) if kind in _KINDS]
            found[each.name] = _Field(
                name=each.name,
                kind=kinds[0],
                several=get_origin(hint) is tuple,
                default=each.default,
            )
        _FIELDS[cls] = found
    return _FIELDS[cls]


def _is_a(kind: type, value: object) -> bool:
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and isfinite(value)
    if isinstance(value, str | Path):
        text = str(value)
        return isinstance(value, kind) and text.strip() == text != ""
    return isinstance(value, kind)


def _value(kind: type, text: str) -> object:
    """``text`` as a value of ``kind``. Raises ValueError."""
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    if kind is Path and not text:
        raise ValueError(text)
    value: object = kind(text)
    return value


# --- separators -------------------------------------------------------------------------------


def _split(text: str, separator: str) -> list[str]:
    """The parts of ``text`` between separators; what is escaped stays so."""
    parts = [""]
    for piece in re.findall(r"\\[,+=\\]|.", text, re.DOTALL):
        if piece == separator:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _escaped(text: str, separators: str) -> str:
    return re.sub(rf"[\\{separators}]", r"\\\g<0>", text)


def _plain(text: str) -> str:
    return re.sub(r"\\([,+=\\])", r"\1", text)
