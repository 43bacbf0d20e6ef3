"""Model names to facts, and facts to their family. Adding a family is one line here.

Read wherever a model is named. Importing this file imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from fresco_trt.errors import IncompatibleOptions, UnknownModel
from fresco_trt.models.family import ModelFamily
from fresco_trt.models.flux.family import FLUX
from fresco_trt.models.hunyuan.family import HUNYUAN
from fresco_trt.models.qwen.family import QWEN
from fresco_trt.plan.facts import ModelFacts

_FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (FLUX, QWEN, HUNYUAN)}

_VALUE = re.compile(r"[0-9]{1,9}(\+[0-9]{1,9})*|true|false")


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
    """Facts of the model called ``name``, or of one like it in other dimensions:
    "flux:num_layers=8" (:class:`~fresco_trt.models.family.FamilyVariants`).

    Raises UnknownModel, which lists the names and the nearest one, and IncompatibleOptions for
    dimensions that no such model has.
    """
    facts = _facts()
    if name in facts:
        return facts[name]
    like, colon, changes = name.partition(":")
    if colon and like in facts:
        return variant(facts[like], _changes(like, changes))
    close = difflib.get_close_matches(like, facts, n=1)
    given = f"unknown model {name!r}"
    fix = f"did you mean {close[0]}?" if close else "pass one of those to --model"
    raise UnknownModel(given, expected=f"one of {', '.join(facts)}", fix=fix)


def variant(base: ModelFacts, config: Mapping[str, Any]) -> ModelFacts:
    """The facts of a model like ``base`` with another transformer's ``config``. Raises
    IncompatibleOptions, also for a family whose models are all listed.
    """
    variants = family_of(base).variants
    if variants is None:
        raise IncompatibleOptions(
            f"a model like {base.name} in other dimensions",
            expected=f"one of {', '.join(facts.name for facts in family_of(base).models)}",
            fix="pass one of these",
        )
    return variants.facts(base, config)


def _changes(like: str, text: str) -> dict[str, Any]:
    """``num_layers=8,axes_dims_rope=16+56+56`` as names and values."""
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        found = _VALUE.fullmatch(value)
        if not equals or found is None or name in changes:
            raise IncompatibleOptions(
                f"{part!r} in the model name {like}:{text}",
                expected="name=value, each name once, with commas between them",
                fix=f"write the model like {like}:num_layers=8,num_single_layers=38",
            )
        numbers = [int(each) for each in value.split("+")] if value[0].isdigit() else []
        changes[name] = numbers if len(numbers) > 1 else numbers[0] if numbers else value == "true"
    return changes


def _facts() -> dict[str, ModelFacts]:
    return {facts.name: facts for family in _FAMILIES.values() for facts in family.models}
