"""What the engines of a HunyuanVideo stage take and give: names, dtypes and static shapes.

Numbers only; importing this file imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fresco_trt.models.stage_graphs import StageShape, bypass_graph, full_graph, no_graph
from fresco_trt.plan.caching import CacheSite
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.signature import TEXT_BIAS, GraphSignature
from fresco_trt.plan.sparse import blocks_kept

if TYPE_CHECKING:
    from fresco_trt.plan.stages import Action, StagePlan

BIAS = TEXT_BIAS


def full_signature(
    facts: ModelFacts,
    tokens: int,
    text_tokens: int,
    *,
    feature: bool = False,
    site: CacheSite = "final",
    batch: int = 1,
) -> GraphSignature:
    """Signature of the ``full`` graph for ``tokens`` tokens of a clip; all float32.

    ``timestep`` is sigma and ``guidance`` the plain scale (neither times 1000); ``guidance`` is an
    input only of guidance-distilled models.
    """
    inputs = _full_inputs(facts, tokens, text_tokens, batch)
    return full_graph(facts, tokens, inputs, batch=batch, kept=site if feature else None)


def _full_inputs(
    facts: ModelFacts, tokens: int, text_tokens: int, batch: int
) -> dict[str, tuple[int, ...]]:
    return {
        "latents": (batch, tokens, facts.in_channels),
        "text": (batch, text_tokens, facts.text_dim),
        BIAS: (batch, text_tokens),
        **_condition_inputs(facts, batch),
        "rope_cos": (text_tokens + tokens, facts.head_dim),
        "rope_sin": (text_tokens + tokens, facts.head_dim),
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
    site: CacheSite = "final",
    batch: int = 1,
) -> GraphSignature:
    """Signature of the ``bypass`` graph for ``tokens`` tokens of a clip; all float32.

    ``feature`` stands for these tokens after the last block, ``residual`` at the trunk for what all
    blocks after the first add to them; the rest as in :func:`full_signature`.
    """
    inputs = _condition_inputs(facts, batch)
    if site == "trunk":
        inputs = _full_inputs(facts, tokens, text_tokens, batch)
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
    is a bypass. Raises InvalidPlan for a plan with phase-aligned attention, coarse velocities or
    selective edits, which this family has no graph for.
    """
    for given, there in (
        ("selective edits", plan.edit is not None),
        ("phase-aligned attention", any(plan.aligned)),
        ("coarse velocities", plan.velocity_grid is not None),
    ):
        if there:
            raise no_graph(given, "a HunyuanVideo model")
    shape = StageShape.of(facts, plan, stage, text_tokens=text_tokens, feature=feature)
    if action == "bypass":
        found = bypass_signature(
            facts, shape.tokens, shape.text_tokens, site=shape.site, batch=batch
        )
    else:
        found = full_signature(
            facts,
            shape.tokens,
            shape.text_tokens,
            feature=shape.feature,
            site=shape.site,
            batch=batch,
        )
    attends = any(each.name == BIAS for each in found.inputs)
    return sparse_signature(found, plan.sparse_attention) if attends else found


def sparse_signature(dense: GraphSignature, share: float | None) -> GraphSignature:
    """That of the same graph with attention over a ``share`` of the clip's blocks; None: ``dense``
    itself.
    """
    if share is None:
        return dense
    return replace(dense, key_blocks=blocks_kept(dense.input("latents").shape[1], share))
