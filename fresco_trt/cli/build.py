"""`fresco-trt build`: every stage of a plan as a static-shape engine, in one bundle."""

from __future__ import annotations

from fresco_trt.cli import display, tables
from fresco_trt.cli.options import (
    Backend,
    BlockCounts,
    BundleFolder,
    Cache,
    DryRun,
    GraphsFolder,
    Json,
    NamedModel,
    PlainSteps,
    PlanFile,
    Precision,
    Preset,
    Sizes,
    Stages,
    Target,
    Weights,
)
from fresco_trt.plan.config import NONE


def build(
    model: NamedModel = None,
    stages: Stages = None,
    size: Sizes = None,
    preset: Preset = None,
    steps: PlainSteps = None,
    plan_file: PlanFile = None,
    weights: Weights = None,
    blocks: BlockCounts = None,
    backend: Backend = None,
    precision: Precision = None,
    cache: Cache = NONE,
    target: Target = "",
    out: BundleFolder = None,
    graphs: GraphsFolder = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compile every stage of a plan to a static-shape engine and write the bundle."""
    from fresco_trt.lower import build as lower
    from fresco_trt.plan.depth import parse_blocks
    from fresco_trt.plan.stored import read_plan

    request = lower.BuildRequest(
        model=model,
        plan=None if plan_file is None else read_plan(plan_file),
        stages=stages,
        preset=preset,
        steps=steps,
        cache=cache,
        weights=weights,
        blocks=None if blocks is None else parse_blocks(blocks),
        backend=backend,
        precision=precision,
        target=target,
        out=out,
        graphs=graphs,
    )
    requests = lower.requests_of(request, size or [])
    defaults = lower.resolve(requests[0]).defaults
    if defaults is not None:
        display.note(f"builds with {defaults}; --backend and --precision choose otherwise")
    if dry_run:
        drafts = {"builds": [lower.describe(each) for each in requests]}
        display.show(drafts, as_json, tables.dry_run_table)
        return
    with display.progress() as report:
        summary = lower.run_all(requests, progress=report)
    display.show(summary, as_json, tables.built_table)
