"""A size of each model that every operating point can be planned at."""

from __future__ import annotations

from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Size


def halving(facts: ModelFacts) -> Size:
    """The model's own size, or of clips, whose own need have no half, one near it that has."""
    return (1280, 704, 129) if facts.margins else facts.default_size
