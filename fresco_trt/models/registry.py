"""Model names to facts, and facts to their family. Adding a family is one line here.

Read wherever a model is named. Importing this file imports no torch.
"""

from __future__ import annotations

import difflib

from fresco_trt.errors import IncompatibleOptions, UnknownModel
from fresco_trt.models.family import ModelFamily
from fresco_trt.models.flux.family import FLUX
from fresco_trt.plan.facts import ModelFacts

_FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (FLUX,)}

# Names the command line will take one day; better told "not yet" than "never heard of it".
_NOT_YET = ("hunyuan-video", "qwen-image-edit")


def register(family: ModelFamily) -> None:
    """Make a family of one's own known in this process, with the names of its models.

    Raises IncompatibleOptions for a name that a family or another model has already, and for a
    model whose facts name another family.
    """
    taken = [name for name in (facts.name for facts in family.models) if name in _facts()]
    strangers = [facts.name for facts in family.models if facts.family != family.name]
    if family.name in _FAMILIES or taken or strangers:
        raise IncompatibleOptions(
            f"the family {family.name!r} of {', '.join(facts.name for facts in family.models)}",
            expected="a family and models of new names, the models' facts naming the family",
            fix="give it other names, or unregister what has them",
        )
    _FAMILIES[family.name] = family


def unregister(name: str) -> None:
    """Forget a family that :func:`register` made known. Raises KeyError for one that is not."""
    del _FAMILIES[name]


def family_names() -> tuple[str, ...]:
    """The families there are."""
    return tuple(_FAMILIES)


def family_named(name: str) -> ModelFamily:
    """The family called ``name``. Raises UnknownModel, which lists the names."""
    if name not in _FAMILIES:
        raise UnknownModel(
            f"unknown model family {name!r}",
            expected=f"one of {', '.join(_FAMILIES)}",
            fix="update fresco-trt, or register the family that it was built for",
        )
    return _FAMILIES[name]


def family_of(facts: ModelFacts) -> ModelFamily:
    """The family of a model, by its facts; raises as :func:`family_named`."""
    return family_named(facts.family)


def model_names() -> tuple[str, ...]:
    """The names :func:`model_facts` answers for."""
    return tuple(_facts())


def model_facts(name: str) -> ModelFacts:
    """Facts of the model called ``name``.

    Raises UnknownModel, which lists the names and the nearest one, and says so when the name is
    known but not supported yet.
    """
    facts = _facts()
    if name in facts:
        return facts[name]
    if name in _NOT_YET:
        given, fix = f"model {name!r} is known, not supported yet", "pass one of those to --model"
    else:
        close = difflib.get_close_matches(name, (*facts, *_NOT_YET), n=1)
        given = f"unknown model {name!r}"
        fix = f"did you mean {close[0]}?" if close else "pass one of those to --model"
    raise UnknownModel(given, expected=f"one of {', '.join(facts)}", fix=fix)


def _facts() -> dict[str, ModelFacts]:
    return {facts.name: facts for family in _FAMILIES.values() for facts in family.models}
