"""The facts of the FLUX family are those of the models that diffusers builds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fresco_trt.models.flux.facts import (
    FLUX_DEV,
    FLUX_FACTS,
    FLUX_KONTEXT,
    FLUX_SCHNELL,
    FLUX_TINY,
    FLUX_TINY_TURBO,
)
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.sizes import check_size


@pytest.mark.parametrize("facts", FLUX_FACTS, ids=lambda facts: facts.name)
def test_parameters_are_those_of_the_transformer(facts: ModelFacts) -> None:
    import torch
    from diffusers import FluxTransformer2DModel

    kind: Any = FluxTransformer2DModel
    with torch.device("meta"):
        model = kind(
            patch_size=1,
            in_channels=facts.in_channels,
            num_layers=facts.double_blocks,
            num_single_layers=facts.single_blocks,
            attention_head_dim=facts.head_dim,
            num_attention_heads=facts.heads,
            joint_attention_dim=facts.text_dim,
            pooled_projection_dim=facts.pooled_dim,
            guidance_embeds=facts.guidance,
            axes_dims_rope=facts.rope_axes,
        )
    assert sum(each.numel() for each in model.parameters()) == facts.parameters
    assert model.inner_dim == facts.hidden


@pytest.mark.parametrize("facts", FLUX_FACTS, ids=lambda facts: facts.name)
def test_the_default_size_fits_every_stage_count(facts: ModelFacts) -> None:
    for stages in facts.stage_counts:
        check_size(facts, facts.default_size, stages)


@pytest.mark.parametrize("facts", [FLUX_SCHNELL, FLUX_KONTEXT], ids=lambda facts: facts.name)
def test_variants_share_the_dimensions_of_dev(facts: ModelFacts) -> None:
    shared = ("hidden", "heads", "double_blocks", "single_blocks", "in_channels", "rope_axes")
    for name in (*shared, "text_dim", "pooled_dim", "vae_scale", "latent_channels", "patch"):
        assert getattr(facts, name) == getattr(FLUX_DEV, name)


def test_schnell_is_unguided_and_unshifted() -> None:
    assert (FLUX_SCHNELL.guidance, FLUX_SCHNELL.guidance_default) == (False, None)
    assert FLUX_SCHNELL.shift_factor(4096) == 1.0
    assert FLUX_SCHNELL.default_steps == 4


def test_the_student_is_its_teacher_but_for_steps_and_presets() -> None:
    own = {"name": "flux-tiny-turbo", "default_steps": 4, "presets": FLUX_TINY_TURBO.presets}
    own |= {"tuned": False}
    assert replace(FLUX_TINY, **own) == FLUX_TINY_TURBO
    steps = {name: schedules[1].steps for name, schedules in FLUX_TINY_TURBO.presets.items()}
    assert steps == {"quality": (4,), "balanced": (3,), "fast": (2,), "turbo": (1,)}
