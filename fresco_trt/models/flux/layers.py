"""The layers of a FLUX transformer as numbers: their names, their widths, how many parameters.

Beside ``facts.py`` in the data path, and as free of torch: what an engine weighs is known
before any weight is read, for the model and for the same model with fewer blocks.
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


# --- layers -----------------------------------------------------------------------------------


def linear_layers(facts: ModelFacts) -> Iterator[Linear]:
    """Every linear layer of the transformer, those of the blocks last."""
    hidden = facts.hidden
    yield linear("x_embedder", facts.in_channels, hidden)
    yield linear("context_embedder", facts.text_dim, hidden)
    sources = {"timestep": SINUSOIDS, "guidance": SINUSOIDS, "text": facts.pooled_dim}
    for source, width in sources.items():
        if source != "guidance" or facts.guidance:
            yield linear(f"time_text_embed.{source}_embedder.linear_1", width, hidden)
            yield linear(f"time_text_embed.{source}_embedder.linear_2", hidden, hidden)
    yield linear("norm_out.linear", hidden, 2 * hidden)
    yield linear("proj_out", hidden, facts.in_channels)
    for index in range(facts.double_blocks):
        yield from double_block(f"transformer_blocks.{index}", facts)
    for index in range(facts.single_blocks):
        yield from single_block(f"single_transformer_blocks.{index}", facts)


def double_block(path: str, facts: ModelFacts) -> Iterator[Linear]:
    """Modulation, projections and MLP of the image tokens and again of the text tokens."""
    hidden, mlp = facts.hidden, facts.mlp_ratio * facts.hidden
    queries = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    for name in (*queries, "to_add_out"):
        yield linear(f"{path}.attn.{name}", hidden, hidden)
    for suffix in ("", "_context"):
        yield linear(f"{path}.norm1{suffix}.linear", hidden, 6 * hidden)
        yield linear(f"{path}.ff{suffix}.net.0.proj", hidden, mlp)
        yield linear(f"{path}.ff{suffix}.net.2", mlp, hidden)


def single_block(path: str, facts: ModelFacts) -> Iterator[Linear]:
    """One modulation, and attention and MLP side by side."""
    hidden, mlp = facts.hidden, facts.mlp_ratio * facts.hidden
    for name in ("to_q", "to_k", "to_v"):
        yield linear(f"{path}.attn.{name}", hidden, hidden)
    yield linear(f"{path}.norm.linear", hidden, 3 * hidden)
    yield linear(f"{path}.proj_mlp", hidden, mlp)
    yield linear(f"{path}.proj_out", hidden + mlp, hidden)


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
    if action == "full":
        blocks = (facts.double_blocks, facts.single_blocks)
    elif site == "trunk":
        blocks = (1, 0) if facts.double_blocks else (0, 1)
    else:
        blocks = (0, 0)
    run = replace(facts, double_blocks=blocks[0], single_blocks=blocks[1])
    layers = [each for each in linear_layers(run) if any(blocks) or each.name.startswith(_HEAD)]
    # The scales of the norms of queries and keys, which double-stream blocks have for both streams.
    norms = (4 * blocks[0] + 2 * blocks[1]) * facts.head_dim
    return parameters_of(layers, norms, recipe=recipe, kept=kept)


# --- fewer blocks -----------------------------------------------------------------------------


def with_blocks(facts: ModelFacts, blocks: Blocks) -> ModelFacts:
    """The facts of the same model with only so many double-stream and single-stream ``blocks``, its
    widths and its name unchanged. Raises as :func:`check_blocks`.
    """
    check_blocks(facts, blocks)
    fewer = replace(facts, double_blocks=blocks[0], single_blocks=blocks[1])
    return replace(fewer, parameters=graph_parameters(fewer).whole)


def check_blocks(facts: ModelFacts, blocks: Blocks) -> None:
    """Raise PlanError for no block of a kind, or more than a model of both kinds has."""
    own = (facts.double_blocks, facts.single_blocks)
    counts = zip(blocks, own, strict=False)
    if len(blocks) != len(own) or not all(1 <= asked <= there for asked, there in counts):
        raise PlanError(
            f"--blocks {format_blocks(blocks)} of {facts.name}",
            expected=f"from 1,1 to {format_blocks(own)}, double-stream and single-stream",
            fix="pass --blocks 1,1, or leave it out for all of them",
        )
