"""Qwen-Image's three models with two narrow blocks, and inputs of their graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco_trt.models.qwen.facts import QWEN_IMAGE, QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_2511
from fresco_trt.models.qwen.tokens import QwenPatchifier
from fresco_trt.run.positions import whole_tables

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.signature import GraphSignature


def narrow(facts: ModelFacts) -> ModelFacts:
    return replace(
        facts,
        hidden=64,
        heads=2,
        head_dim=32,
        double_blocks=2,
        text_dim=24,
        text_tokens=7,
        rope_axes=(8, 12, 12),
    )


IMAGE, EDIT, EDIT_2511 = map(narrow, (QWEN_IMAGE, QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_2511))
SMALL = (IMAGE, EDIT, EDIT_2511)


def inputs_of(
    facts: ModelFacts, signature: GraphSignature, grid: Grid, own: int = 5
) -> dict[str, Tensor]:
    """Seeded inputs of a graph on a whole grid; ``own`` of the text's tokens are a prompt's."""
    generator = torch.Generator().manual_seed(1)
    inputs = {spec.name: torch.randn(spec.shape, generator=generator) for spec in signature.inputs}
    inputs["timestep"] = torch.full_like(inputs["timestep"], 0.37)
    if "text_mask" in inputs:
        inputs["text_mask"] = (torch.arange(facts.text_tokens) < own).float()[None]
        patchifier = QwenPatchifier(facts, facts.text_tokens)
        inputs |= whole_tables(patchifier, grid, facts.references)
    return inputs
