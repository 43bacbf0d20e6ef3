"""The layers of a HunyuanVideo transformer as numbers: their names, their widths, how many
parameters.

Beside ``facts.py`` in the data path, and as free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fresco_trt.models.flux.layers import check_blocks, double_block, single_block
from fresco_trt.models.linears import SINUSOIDS, Linear, linear, parameters_of
from fresco_trt.plan.caching import Action, CacheSite
from fresco_trt.plan.depth import Blocks
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.memory import Parameters
from fresco_trt.plan.recipes import Recipe

_HEAD = ("time_text_embed.", "norm_out.", "proj_out")  # what follows the last block, with its input

_REFINER_RATIO = 4
"""How many times wider the refiner's MLPs are than its tokens, whatever the blocks' are."""


# --- layers -----------------------------------------------------------------------------------


def linear_layers(facts: ModelFacts) -> Iterator[Linear]:
    """Every linear layer of the transformer, those of the blocks last."""
    hidden = facts.hidden
    yield linear("x_embedder.proj", facts.in_channels, hidden)  # a convolution without overlap
    yield from _refiner("context_embedder", facts)
    sources = {"timestep": SINUSOIDS, "guidance": SINUSOIDS, "text": facts.pooled_dim}
    for source, width in sources.items():
        if source != "guidance" or facts.guidance:
            yield from _embedder(f"time_text_embed.{source}_embedder", width, hidden)
    yield linear("norm_out.linear", hidden, 2 * hidden)
    yield linear("proj_out", hidden, facts.in_channels)
    for index in range(facts.double_blocks):
        yield from double_block(f"transformer_blocks.{index}", facts)
    for index in range(facts.single_blocks):
        yield from single_block(f"single_transformer_blocks.{index}", facts)


def _embedder(path: str, inputs: int, hidden: int) -> Iterator[Linear]:
    yield linear(f"{path}.linear_1", inputs, hidden)
    yield linear(f"{path}.linear_2", hidden, hidden)


def _refiner(path: str, facts: ModelFacts) -> Iterator[Linear]:
    """What the text passes before the blocks."""
    hidden = facts.hidden
    yield from _embedder(f"{path}.time_text_embed.timestep_embedder", SINUSOIDS, hidden)
    yield from _embedder(f"{path}.time_text_embed.text_embedder", facts.text_dim, hidden)
    yield linear(f"{path}.proj_in", facts.text_dim, hidden)
    for index in range(facts.text_layers):
        block = f"{path}.token_refiner.refiner_blocks.{index}"
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield linear(f"{block}.attn.{name}", hidden, hidden)
        yield linear(f"{block}.ff.net.0.proj", hidden, _REFINER_RATIO * hidden)
        yield linear(f"{block}.ff.net.2", _REFINER_RATIO * hidden, hidden)
        yield linear(f"{block}.norm_out.linear", hidden, 2 * hidden)


# --- parameters -------------------------------------------------------------------------------


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
    blocks = (facts.double_blocks, facts.single_blocks)
    if action != "full":
        blocks = (int(site == "trunk"), 0)
    run = replace(facts, double_blocks=blocks[0], single_blocks=blocks[1])
    layers = [each for each in linear_layers(run) if any(blocks) or each.name.startswith(_HEAD)]
    # The scales of the norms of queries and keys, which double-stream blocks have for both streams,
    # and the refiner's norms, two a block, with a scale and a bias for each channel.
    norms = (4 * blocks[0] + 2 * blocks[1]) * facts.head_dim
    if any(blocks):
        norms += 4 * facts.text_layers * facts.hidden
    return parameters_of(layers, norms, recipe=recipe, kept=kept)


# --- fewer blocks -----------------------------------------------------------------------------


def with_blocks(facts: ModelFacts, blocks: Blocks) -> ModelFacts:
    """The facts of the same model with only so many double-stream and single-stream ``blocks``, its
    widths and its name unchanged.

    Raises as :func:`~fresco_trt.models.flux.layers.check_blocks`.
    """
    check_blocks(facts, blocks)
    fewer = replace(facts, double_blocks=blocks[0], single_blocks=blocks[1])
    return replace(fewer, parameters=graph_parameters(fewer).whole)
