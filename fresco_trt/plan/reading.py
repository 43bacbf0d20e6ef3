"""Strict reading of stored plans: a value of the declared type, or an InvalidPlan that names it.

Used wherever :mod:`fresco_trt.plan` reads its own JSON back. A number is never taken for a text, a
truth value never for a number, and a key is never missing or left over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from fresco_trt.errors import InvalidPlan

REMAKE = "make the plan again with `fresco-trt plan`, or restore the file it was read from"

Choice = TypeVar("Choice", bound=str)


def record(
    value: object, keys: Sequence[str], what: str, optional: Sequence[str] = ()
) -> Mapping[str, object]:
    """``value`` as a mapping that has exactly ``keys``, and perhaps some that are ``optional``."""
    if not isinstance(value, Mapping):
        raise _wrong(value, "an object", what)
    missing = [key for key in keys if key not in value]
    unknown = [str(key) for key in value if key not in (*keys, *optional)]
    for names, problem in ((missing, "lacks"), (unknown, "has the unknown")):
        if names:
            raise InvalidPlan(
                f"{what} {problem} {_plural('key', names)} {', '.join(names)}",
                expected=f"exactly {', '.join(keys)}{_perhaps(optional)}",
                fix=REMAKE,
            )
    return value


def items(value: object, what: str) -> list[object]:
    """``value`` as a list."""
    if not isinstance(value, list | tuple):
        raise _wrong(value, "a list", what)
    return list(value)


def whole(value: object, what: str) -> int:
    """``value`` as an int of at most 64 bits; ``True`` is no number."""
    if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > 63:
        raise _wrong(value, "a whole number below 2**63", what)
    return value


def number(value: object, what: str) -> float:
    """``value`` as a finite float; writers that print 1.0 as 1 are understood."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(value, "a number", what)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise _wrong(value, "a finite number", what)
    return result


def flag(value: object, what: str) -> bool:
    """``value`` as a bool; 0 and 1 are numbers."""
    if not isinstance(value, bool):
        raise _wrong(value, "true or false", what)
    return value


def text(value: object, what: str) -> str:
    """``value`` as a string."""
    if not isinstance(value, str):
        raise _wrong(value, "a text", what)
    return value


def choice(value: object, options: Sequence[Choice], what: str) -> Choice:
    """The one of ``options`` that ``value`` spells."""
    for option in options:
        if option == value:
            return option
    raise _wrong(value, f"one of {', '.join(options)}", what)


def agree(stored: object, derived: object, what: str) -> None:
    """A stored value that follows from the others says what follows."""
    if stored != derived:
        raise InvalidPlan(f"{what} is {_short(stored)}", expected=f"{derived}", fix=REMAKE)


def _wrong(value: object, expected: str, what: str) -> InvalidPlan:
    given = f"{what} is {_short(value)}"
    return InvalidPlan(given, expected=expected, fix=REMAKE)


def _short(value: object) -> str:
    """Only short scalars are shown; a container or a huge integer would bury the message."""
    kind = type(value).__name__
    if isinstance(value, int) and value.bit_length() > 63:
        return "a number beyond 64 bits"
    if not isinstance(value, str | int | float | None):
        return f"of type {kind}"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({kind})"


def _perhaps(optional: Sequence[str]) -> str:
    return f", and perhaps {', '.join(optional)}" if optional else ""


def _plural(word: str, names: Sequence[str]) -> str:
    return word if len(names) == 1 else word + "s"
