"""`fresco-trt plan`: the stages of a plan, and what they cost beside the plain pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.cli import display, tables
from fresco_trt.cli.options import (
    BaselineSteps,
    Cache,
    Frames,
    Json,
    NamedModel,
    PlanFile,
    Preset,
    Sizes,
    Stages,
)
from fresco_trt.errors import IncompatibleOptions, PlanError
from fresco_trt.plan.config import NONE, CacheConfig, PresetConfig

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size


def plan(
    model: NamedModel = None,
    stages: Stages = None,
    size: Sizes = None,
    frames: Frames = None,
    preset: Preset = None,
    steps: BaselineSteps = None,
    cache: Cache = NONE,
    plan_file: PlanFile = None,
    as_json: Json = False,
) -> None:
    """Show the stages of a plan and what they cost beside the plain pipeline."""
    from fresco_trt.models.registry import model_facts
    from fresco_trt.plan.caching import NO_CACHE
    from fresco_trt.plan.cost import plan_summary
    from fresco_trt.plan.making import DEFAULT_STAGES, make_plan
    from fresco_trt.plan.stored import check_plan, check_undecided, model_of, read_plan

    chosen = None if plan_file is None else read_plan(plan_file)
    facts = model_facts(model_of(model, chosen))
    asked, asked_cache = PresetConfig.parse(preset or ""), CacheConfig.parse(cache)
    if chosen is None:
        chosen = make_plan(
            facts,
            stages=DEFAULT_STAGES if stages is None else stages,
            preset=asked,
            size=_framed(facts, _only_size(size), frames),
            steps=steps,
            cache=asked_cache,
        )
    else:
        check_plan(chosen, facts)
        given = {"stages": stages, "preset": preset, "size": size or None, "frames": frames}
        given["steps"] = steps
        check_undecided(
            chosen, {**given, "cache": None if asked_cache == NO_CACHE else asked_cache}
        )
    display.show(plan_summary(facts, chosen, steps), as_json, tables.plan_table)


def _only_size(sizes: list[str] | None) -> Size | None:
    from fresco_trt.plan.sizes import parse_sizes

    parsed = parse_sizes(sizes or [])
    if len(parsed) > 1:
        raise PlanError(
            f"{len(parsed)} sizes", expected="one --size for a plan", fix="plan one size at a time"
        )
    return parsed[0] if parsed else None


def _framed(facts: ModelFacts, size: Size | None, frames: int | None) -> Size | None:
    """The size with so many frames, of the model's own sides where none are given."""
    from fresco_trt.plan.sizes import format_size, frames_of, with_frames

    if frames is None:
        return size
    if size is not None and frames_of(size) != 1:
        raise IncompatibleOptions(
            f"--frames {frames} with --size {format_size(size)}",
            expected="the frames once",
            fix=f"leave --frames out, or pass --size {format_size(size[:2])}",
        )
    sides = size or facts.default_size
    return with_frames((sides[0], sides[1]), frames)
