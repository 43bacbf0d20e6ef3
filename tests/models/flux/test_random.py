"""Random prompt encoders and decoder: the real model's widths, the same bytes every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fresco_trt.files.digests import folder_digest
from fresco_trt.models.flux.components import FluxDecoder, FluxPrompt
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_TINY
from fresco_trt.models.flux.random import write_random_pipeline
from fresco_trt.plan.facts import ModelFacts

# FLUX.1-dev with shorter text: what is tested are the widths.
SHORT = replace(FLUX_DEV, text_tokens=16)


@pytest.mark.parametrize("facts", [SHORT, FLUX_TINY], ids=lambda facts: facts.name)
def test_widths_and_scale_are_the_models(tmp_path: Path, facts: ModelFacts) -> None:
    folder = write_random_pipeline(facts, tmp_path / "pipeline")
    inputs = FluxPrompt(folder, facts.text_tokens)("a cat, \u00e9")
    assert inputs["pooled"].shape == (1, facts.pooled_dim)
    assert inputs["text"].shape == (1, facts.text_tokens, facts.text_dim)
    assert all(value.isfinite().all() for value in inputs.values())
    pixels = FluxDecoder(folder)(torch.randn(1, facts.latent_channels, 4, 6))
    assert pixels.shape == (1, 4 * facts.vae_scale, 6 * facts.vae_scale, 3)


def test_bytes_are_the_same_every_time_and_the_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    folders = [write_random_pipeline(FLUX_TINY, tmp_path / name) for name in "ab"]
    assert torch.equal(torch.rand(4), expected)
    assert len({folder_digest(folder, COMPONENTS) for folder in folders}) == 1


def test_writing_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_random_pipeline(FLUX_TINY, tmp_path)
    assert capfd.readouterr() == ("", "")
