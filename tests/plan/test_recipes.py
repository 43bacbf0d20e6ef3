"""Recipes: found by precision, refused by name, and a model's own layers kept out of them."""

from __future__ import annotations

import pytest

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.facts import FLUX_FACTS
from fresco_trt.plan.recipes import RECIPES, find_recipe, kept_by


def test_a_precision_has_a_recipe_or_none() -> None:
    assert [find_recipe(name) for name in ("fp32", "bf16", "fp16")] == [None] * 3
    for precision, name in (("int8", "int8-smooth"), ("fp8", "fp8")):
        recipe = find_recipe(precision)
        assert recipe is not None
        assert (recipe.name, recipe.precision) == (name, precision)


@pytest.mark.parametrize(
    ("precision", "name", "words"),
    [
        ("fp8", "int8-smooth", "one of fp8"),
        ("int8", "int4", "int8-smooth, int8"),
        ("fp32", "int8", "no recipe"),
    ],
)
def test_a_recipe_of_another_precision_is_refused(precision: str, name: str, words: str) -> None:
    with pytest.raises(IncompatibleOptions, match=words):
        find_recipe(precision, name)


def test_codes_reach_as_far_as_their_type() -> None:
    assert {recipe.top for recipe in RECIPES.values() if recipe.precision == "int8"} == {127.0}
    assert {recipe.top for recipe in RECIPES.values() if recipe.precision == "fp8"} == {448.0}


@pytest.mark.parametrize("facts", FLUX_FACTS, ids=lambda facts: facts.name)
def test_what_follows_the_last_block_is_kept_but_no_product_within_one(facts: object) -> None:
    kept = getattr(facts, "high_precision", ())
    assert kept_by(kept, "proj_out")
    assert kept_by(kept, "norm_out.linear")
    # Layers of one row a step, which read a weight for a single vector: FP8 was never timed there.
    assert kept_by(kept, "time_text_embed.timestep_embedder.linear_1")
    assert kept_by(kept, "single_transformer_blocks.0.norm.linear")
    assert kept_by(kept, "transformer_blocks.0.norm1_context.linear")
    assert not kept_by(kept, "single_transformer_blocks.3.proj_out")
    assert not kept_by(kept, "transformer_blocks.1.attn.to_v")
