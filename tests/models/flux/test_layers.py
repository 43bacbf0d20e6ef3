"""The layers that are counted are those that diffusers makes, and so are those that are run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fresco_trt.errors import PlanError
from fresco_trt.models.flux.config import transformer_config
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_FACTS, FLUX_SCHNELL, FLUX_TINY
from fresco_trt.models.flux.layers import (
    graph_parameters,
    linear_layers,
    with_blocks,
)
from fresco_trt.plan.depth import format_blocks, parse_blocks
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.recipes import RECIPES, kept_by


def made_by_diffusers(facts: ModelFacts) -> Any:
    """The transformer without memory for its weights."""
    import torch
    from diffusers import FluxTransformer2DModel

    kind: Any = FluxTransformer2DModel
    with torch.device("meta"):
        return kind(**transformer_config(facts))


@pytest.mark.parametrize("facts", [FLUX_TINY, with_blocks(FLUX_SCHNELL, (1, 2))])
def test_names_and_widths_are_those_of_diffusers(facts: ModelFacts) -> None:
    from torch import nn

    made = {
        name: (module.in_features, module.out_features, module.bias is not None)
        for name, module in made_by_diffusers(facts).named_modules()
        if isinstance(module, nn.Linear)
    }
    assert made == {each.name: (each.inputs, each.outputs, True) for each in linear_layers(facts)}


@pytest.mark.parametrize("facts", FLUX_FACTS, ids=lambda facts: facts.name)
def test_the_sum_is_the_published_number(facts: ModelFacts) -> None:
    assert graph_parameters(facts).whole == facts.parameters


def test_the_closed_form_of_flux() -> None:
    """36 H^2 + 30 H of a double-stream block, 15 H^2 + 11 H of a single-stream one."""
    width, head = 3072, 128
    double, single = 36 * width**2 + 30 * width + 4 * head, 15 * width**2 + 11 * width + 2 * head
    embedders = (64 + 4096 + 2 * 256 + 768 + 3 * width + 8) * width
    ends = 2 * width**2 + 2 * width + 64 * width + 64
    assert graph_parameters(FLUX_DEV).whole == 19 * double + 38 * single + embedders + ends


def run_by(facts: ModelFacts, action: Any, site: Any) -> int:
    """Parameters of the modules that a bypass of the traced graphs runs."""
    parts = ["time_text_embed", "norm_out", "proj_out"]
    if site == "trunk":
        parts += ["x_embedder", "context_embedder", "transformer_blocks.0"]
    made = made_by_diffusers(facts)
    tensors = (each for part in parts for each in made.get_submodule(part).parameters())
    return sum(math.prod(each.shape) for each in tensors)


@pytest.mark.parametrize("site", ["final", "trunk"])
def test_a_bypass_has_what_it_runs(site: Any) -> None:
    counted = graph_parameters(FLUX_TINY, "bypass", site).whole
    assert counted == run_by(FLUX_TINY, "bypass", site)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("more", [(), ("*.ff.net.2",)])
def test_codes_are_of_the_layers_that_nothing_keeps(name: str, more: tuple[str, ...]) -> None:
    recipe, kept = RECIPES[name], (*FLUX_TINY.high_precision, *more)
    left = [each for each in linear_layers(FLUX_TINY) if not kept_by(kept, each.name)]
    found = graph_parameters(FLUX_TINY, recipe=recipe, kept=kept)
    assert found.quantized == sum(each.inputs * each.outputs for each in left)
    each_has = [layer.outputs if recipe.channels else 1 for layer in left]
    assert found.scales == sum(each_has)
    assert 0 < len(left) < len(list(linear_layers(FLUX_TINY)))


# --- fewer blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (19, 38)])
def test_fewer_blocks_keep_every_width(blocks: tuple[int, int]) -> None:
    facts = with_blocks(FLUX_DEV, blocks)
    assert (facts.double_blocks, facts.single_blocks) == blocks
    assert (facts.name, facts.hidden, facts.heads) == ("flux", 3072, 24)
    assert facts.parameters == sum(each.numel() for each in made_by_diffusers(facts).parameters())
    assert parse_blocks(format_blocks(blocks)) == blocks


@pytest.mark.parametrize("blocks", [(0, 1), (1, 0), (20, 1), (1, 39), (1,), (1, 1, 1)])
def test_a_depth_that_the_model_has_not_is_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match=r"from 1,1 to 19,38"):
        with_blocks(FLUX_DEV, blocks)


@pytest.mark.parametrize("text", ["", "1,", ",1", "-1,1", "1.0,1", "a,b", "1,1" * 100])
def test_a_depth_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="--blocks 1,1"):
        parse_blocks(text)
