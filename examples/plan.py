"""What FLUX.1-dev costs with stages and caches, by the plan alone: no torch, no weights.

python examples/plan.py
"""

from __future__ import annotations

import fresco_trt
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import plan_summary

MODEL = "flux"


def main() -> None:
    """One line a plan: how many steps, how many of them in full, how many fewer FLOPs."""
    facts = model_facts(MODEL)
    for stages, preset, cache in (
        (1, "balanced", "none"),
        (2, "balanced", "none"),
        (3, "balanced", "none"),
        (3, "turbo", "none"),
        (1, "quality", "hicache,interval=3,warmup_steps=2"),
        (3, "quality", "taylor,interval=2,warmup_steps=2,max_order=1"),
    ):
        plan = fresco_trt.plan(MODEL, stages=stages, preset=preset, cache=cache)
        steps = [action for stage in plan.stages for action in stage.actions]
        ratio = plan_summary(facts, plan)["flops_ratio"]
        print(
            f"stages={stages} preset={preset} cache={cache}: {len(steps)} steps, "
            f"{steps.count('full')} in full, {ratio:.1f}x fewer FLOPs"
        )


if __name__ == "__main__":
    main()
