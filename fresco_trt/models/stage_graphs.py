"""Signatures of a stage's graphs: what is alike in every family.

Under the families' ``signatures.py``, which say what inputs their graphs take. Numbers only;
importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.caching import FEATURES, CacheSite
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.signature import GraphSignature, TensorSpec

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageShape:
    """What a plan says of a stage's graphs: target ``tokens``, those of ``references`` behind them,
    ``text_tokens``, where features are cached, and whether the full graph gives its ``feature``.
    """

    tokens: int
    references: int
    text_tokens: int
    site: CacheSite
    feature: bool

    @classmethod
    def of(
        cls,
        facts: ModelFacts,
        plan: StagePlan,
        stage: int,
        *,
        text_tokens: int,
        feature: bool | None,
    ) -> StageShape:
        """Of the stage counted from 0; the rest as in
        :meth:`~fresco_trt.models.family.FamilyGraphs.signature`. No graph has a feature where
        bypass steps are coarse velocities. Raises InvalidPlan for a text amplifier of a model whose
        graphs take no bias.
        """
        if plan.text_amplifier and not facts.text_biased:
            raise no_graph("a text amplifier", facts.name)
        if feature is None:
            feature = "bypass" in plan.stages[stage].actions
        return cls(
            tokens=plan.tokens[stage],
            references=facts.references * plan.reference_tokens[stage],
            text_tokens=plan.text_tokens(text_tokens)[stage],
            site="final" if plan.cache is None else plan.cache.site,
            feature=feature and plan.velocity_grid is None,
        )


def full_graph(
    facts: ModelFacts, tokens: int, inputs: Shapes, *, batch: int, kept: CacheSite | None
) -> GraphSignature:
    """Of a full graph, all float32: ``inputs``, the velocity of ``tokens``, and the feature that is
    cached at ``kept``, None for none.
    """
    outputs = {"velocity": (batch, tokens, facts.in_channels)}
    if kept is not None:
        outputs |= {FEATURES[kept]: (batch, tokens, facts.hidden)}
    return GraphSignature(inputs=_specs(inputs), outputs=_specs(outputs))


def bypass_graph(
    facts: ModelFacts, tokens: int, inputs: Shapes, *, batch: int, site: CacheSite
) -> GraphSignature:
    """Of a graph that starts from the feature cached at ``site``, which stands before ``inputs``:
    the image tokens after the last block, or at the trunk what all blocks after the first add to
    them. All float32.
    """
    first = {FEATURES[site]: (batch, tokens, facts.hidden)}
    outputs = {"velocity": (batch, tokens, facts.in_channels)}
    return GraphSignature(inputs=_specs({**first, **inputs}), outputs=_specs(outputs))


def no_graph(given: str, models: str) -> InvalidPlan:
    """The error for a plan with what is ``given``, which no graph of these ``models`` is for."""
    return InvalidPlan(
        f"{given} of {models}",
        expected="a plan without: there is no such graph of this family",
        fix="leave that option out",
    )


def _specs(shapes: Shapes) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()
    )
