"""Model names to facts. Adding a model is one facts file and one line here."""

from __future__ import annotations

import difflib

from fresco_trt.errors import UnknownModel
from fresco_trt.models.flux.facts import FLUX_FACTS
from fresco_trt.plan.facts import ModelFacts

_FACTS = {facts.name: facts for facts in FLUX_FACTS}

# Names the command line will take one day; better told "not yet" than "never heard of it".
_NOT_YET = ("hunyuan-video", "qwen-image-edit")


def model_names() -> tuple[str, ...]:
    """The names :func:`model_facts` answers for."""
    return tuple(_FACTS)


def model_facts(name: str) -> ModelFacts:
    """Facts of the model called ``name``.

    Raises UnknownModel, which lists the names and the nearest one, and says so when the name is
    known but not supported yet.
    """
    if name in _FACTS:
        return _FACTS[name]
    if name in _NOT_YET:
        given, fix = f"model {name!r} is known, not supported yet", "pass one of those to --model"
    else:
        close = difflib.get_close_matches(name, (*_FACTS, *_NOT_YET), n=1)
        given = f"unknown model {name!r}"
        fix = f"did you mean {close[0]}?" if close else "pass one of those to --model"
    raise UnknownModel(given, expected=f"one of {', '.join(_FACTS)}", fix=fix)
