"""HunyuanVideo with two narrow blocks, and inputs of its graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fresco_trt.models.hunyuan.facts import HUNYUAN_VIDEO
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.parts import load_codec, load_encoder
from fresco_trt.models.hunyuan.signatures import BIAS
from fresco_trt.models.hunyuan.tokens import HunyuanPatchifier
from fresco_trt.models.masked import HIDDEN
from fresco_trt.models.parts import load_tokenizer
from fresco_trt.plan.grid import Grid
from fresco_trt.run.positions import whole_tables

if TYPE_CHECKING:
    from pathlib import Path

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature

SMALL = replace(
    HUNYUAN_VIDEO,
    name="small-video",
    hidden=64,
    heads=2,
    head_dim=32,
    double_blocks=1,
    single_blocks=1,
    text_dim=24,
    pooled_dim=16,
    text_tokens=7,
    text_layers=1,
    rope_axes=(8, 12, 12),
    default_size=(64, 64, 9),
)
CLIP = Grid(height=6, width=10, scale=1.0, frames=3)


def inputs_of(
    signature: GraphSignature, grid: Grid, own: int = 5, facts: ModelFacts = SMALL
) -> dict[str, Tensor]:
    """Seeded inputs of a graph on a whole grid; ``own`` of the text's tokens are a prompt's."""
    generator = torch.Generator().manual_seed(1)
    inputs = {spec.name: torch.randn(spec.shape, generator=generator) for spec in signature.inputs}
    inputs["timestep"] = torch.full_like(inputs["timestep"], 0.37)
    if "guidance" in inputs:
        inputs["guidance"] = torch.full_like(inputs["guidance"], 6.0)
    if BIAS in inputs:
        inputs[BIAS] = (torch.arange(facts.text_tokens) >= own).float()[None] * -HIDDEN
        inputs |= whole_tables(HunyuanPatchifier(facts, facts.text_tokens), grid, 0)
    return inputs


def diffusers_pipe(facts: ModelFacts, folder: Path) -> Any:
    """diffusers' pipeline of the parts in ``folder``, with a seeded transformer."""
    import diffusers

    untyped: Any = diffusers
    pipe = untyped.HunyuanVideoPipeline(
        scheduler=untyped.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=load_codec(folder / "vae"),
        text_encoder=load_encoder(folder / "text_encoder"),
        text_encoder_2=load_encoder(folder / "text_encoder_2"),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        tokenizer_2=load_tokenizer(folder / "tokenizer_2"),
        transformer=load_transformer("random", facts),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
