"""The demo's transformer with one block of each kind, for what holds of every block, and a plan of
few steps, for what holds of every step.

The transformer's weights are the trained ones, so that what flows through a layer is of the size
that it has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.layers import with_blocks
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.plan.making import plan_from_preset

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan

FACTS = with_blocks(FLUX_TINY, (1, 1))


def shallow_transformer(dtype: torch.dtype | None = None) -> Any:
    """The first double-stream and the last single-stream block between the demo's own ends."""
    model: Any = load_transformer(None, FLUX_TINY, dtype=dtype)
    model.transformer_blocks = model.transformer_blocks[:1]
    model.single_transformer_blocks = model.single_transformer_blocks[-1:]
    model.register_to_config(num_layers=1, num_single_layers=1)
    return model


def short_turbo() -> StagePlan:
    """Turbo's three stages at 64x64 in six steps instead of sixteen."""
    preset = replace(FLUX_TINY.presets["turbo"][3], steps=(2, 2, 2))
    return plan_from_preset(FLUX_TINY, preset, size=(64, 64), name="turbo")
