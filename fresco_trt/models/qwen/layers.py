"""The layers of a Qwen-Image transformer as numbers: their names, their widths, how many
parameters.

Beside ``facts.py`` in the data path, and as free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fresco_trt.errors import PlanError
from fresco_trt.models.linears import SINUSOIDS, Linear, linear, parameters_of
from fresco_trt.plan.caching import Action, CacheSite
from fresco_trt.plan.depth import Blocks, format_blocks
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.memory import Parameters
from fresco_trt.plan.recipes import Recipe

_HEAD = ("time_text_embed.", "norm_out.", "proj_out")  # what follows the last block, with its input
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def linear_layers(facts: ModelFacts) -> Iterator[Linear]:
    """Every linear layer of the transformer, those of the blocks last."""
    hidden, mlp = facts.hidden, facts.mlp_ratio * facts.hidden
    yield linear("img_in", facts.in_channels, hidden)
    yield linear("txt_in", facts.text_dim, hidden)
    yield linear("time_text_embed.timestep_embedder.linear_1", SINUSOIDS, hidden)
    yield linear("time_text_embed.timestep_embedder.linear_2", hidden, hidden)
    yield linear("norm_out.linear", hidden, 2 * hidden)
    yield linear("proj_out", hidden, facts.in_channels)
    for index in range(facts.double_blocks):
        path = f"transformer_blocks.{index}"
        for name in (*_PROJECTIONS, *_ADDED):
            yield linear(f"{path}.attn.{name}", hidden, hidden)
        for stream in ("img", "txt"):
            yield linear(f"{path}.{stream}_mod.1", hidden, 6 * hidden)
            yield linear(f"{path}.{stream}_mlp.net.0.proj", hidden, mlp)
            yield linear(f"{path}.{stream}_mlp.net.2", mlp, hidden)


def graph_parameters(
    facts: ModelFacts,
    action: Action = "full",
    site: CacheSite = "final",
    *,
    recipe: Recipe | None = None,
    kept: tuple[str, ...] = (),
) -> Parameters:
    """Parameters of a stage's graph; those of a ``full`` one are the transformer's.

    A bypass has what follows the last block, and at the trunk the first block and the embedders
    too. A ``recipe`` turns the weights of all linear layers into codes that no pattern of ``kept``
    names.
    """
    blocks = facts.double_blocks if action == "full" else int(site == "trunk")
    run = replace(facts, double_blocks=blocks)
    layers = [each for each in linear_layers(run) if blocks or each.name.startswith(_HEAD)]
    # The scales of the norms of queries and keys, of both streams, and of the text's own norm.
    norms = 4 * blocks * facts.head_dim + (facts.text_dim if blocks else 0)
    return parameters_of(layers, norms, recipe=recipe, kept=kept)


def with_blocks(facts: ModelFacts, blocks: Blocks) -> ModelFacts:
    """The facts of the same model with only so many ``blocks``, its widths and its name unchanged.

    Raises PlanError for no block, or more than the model has.
    """
    if len(blocks) != 1 or not 1 <= blocks[0] <= facts.double_blocks:
        raise PlanError(
            f"--blocks {format_blocks(blocks)} of {facts.name}",
            expected=f"one number from 1 to {facts.double_blocks}: it has one kind of block",
            fix="pass --blocks 1, or leave it out for all of them",
        )
    fewer = replace(facts, double_blocks=blocks[0])
    return replace(fewer, parameters=graph_parameters(fewer).whole)
