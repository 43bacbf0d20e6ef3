"""The transformer's configuration as diffusers writes it, from a model's facts.

Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.weights import read_config
from fresco_trt.plan.facts import ModelFacts

TRANSFORMER = "HunyuanVideoTransformer3DModel"

THETA = 256.0
"""Base of the frequencies of positions."""

REPOSITORIES: Mapping[str, str] = {"hunyuan-video": "hunyuanvideo-community/HunyuanVideo"}

COMPONENTS = (
    "model_index.json",
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "vae",
)
"""Entries of a diffusers HunyuanVideo folder that a bundle needs beside its engines."""

_NEWER: Mapping[str, object] = {"image_condition_type": None}
"""Settings that older files do not have, and what these mean."""


def transformer_config(facts: ModelFacts) -> dict[str, Any]:
    """diffusers' configuration of the transformer."""
    return {
        "in_channels": facts.latent_channels,
        "out_channels": facts.latent_channels,
        "num_attention_heads": facts.heads,
        "attention_head_dim": facts.head_dim,
        "num_layers": facts.double_blocks,
        "num_single_layers": facts.single_blocks,
        "num_refiner_layers": facts.text_layers,
        "mlp_ratio": float(facts.mlp_ratio),
        "patch_size": facts.patch,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "guidance_embeds": facts.guidance,
        "text_embed_dim": facts.text_dim,
        "pooled_projection_dim": facts.pooled_dim,
        "rope_theta": THETA,
        "rope_axes_dim": list(facts.rope_axes),
        **_NEWER,
    }


def check_config(folder: Path, facts: ModelFacts) -> None:
    """Raise IncompatibleOptions, which names every setting in which a stored configuration differs
    from the model's.
    """
    told = read_config(folder)
    kind, wanted = told.get("_class_name", TRANSFORMER), transformer_config(facts)
    found = {**wanted, **_NEWER, **told}
    differs = [f"class {kind}"] if kind != TRANSFORMER else []
    differs += [
        f"{key} {found[key]} (the model has {value})"
        for key, value in wanted.items()
        if found[key] != value
    ]
    if differs:
        raise IncompatibleOptions(
            f"the weights at {folder} have {', '.join(differs)}",
            expected=f"a {TRANSFORMER} with the settings of {facts.name}",
            fix="pass the weights that belong to --model, or the --model they belong to",
        )
