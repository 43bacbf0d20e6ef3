"""A trained demo model as the folder that diffusers' FluxPipeline loads, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fresco_trt.models.weights import WEIGHTS_NAME
from fresco_trt.models.zoo import model_facts

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from fresco_trt.demo.model import DemoModel


def store_pipeline(model: DemoModel, vae: AutoencoderKL, out: Path) -> None:
    """Write the pipeline folder; the transformer and codec in float16, the encoders in float32.

    Text encoders stay float32: loaders keep their stored type, and mixed types fail in FLUX.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    rule = model_facts("flux-tiny").shift
    if rule is None:
        raise ValueError("flux-tiny is trained with a resolution-dependent shift")
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=rule.base_shift,
        max_shift=rule.max_shift,
        base_image_seq_len=rule.base_tokens,
        max_image_seq_len=rule.max_tokens,
    )
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=vae.to(torch.float16),
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=model.tokenizer,
        tokenizer_2=model.tokenizer_2,
        transformer=model.transformer.to(torch.float16),
    )
    pipeline.save_pretrained(out)
    for config in out.glob("*/config.json"):
        _drop_origin(config)
    for file in out.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def read_pipeline(folder: Path) -> DemoModel:
    """The demo model of a folder that :func:`store_pipeline` wrote, in float32, to train it on."""
    from safetensors.torch import load_file

    from fresco_trt.demo.model import DemoModel

    model = DemoModel(guidance=True)
    parts = {
        "transformer": WEIGHTS_NAME,
        "text_encoder": "model.safetensors",
        "text_encoder_2": "model.safetensors",
    }
    for part, file in parts.items():
        stored = {name: value.float() for name, value in load_file(folder / part / file).items()}
        missing = getattr(model, part).load_state_dict(stored, strict=False).missing_keys
        if set(missing) - _TIED:
            raise ValueError(f"{folder / part} lacks {', '.join(missing)}")
    return model


_TIED = {"encoder.embed_tokens.weight"}
"""Weights that are another name for a stored one."""


def _drop_origin(config: Path) -> None:
    """Take out where a part was loaded from: a shipped folder names no other machine's paths."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    kept = {name: value for name, value in fields.items() if name != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
