"""The transformer's configuration as diffusers writes it, from a model's facts, and its check.

Under ``flux.py``, which loads weights by it. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.weights import read_config
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


def check_config(folder: Path, facts: ModelFacts) -> None:
    """Name every dimension in which a stored configuration differs from the model's facts."""
    stored = read_config(folder)
    wanted = transformer_config(facts)
    differs = [
        f"{key} {stored[key]} (the model has {value})"
        for key, value in wanted.items()
        if key in stored and key != "out_channels" and stored[key] != value
    ]
    kind = stored.get("_class_name", TRANSFORMER)
    if kind != TRANSFORMER:
        differs.insert(0, f"class {kind}")
    if differs:
        raise IncompatibleOptions(
            f"the weights at {folder} have {', '.join(differs)}",
            expected=f"a {TRANSFORMER} with the dimensions of {facts.name}",
            fix="pass the weights that belong to --model, or the --model they belong to",
        )
