"""What the engines of a FLUX stage take and give: names, dtypes and static shapes.

Numbers only; importing this file imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.errors import InvalidPlan
from fresco_trt.models.stage_graphs import StageShape, bypass_graph, full_graph
from fresco_trt.plan.caching import CacheSite
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.signature import GraphSignature

if TYPE_CHECKING:
    from fresco_trt.plan.stages import Action, StagePlan

COARSE_ROPE = ("rope_cos_coarse", "rope_sin_coarse")
"""Inputs that only the phase-aligned graphs have."""


def full_signature(
    facts: ModelFacts,
    tokens: int,
    text_tokens: int,
    *,
    references: int = 0,
    refined: int = 0,
    feature: bool = False,
    site: CacheSite = "final",
    batch: int = 1,
) -> GraphSignature:
    """Signature of the ``full`` graph for ``tokens`` image tokens; all float32.

    ``timestep`` is sigma and ``guidance`` the plain scale (neither times 1000); ``guidance`` is an
    input only of guidance-distilled models. ``references`` tokens of reference pictures stand
    behind the image's in ``latents``; velocity and feature are of the image's alone. With
    ``refined``, how many coarse tokens the last ``4 * refined`` are the children of, it is the
    phase-aligned variant's, which takes tables of the coarse frame too. Raises InvalidPlan for a
    count below one, children beyond ``tokens``, and references in the phase-aligned variant.
    """
    if refined and references:
        raise _no_references("phase-aligned attention")
    if refined and not 0 < 4 * refined <= tokens:
        given = f"{tokens} tokens, {refined} of them expanded to four"
        raise InvalidPlan(given, expected=f"from 0 to {tokens // 4}", fix="correct the plan")
    inputs = _full_inputs(facts, tokens + references, text_tokens, refined, batch)
    return full_graph(facts, tokens, inputs, batch=batch, kept=site if feature else None)


def _full_inputs(
    facts: ModelFacts, tokens: int, text_tokens: int, refined: int, batch: int
) -> dict[str, tuple[int, ...]]:
    coarse_rows = text_tokens + tokens - 3 * refined
    return {
        "latents": (batch, tokens, facts.in_channels),
        "text": (batch, text_tokens, facts.text_dim),
        **_condition_inputs(facts, batch),
        "rope_cos": (text_tokens + tokens, facts.head_dim),
        "rope_sin": (text_tokens + tokens, facts.head_dim),
        **(dict.fromkeys(COARSE_ROPE, (coarse_rows, facts.head_dim)) if refined else {}),
    }


def _condition_inputs(facts: ModelFacts, batch: int) -> dict[str, tuple[int, ...]]:
    return {
        "pooled": (batch, facts.pooled_dim),
        "timestep": (batch,),
        **({"guidance": (batch,)} if facts.guidance else {}),
    }


def bypass_signature(
    facts: ModelFacts,
    tokens: int,
    text_tokens: int,
    *,
    references: int = 0,
    site: CacheSite = "final",
    batch: int = 1,
) -> GraphSignature:
    """Signature of the ``bypass`` graph for ``tokens`` image tokens; all float32.

    ``feature`` stands for the image tokens after the last block, ``residual`` at the trunk for what
    all blocks after the first add to them; the rest as in :func:`full_signature`.
    """
    inputs = _condition_inputs(facts, batch)
    if site == "trunk":
        inputs = _full_inputs(facts, tokens + references, text_tokens, 0, batch)
    return bypass_graph(facts, tokens, inputs, batch=batch, site=site)


def stage_signature(
    facts: ModelFacts,
    plan: StagePlan,
    stage: int,
    action: Action = "full",
    *,
    text_tokens: int,
    feature: bool | None = None,
    batch: int = 1,
) -> GraphSignature:
    """Signature of a graph of a plan's stage, counted from 0.

    The full graph gives its feature if ``feature`` says so; None: where a later step of the stage
    is a bypass. Where bypass steps are coarse velocities, theirs is the full graph of that grid,
    and no graph has a feature. ``text_tokens`` is what a prompt is encoded to, of which the plan
    may give the stage less.
    """
    shape = StageShape.of(facts, plan, stage, text_tokens=text_tokens, feature=feature)
    if shape.references and plan.velocity_grid is not None:
        raise _no_references("coarse velocities")
    if action == "bypass" and plan.velocity_grid is not None:
        return full_signature(facts, plan.velocity_grid.tokens, shape.text_tokens, batch=batch)
    if action == "bypass":
        return bypass_signature(
            facts,
            shape.tokens,
            shape.text_tokens,
            references=shape.references,
            site=shape.site,
            batch=batch,
        )
    return full_signature(
        facts,
        shape.tokens,
        shape.text_tokens,
        references=shape.references,
        refined=plan.aligned[stage],
        feature=shape.feature,
        site=shape.site,
        batch=batch,
    )


def _no_references(given: str) -> InvalidPlan:
    return InvalidPlan(
        f"{given} of a model with reference pictures",
        expected="a plan without: it takes the picture's own tokens alone",
        fix="leave that option out",
    )
