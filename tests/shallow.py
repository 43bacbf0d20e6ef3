"""The demo's transformer with one block of each kind, for what holds of every block, and a plan of
few steps, for what holds of every step.

The transformer's weights are the trained ones, so that what flows through a layer is of the size
that it has.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.lower.weights import write_source
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.layers import with_blocks
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.pretrained import whole_folder
from fresco_trt.models.weights import bundled_folder
from fresco_trt.plan.making import plan_from_preset

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

FACTS = with_blocks(FLUX_TINY, (1, 1))
NAME = "flux-tiny:num_layers=1,num_single_layers=1"
"""What a command calls that model."""


def shallow_transformer(dtype: torch.dtype | None = None, facts: ModelFacts = FLUX_TINY) -> Any:
    """The first double-stream and the last single-stream block between the demo's own ends, or
    those of a model that was distilled from it.
    """
    model: Any = load_transformer(None, facts, dtype=dtype)
    model.transformer_blocks = model.transformer_blocks[:1]
    model.single_transformer_blocks = model.single_transformer_blocks[-1:]
    model.register_to_config(num_layers=1, num_single_layers=1)
    return model


def shallow_pipeline(folder: Path, facts: ModelFacts = FLUX_TINY) -> Path:
    """A whole pipeline folder with that transformer."""
    own = whole_folder(bundled_folder(facts.name))
    shutil.copytree(own, folder, ignore=shutil.ignore_patterns("transformer"))
    write_source(shallow_transformer(facts=facts), folder / "transformer")
    return folder


def short_turbo() -> StagePlan:
    """Turbo's three stages at 64x64 in six steps instead of sixteen."""
    preset = replace(FLUX_TINY.presets["turbo"][3], steps=(2, 2, 2))
    return plan_from_preset(FLUX_TINY, preset, size=(64, 64), name="turbo")
