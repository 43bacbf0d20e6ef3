"""Presets with less of the text in their stages: what the padding that they cut was worth.

python -m bench.text --out bench/results
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from bench.study import SOURCES, command
from bench.tables import text_table
from fresco_trt.bench.job import Study
from fresco_trt.bench.methods import Point
from fresco_trt.bench.model_runner import ModelRunner
from fresco_trt.bench.plain import Plain
from fresco_trt.plan.making import find_preset

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from fresco_trt.bench.instrument import Draw, LeftOut
    from fresco_trt.plan import sizes
    from fresco_trt.plan.facts import ModelFacts

PRESETS = ("balanced", "turbo")
WHOLE = "whole text"


def points(facts: ModelFacts, size: sizes.Size) -> tuple[Point, ...]:
    """The plain pipeline, and each preset of the most stages with each text."""
    return (
        Point(method="plain", settings=Plain(steps=facts.default_steps), quick=True),
        *(point for preset in PRESETS for point in _texts(facts, preset)),
    )


def _texts(facts: ModelFacts, preset: str) -> list[Point]:
    """The preset with the whole text, with less in the stages before the last, and with the least
    in all.
    """
    stages = max(facts.stage_counts)
    settings = find_preset(facts, preset, stages)
    *shorter, whole = facts.text_choices
    texts = [(each,) * (stages - 1) + (whole,) for each in reversed(shorter)]
    texts += [(shorter[0],) * stages]
    base = Point(method="fresco", settings=settings, preset=preset, variant=WHOLE, quick=True)
    cut = (
        replace(
            base,
            settings=replace(settings, text_tokens=text),
            variant=f"{'+'.join(map(str, text))} text tokens",
            quick=text == texts[0],
        )
        for text in texts
    )
    return [base, *cut]


class TextRunner(ModelRunner):
    """Compares a preset's pictures with those of the same one and the whole text, too. Nothing is
    timed: the picture is at stake, and a step's seconds are those of its number of tokens.
    """

    timed = False

    def methods(
        self, points: Sequence[Point], scope: ExitStack
    ) -> tuple[dict[str, Draw], list[LeftOut]]:
        """As in the base."""
        found = super().methods(points, scope)
        cut = [point for point in points if point.variant not in (None, WHOLE)]
        self._twins = {point.name: replace(point, variant=WHOLE).name for point in cut}
        return found


STUDY = Study(
    name="text",
    program="python -m bench.text",
    points="bench.text:points",
    instrument=lambda setup, quick: TextRunner(setup),
    table=text_table,
    sources=SOURCES,
)


main = command("Measure presets beside themselves with less of the text.", lambda weights: STUDY)

if __name__ == "__main__":
    typer.run(main)
