"""The bench on models of one block of each kind, whose steps take a third of the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fresco_trt.bench import job, model_runner
from fresco_trt.models.flux.layers import with_blocks
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.facts import ModelFacts
from tests.shallow import shallow_pipeline

STEPS = 8
"""What plain sampling of the demo takes instead of 50."""


@contextmanager
def shallow_models(folder: Path) -> Iterator[None]:
    """Within the scope the bench takes the demo and its students for such models, which lie in
    ``folder``: of their own weights.
    """

    def facts_of(name: str) -> ModelFacts:
        facts = model_facts(name)
        return replace(with_blocks(facts, (1, 1)), default_steps=min(STEPS, facts.default_steps))

    def bundled(name: str) -> Path:
        path = folder / name
        return path if path.exists() else shallow_pipeline(path, model_facts(name))

    with pytest.MonkeyPatch.context() as patch:
        for module in (job, model_runner):
            patch.setattr(module, "model_facts", facts_of)
            patch.setattr(module, "bundled_folder", bundled)
        yield
