"""What the engines of a Qwen-Image stage take and give: names, dtypes and static shapes.

Numbers only; importing this file imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.models.stage_graphs import StageShape, bypass_graph, full_graph, no_graph
from fresco_trt.plan.caching import CacheSite
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.signature import GraphSignature

if TYPE_CHECKING:
    from fresco_trt.plan.stages import Action, StagePlan

MASK = "text_mask"
"""The engine input [B,T] that is 1 for a prompt's own tokens and 0 for the padding behind them."""


def full_signature(
    facts: ModelFacts,
    tokens: int,
    text_tokens: int,
    *,
    references: int = 0,
    feature: bool = False,
    site: CacheSite = "final",
    batch: int = 1,
) -> GraphSignature:
    """Signature of the ``full`` graph for ``tokens`` image tokens; all float32.

    ``timestep`` is sigma, not times 1000. ``references`` tokens of reference pictures stand behind
    the image's in ``latents``; velocity and feature are of the image's alone.
    """
    inputs = _full_inputs(facts, tokens + references, text_tokens, batch)
    return full_graph(facts, tokens, inputs, batch=batch, kept=site if feature else None)


def _full_inputs(
    facts: ModelFacts, tokens: int, text_tokens: int, batch: int
) -> dict[str, tuple[int, ...]]:
    return {
        "latents": (batch, tokens, facts.in_channels),
        "text": (batch, text_tokens, facts.text_dim),
        MASK: (batch, text_tokens),
        "timestep": (batch,),
        "rope_cos": (text_tokens + tokens, facts.head_dim),
        "rope_sin": (text_tokens + tokens, facts.head_dim),
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
    inputs: dict[str, tuple[int, ...]] = {"timestep": (batch,)}
    if site == "trunk":
        inputs = _full_inputs(facts, tokens + references, text_tokens, batch)
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
    is a bypass. Raises InvalidPlan for a plan with phase-aligned attention or coarse velocities,
    which this family has no graph for.
    """
    if any(plan.aligned):
        raise no_graph("phase-aligned attention", "a Qwen-Image model")
    if plan.velocity_grid is not None:
        raise no_graph("coarse velocities", "a Qwen-Image model")
    shape = StageShape.of(facts, plan, stage, text_tokens=text_tokens, feature=feature)
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
        feature=shape.feature,
        site=shape.site,
        batch=batch,
    )
