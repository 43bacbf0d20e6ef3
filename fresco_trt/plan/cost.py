"""What a plan costs before anything is built: FLOPs, weights, activations, and the saving.

Counts the matrix products of the transformer, as the papers' FLOPs columns do; text encoders and
VAE, the same for every plan, are left out. A FLOPs ratio bounds the speed-up, it does not promise
it: how much arrives is measured, never predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from fresco_trt.errors import InvalidPlan, UnsupportedSize
from fresco_trt.plan.caching import CacheSite
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.making import check_steps, make_plan
from fresco_trt.plan.sparse import tokens_unseen
from fresco_trt.plan.stages import StagePlan

WEIGHT_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
"""Bytes of one weight in each precision."""

_ACTIVATION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2, "int8": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCost:
    """``flops`` of one picture under the plan (of an edit: of the most that is not the whole
    picture) and ``baseline_flops`` of the plain full-resolution sampler; ``ratio`` of the latter to
    the former. ``weight_bytes`` and ``activation_bytes`` per
    precision: the transformer's weights, and an estimate of the largest stage's live tensors.
    """

    flops: float
    baseline_flops: float
    ratio: float
    weight_bytes: Mapping[str, int]
    activation_bytes: Mapping[str, int]


def flops_of_step(
    facts: ModelFacts,
    tokens: int,
    *,
    references: int = 0,
    refined: int = 0,
    text_tokens: int | None = None,
    sparse: float | None = None,
) -> float:
    """FLOPs of one full forward with ``tokens`` image tokens, batch 1; ``text_tokens`` None: the
    model's own. ``references`` are the tokens of reference pictures.

    With S the sum of all three and hidden width H, per block: ``(4 + 2*mlp_ratio) * H^2 * 2 * S``
    for the projections and ``4 * H * S^2`` for attention. FLUX.1-dev at 1024x1024 gives 74.36e12;
    published counts say 74.39e12. What the text passes alone is counted with it. With ``refined``,
    of a phase-aligned graph: its coarse tokens see one of each four children. ``sparse`` is the
    share of the clip's blocks that its tokens attend to; to choose them costs next to nothing.
    """
    length = tokens + references + (facts.text_tokens if text_tokens is None else text_tokens)
    projections = (4 + 2 * facts.mlp_ratio) * facts.hidden**2 * 2 * length
    unseen = (tokens - 4 * refined) * 3 * refined + tokens * tokens_unseen(tokens, sparse)
    attention = 4 * facts.hidden * (length**2 - unseen)
    return float(facts.blocks * (projections + attention)) + _flops_of_text(facts, text_tokens)


def _flops_of_text(facts: ModelFacts, text_tokens: int | None) -> float:
    """FLOPs of the blocks that the text passes alone, each as a block of its tokens."""
    length = facts.text_tokens if text_tokens is None else text_tokens
    block = 12 * facts.hidden**2 * 2 * length + 4 * facts.hidden * length**2
    return float(facts.text_layers * block)


def flops_of_bypass(
    facts: ModelFacts,
    tokens: int,
    site: CacheSite = "final",
    *,
    references: int = 0,
    text_tokens: int | None = None,
    sparse: float | None = None,
) -> float:
    """FLOPs of a step that starts from the cached feature: final modulation and projection, and at
    the trunk one block before them, the only one that sees the text and the references.
    """
    modulation = 2 * facts.hidden * 2 * facts.hidden
    projection = 2 * tokens * facts.hidden * facts.in_channels
    whole = flops_of_step(
        facts, tokens, references=references, text_tokens=text_tokens, sparse=sparse
    )
    text = _flops_of_text(facts, text_tokens)
    block = (whole - text) / facts.blocks + text
    return float(modulation + projection) + (block if site == "trunk" else 0.0)


def activation_bytes(
    facts: ModelFacts,
    tokens: int,
    precision: str,
    *,
    references: int = 0,
    text_tokens: int | None = None,
) -> int:
    """Estimate of a block's live tensors at its widest, batch 1, with fused attention.

    Per token: the residual stream, queries, keys and values, the MLP's hidden layer, and the
    concatenation of attention and MLP that a single-stream block projects. Raises KeyError for an
    unknown precision.
    """
    width = (1 + 3 + facts.mlp_ratio + 1 + facts.mlp_ratio) * facts.hidden
    length = tokens + references + (facts.text_tokens if text_tokens is None else text_tokens)
    return length * width * _ACTIVATION_BYTES[precision]


def plan_cost(facts: ModelFacts, plan: StagePlan, baseline_steps: int | None = None) -> PlanCost:
    """Cost of ``plan`` beside ``baseline_steps`` (default: the model's) plain full-size steps.

    Raises InvalidPlan when the plan is for another model, PlanError for a wrong step count.
    """
    if plan.model != facts.name:
        raise InvalidPlan(
            f"a plan for {plan.model}",
            expected=f"one for {facts.name}",
            fix="pass that model's facts",
        )
    steps = check_steps(facts.default_steps if baseline_steps is None else baseline_steps)
    flops = path_flops(facts, plan)[-1 if plan.edit is None else -2]
    full = plan.stages[-1].grid.tokens
    behind = facts.references * full
    baseline = steps * facts.passes * flops_of_step(facts, full, references=behind)
    return PlanCost(
        flops=flops,
        baseline_flops=baseline,
        ratio=baseline / flops,
        weight_bytes={name: facts.parameters * size for name, size in WEIGHT_BYTES.items()},
        activation_bytes={
            name: max(
                activation_bytes(facts, tokens, name, references=behind, text_tokens=text)
                for tokens, behind, text in _lengths(facts, plan)
            )
            for name in _ACTIVATION_BYTES
        },
    )


def path_flops(facts: ModelFacts, plan: StagePlan) -> tuple[float, ...]:
    """FLOPs of each path of ``plan``: one, or of an edit those of its alternatives, which differ in
    how much of the picture the edit may touch. The last of those draws every token.
    """
    flops = stage_flops(facts, plan)
    return tuple(sum(flops[index] for index in path) for path in plan.paths)


def stage_flops(facts: ModelFacts, plan: StagePlan) -> tuple[float, ...]:
    """FLOPs of each stage of ``plan``, all passes of a step counted. A full step before a coarse
    one runs the coarse grid too.
    """
    costs: list[float] = []
    site = "final" if plan.cache is None else plan.cache.site
    small = plan.velocity_grid
    rows = zip(plan.stages, _lengths(facts, plan), plan.aligned, strict=True)
    for stage, (tokens, behind, text), refined in rows:
        coarse = 0.0 if small is None else flops_of_step(facts, small.tokens, text_tokens=text)
        price = {
            "full": flops_of_step(
                facts,
                tokens,
                references=behind,
                refined=refined,
                text_tokens=text,
                sparse=plan.sparse_attention,
            ),
            "bypass": coarse
            or flops_of_bypass(
                facts,
                tokens,
                site,
                references=behind,
                text_tokens=text,
                sparse=plan.sparse_attention,
            ),
        }
        twice = sum(pair == ("full", "bypass") for pair in pairwise(stage.actions))
        once = sum(price[action] for action in stage.actions) + coarse * twice
        costs.append(facts.passes * once)
    return tuple(costs)


def _lengths(facts: ModelFacts, plan: StagePlan) -> list[tuple[int, int, int]]:
    """Image tokens, those of references, and text tokens of each stage."""
    behind = [facts.references * tokens for tokens in plan.reference_tokens]
    return list(zip(plan.tokens, behind, plan.text_tokens(facts.text_tokens), strict=True))


def cache_bytes(facts: ModelFacts, plan: StagePlan) -> int:
    """Most bytes that a request's cached features take: of one stage, being dropped with it; those
    of coarse_velocity are a velocity of each of its two grids.

    Float32, batch 1, of every pass of a step; 0 without a cache.
    """
    if plan.cache is None:
        return 0
    if plan.velocity_grid is not None:
        kept = (plan.stages[-1].grid.tokens + plan.velocity_grid.tokens) * facts.in_channels
    else:
        kept = plan.cache.kept_features * max(plan.tokens) * facts.hidden
    return facts.passes * kept * 4


def longest(facts: ModelFacts, plan: StagePlan) -> int:
    """Most tokens that attention of a stage is over, those of the text and of references too."""
    return max(map(sum, _lengths(facts, plan)))


def score_bytes(facts: ModelFacts, plan: StagePlan) -> int:
    """Bytes of one matrix of attention's scores of all heads, in half precision, of the stage that
    has most tokens: what an engine holds at once whose library does not fuse attention.
    """
    return 2 * facts.heads * longest(facts, plan) ** 2


def preset_ratios(facts: ModelFacts, plan: StagePlan, steps: int) -> dict[str, float]:
    """How many times fewer FLOPs than ``steps`` plain ones the model's presets take, of those that
    have as many stages as ``plan``, at its size: by name. A preset that the size does not suit is
    left out.
    """
    ratios = {}
    for name, schedules in facts.presets.items():
        if len(plan.stages) in schedules:
            with suppress(UnsupportedSize):
                other = make_plan(facts, stages=len(plan.stages), preset=name, size=plan.size)
                ratios[name] = plan_cost(facts, other, steps).ratio
    return ratios


def is_tuned(facts: ModelFacts) -> bool:
    """Whether a model's presets were chosen by what its own weights draw with them."""
    return facts.tuned and facts.presets_of is None


def tune_command(facts: ModelFacts, plan: StagePlan, ratio: float) -> str | None:
    """The command that finds a plan about ``ratio`` times faster than the plain one for the model's
    weights; None where the plan's preset is tuned or it has none, and for a model that is not tuned
    yet.
    """
    if plan.preset is None or is_tuned(facts) or not facts.calibrated:
        return None
    # Prompts do not come with a model: the command without them would be refused.
    return f"fresco-trt tune --model {facts.name} --speed {max(1.1, ratio):.2g} --prompts FILE"


SUMMARY_KEYS = (
    "flops_ratio",
    "tflops",
    "stage_tflops",
    "baseline",
    "weight_bytes",
    "activation_bytes",
    "full_steps",
    "cache_bytes",
    "presets_of",
    "path_flops_ratios",
    "preset_flops_ratios",
    "score_bytes",
    "preset_tuned",
    "tune_command",
)
"""What a plan's summary has beside the plan: it follows from the plan and the model."""


def plan_summary(
    facts: ModelFacts, plan: StagePlan, baseline_steps: int | None = None
) -> dict[str, object]:
    """The plan's JSON with its cost: what ``fresco-trt plan --json`` prints.

    The keys of :meth:`StagePlan.to_json`, and :data:`SUMMARY_KEYS`; ``baseline`` is {steps,
    tflops}, ``presets_of`` the model whose presets a variant borrows, ``path_flops_ratios`` the
    ratio of each path that a request may take: several where what an edit touches decides;
    ``preset_flops_ratios`` as :func:`preset_ratios`, ``score_bytes`` as :func:`score_bytes`;
    ``preset_tuned`` whether the plan's preset is :func:`is_tuned`, None without one, and
    ``tune_command`` as :func:`tune_command`. Same errors as :func:`plan_cost`.
    """
    cost = plan_cost(facts, plan, baseline_steps)
    steps = facts.default_steps if baseline_steps is None else baseline_steps
    return {
        **plan.to_json(),
        "flops_ratio": cost.ratio,
        "tflops": cost.flops / 1e12,
        "stage_tflops": [flops / 1e12 for flops in stage_flops(facts, plan)],
        "baseline": {"steps": steps, "tflops": cost.baseline_flops / 1e12},
        "weight_bytes": dict(cost.weight_bytes),
        "activation_bytes": dict(cost.activation_bytes),
        "full_steps": plan.full_steps,
        "cache_bytes": cache_bytes(facts, plan),
        "presets_of": facts.presets_of,
        "path_flops_ratios": [cost.baseline_flops / each for each in path_flops(facts, plan)],
        "preset_flops_ratios": preset_ratios(facts, plan, steps),
        "score_bytes": score_bytes(facts, plan),
        "preset_tuned": None if plan.preset is None else is_tuned(facts),
        "tune_command": tune_command(facts, plan, cost.ratio),
    }
