"""A preset with one part exchanged at a time: what each part of the method is worth.

python -m bench.ablations --out bench/results
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from bench.study import SOURCES, command
from bench.tables import ablation_table
from fresco_trt.bench.job import Study
from fresco_trt.bench.methods import Point
from fresco_trt.bench.plain import Plain
from fresco_trt.plan.making import find_preset
from fresco_trt.plan.refinement import DEFAULT_WINDOW, VARIANCE_RULES
from fresco_trt.plan.stages import LIFTS, NOISES, POSITIONS, SELECTIONS, SOLVERS

if TYPE_CHECKING:
    from fresco_trt.plan import sizes
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.presets import Preset
    from fresco_trt.plan.stages import Noise, Selection

ABLATED = "turbo"

_QUICK = ("noise fresh", "lift nearest", "selection converged", "solver multistep")

REFINED = 0.25
"""Share of the coarse tokens that the mixed ablations expand early."""


def points(facts: ModelFacts, size: sizes.Size) -> tuple[Point, ...]:
    """The plain pipeline, the preset as it is, and the preset with one thing changed at a time."""
    whole = find_preset(facts, ABLATED, max(facts.stage_counts))
    return (
        Point(method="plain", settings=Plain(steps=facts.default_steps), quick=True),
        Point(method="fresco", settings=whole, preset=ABLATED, quick=True),
        *ablated_points(facts),
    )


def ablated_points(facts: ModelFacts) -> tuple[Point, ...]:
    """The preset with one thing changed at a time."""
    whole = find_preset(facts, ABLATED, max(facts.stage_counts))
    return tuple(
        Point(
            method="fresco",
            settings=settings,
            preset=ABLATED,
            ablation=ablation,
            quick=ablation in _QUICK,
        )
        for ablation, settings in ablations(whole).items()
    )


def ablations(base: Preset) -> dict[str, Preset]:
    """``base`` with one part exchanged, by what that part now is; itself is not among them.

    Selection rules and positions exist on mixed grids only: they are compared with one another on
    ``base`` made mixed (or as it is, where it is mixed already), at one and the same count.
    """
    found: dict[str, Preset] = {}
    for noise in NOISES:
        found[f"noise {noise}"] = _with_noise(base, noise)
    if base.noise != "rewind":
        found |= {f"lift {lift}": replace(base, lift=lift) for lift in LIFTS}
        found |= {f"restart {rule}": replace(base, restart=rule) for rule in ("same", "rewind")}
    # A variance needs two steps to look back on.
    rules = [rule for rule in SELECTIONS if base.steps[0] > 1 or rule not in VARIANCE_RULES]
    found |= {f"selection {rule}": _mixed(base, rule) for rule in rules}
    found["selection all"] = replace(base, refine=(), window=DEFAULT_WINDOW, positions="fine")
    mixed = _mixed(base, rules[0])
    found |= {f"positions {scheme}": replace(mixed, positions=scheme) for scheme in POSITIONS[1:]}
    found |= {f"solver {solver}": replace(base, solver=solver) for solver in SOLVERS}
    return {name: preset for name, preset in found.items() if preset != base}


def _with_noise(base: Preset, noise: Noise) -> Preset:
    """The noise source exchanged; a rewind has a lift and a restart of its own."""
    if noise == "rewind":
        return replace(base, noise=noise, lift="haar", restart="rewind")
    return replace(base, noise=noise)


def _mixed(base: Preset, rule: Selection) -> Preset:
    """``base`` with its first switch expanding a share of the tokens, by one rule."""
    refine = base.refine or (((rule, REFINED),), *((),) * (len(base.switch) - 1))
    by_rule = tuple(tuple((rule, share) for _, share in shares) for shares in refine)
    window = min(DEFAULT_WINDOW, base.steps[0])
    return replace(base, refine=by_rule, window=window)


STUDY = Study(
    name="ablations",
    program="python -m bench.ablations",
    points="bench.ablations:points",
    table=ablation_table,
    sources=SOURCES,
)


main = command(
    "Measure a preset beside itself with one part exchanged at a time.",
    lambda weights: STUDY,
)

if __name__ == "__main__":
    typer.run(main)
