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

TRANSFORMER = "QwenImageTransformer2DModel"

REPOSITORIES: Mapping[str, str] = {
    "qwen-image": "Qwen/Qwen-Image",
    "qwen-image-edit": "Qwen/Qwen-Image-Edit",
    "qwen-image-edit-2511": "Qwen/Qwen-Image-Edit-2511",
}

COMPONENTS = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "vae")
"""Entries of a diffusers Qwen-Image folder that a bundle needs beside its engines."""

_NEWER: Mapping[str, object] = {
    "zero_cond_t": False,
    "use_additional_t_cond": False,
    "use_layer3d_rope": False,
}
"""Settings that older files do not have, and what these mean."""


def transformer_config(facts: ModelFacts) -> dict[str, Any]:
    """diffusers' configuration of the transformer."""
    return {
        "patch_size": facts.patch,
        "in_channels": facts.in_channels,
        "out_channels": facts.latent_channels,
        "num_layers": facts.double_blocks,
        "attention_head_dim": facts.head_dim,
        "num_attention_heads": facts.heads,
        "joint_attention_dim": facts.text_dim,
        "guidance_embeds": False,
        "axes_dims_rope": list(facts.rope_axes),
        **_NEWER,
        "zero_cond_t": facts.references_at_zero,
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
