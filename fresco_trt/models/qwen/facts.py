"""Facts of the Qwen-Image family: Qwen-Image, -Edit, and -Edit-2511.

Dimensions are those of the published transformer configs, schedules those of the published
schedulers. Presets are those of the FLUX model that does the same, as ``presets_of`` says: nobody
has searched for others, and none was tried with these models' weights. The spectrum of these
latents was not measured.
"""

from __future__ import annotations

from dataclasses import replace

from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_KONTEXT
from fresco_trt.plan.editing import SELECTIVE_PRESET, EditPlan
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.schedule import ShiftRule

_GENERAL = ("quality", "balanced", "fast", "turbo")
"""Presets whose steps suit any model; others are points of one model's budget, or go by its VAE."""

# What quantisers leave alone in this architecture: all but the blocks' attention and MLPs.
_HIGH_PRECISION = (
    "img_in",
    "txt_in",
    "time_text_embed.*",
    "*_mod.1",
    "norm_out.linear",
    "proj_out",
)

QWEN_IMAGE = ModelFacts(
    name="qwen-image",
    family="qwen",
    hidden=3072,
    heads=24,
    head_dim=128,
    double_blocks=60,
    single_blocks=0,
    mlp_ratio=4,
    in_channels=64,
    text_dim=3584,
    pooled_dim=0,
    text_tokens=512,
    rope_axes=(16, 56, 56),
    guidance=False,
    guidance_default=None,
    default_steps=50,
    vae_scale=8,
    latent_channels=16,
    patch=2,
    default_size=(1024, 1024),
    max_pixels=2048 * 2048,
    parameters=20_430_401_088,
    high_precision=_HIGH_PRECISION,
    shift=ShiftRule(base_shift=0.5, max_shift=0.9, base_tokens=256, max_tokens=8192, terminal=0.02),
    spectrum=None,
    presets={name: FLUX_DEV.presets[name] for name in _GENERAL},
    presets_of=FLUX_DEV.name,
    true_cfg_default=4.0,
    text_masked=True,
    calibrated=False,
)

# Steps, restart and shares are FLUX.1-Kontext's, not measured on these weights either. What is
# compared, from where on it differs and how far around it is edited are SpotEdit's for this VAE
# (arXiv 2512.22323, code).
_SELECTIVE = {
    stages: replace(preset, edit=EditPlan(discrepancy="features", threshold=0.15, dilation=1))
    for stages, preset in FLUX_KONTEXT.presets[SELECTIVE_PRESET].items()
}

# The text has the tokens of the picture that the prompt encoder sees: a megapixel in squares of 28
# pixels are up to 1,400, and the others are for the prompt.
QWEN_IMAGE_EDIT = replace(
    QWEN_IMAGE,
    name="qwen-image-edit",
    references=1,
    text_tokens=1664,
    presets={name: FLUX_KONTEXT.presets[name] for name in _GENERAL}
    | {SELECTIVE_PRESET: _SELECTIVE},
    presets_of=FLUX_KONTEXT.name,
)

# Its encoder sees a picture of 384x384 pixels, 196 tokens or a few more.
QWEN_IMAGE_EDIT_2511 = replace(
    QWEN_IMAGE_EDIT, name="qwen-image-edit-2511", text_tokens=768, references_at_zero=True
)

QWEN_FACTS = (QWEN_IMAGE, QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_2511)
