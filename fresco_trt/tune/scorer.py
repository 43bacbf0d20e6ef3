"""The user's own judge: a function of a picture and its prompt that gives one number.

Beside the closeness to the many-step picture. It is a stranger's code, called with a
``PIL.Image.Image`` and a string; what it raises or gives is checked at every call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import PlanError, ScorerFailed, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.tune.options import Scorer

_EXPECTED = "a function of a picture and its prompt that gives one finite number"


def load_scorer(scorer: Scorer) -> Callable[..., Any]:
    """The function that was given or is spelt; modules are looked for in the working folder too.

    Raises PlanError for a spelling that leads to nothing that can be called.
    """
    if not isinstance(scorer, str):
        return scorer
    module, colon, function = scorer.partition(":")
    if not (colon and module and function):
        raise _unknown(scorer, "it has no module and function")
    try:
        found: Any = _imported(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # a stranger's module raises what it likes
        raise _unknown(scorer, f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise _unknown(scorer, f"it is a {type(found).__name__}")
    called: Callable[..., Any] = found
    return called


def _imported(module: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return import_module(module)
    finally:
        sys.path.remove(here)


def score_of(scorer: Callable[..., Any], picture: Image, prompt: str) -> float:
    """What a scorer gives for a picture. Raises ScorerFailed for what is no finite number."""
    try:
        found = scorer(picture, prompt)
    except Exception as error:  # a stranger's code raises what it likes
        raise _failed(f"raised {type(error).__name__}: {one_line(str(error))}", prompt) from error
    shape = getattr(found, "shape", ())
    if isinstance(found, bool | int | float) or (tuple(shape) == () and _is_number(found)):
        if isfinite(value := float(found)):
            return value
        raise _failed(f"gave {value}", prompt)
    what = f"shape {tuple(shape)}" if tuple(shape) else f"type {type(found).__name__}"
    raise _failed(f"gave something of {what}", prompt)


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str | bytes)


def _failed(what: str, prompt: str) -> ScorerFailed:
    return ScorerFailed(
        f"the scorer {what}, of the prompt {one_line(prompt)[:80]!r}",
        expected="one finite number",
        fix="mend the scorer; nothing is chosen by a score that is none",
    )


def _unknown(scorer: str, why: str) -> PlanError:
    return PlanError(
        f"--scorer {scorer}: {why}",
        expected=_EXPECTED,
        fix="write it like --scorer mymodule:score, for 'def score(picture, prompt): ...'",
    )
