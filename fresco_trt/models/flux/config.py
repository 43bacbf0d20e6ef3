"""The transformer's configuration as diffusers writes it, from a model's facts.

Under ``flux.py``, which loads weights by it. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fresco_trt.plan.facts import ModelFacts

TRANSFORMER = "FluxTransformer2DModel"

REPOSITORIES: Mapping[str, str] = {
    "flux": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "flux-kontext": "black-forest-labs/FLUX.1-Kontext-dev",
}

COMPONENTS = (
    "model_index.json",
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "vae",
)
"""Entries of a diffusers FLUX folder that a bundle needs beside its engines."""


def transformer_config(
    facts: ModelFacts, *, layers: tuple[int, int] | None = None
) -> dict[str, Any]:
    """diffusers' configuration of the transformer; ``layers`` replaces (double, single) depths."""
    double, single = layers or (facts.double_blocks, facts.single_blocks)
    return {
        "patch_size": 1,
        "in_channels": facts.in_channels,
        "out_channels": None,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": facts.head_dim,
        "num_attention_heads": facts.heads,
        "joint_attention_dim": facts.text_dim,
        "pooled_projection_dim": facts.pooled_dim,
        "guidance_embeds": facts.guidance,
        "axes_dims_rope": list(facts.rope_axes),
    }
