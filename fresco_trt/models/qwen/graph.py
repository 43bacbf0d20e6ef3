"""Qwen-Image's transformer as a stage graph: diffusers' own layers, with positions as tables and
the text's length as a mask.

Between the family's signatures and ``lower/export.py`` (tracing). It needs torch to be imported at
all, so it is reached through ``family.py`` and the planning commands start without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fresco_trt.models.cutting import leave, own, references_of
from fresco_trt.models.masked import bias_of, turned
from fresco_trt.models.qwen.signatures import MASK
from fresco_trt.plan.caching import FEATURES, CacheSite

if TYPE_CHECKING:
    from fresco_trt.plan.signature import GraphSignature


class FullGraph(nn.Module):
    """Every block of a Qwen-Image transformer, called with the tensors of
    ``signatures.full_signature``.

    Equal to ``QwenImageTransformer2DModel.forward`` with a mask, except that positions arrive as
    tables of cos and sin. Whatever precision the weights have, inputs and outputs are float32, and
    sigma is expanded to sinusoids in float32, where bfloat16 would round it to three digits.
    """

    # ``Any`` because diffusers' attributes carry no types.
    def __init__(
        self,
        transformer: Any,
        *,
        feature: bool = False,
        site: CacheSite = "final",
        references: int = 0,
    ) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.feature, self.site, self.references = feature, site, references

    def forward(
        self,
        latents: Tensor,
        text: Tensor,
        text_mask: Tensor,
        timestep: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> tuple[Tensor, ...]:
        """Velocity, and the feature if asked for, of one batch.

        ``latents`` [B,N+R,C], ``text`` [B,T,D], ``text_mask`` [B,T], ``timestep`` [B] (sigma in
        0..1), the tables [T+N+R, head_dim]. The last R tokens are of references. Returns
        ``velocity`` [B,N,C] and, with ``feature``, the image tokens [B,N,H] after the last block,
        or at the trunk what all blocks after the first added to them.
        """
        model = self.transformer
        streams = entered(model, latents, text)
        shared = shared_of(model, self.references, text_mask, timestep, rope_cos, rope_sin, latents)
        blocks = model.transformer_blocks
        first = through(blocks[:1], streams, shared)
        last = own(through(blocks[1:], first, shared).tokens, self.references)
        velocity = leave(model, last, shared.condition)
        if not self.feature:
            return (velocity,)
        kept = last if self.site == "final" else last - own(first.tokens, self.references)
        return velocity, kept.float()


class TrunkBypassGraph(FullGraph):
    """The first block on this step's own latents, and the final projection: the blocks in between
    are replaced by what they were predicted to add to the image tokens.
    """

    def forward(  # type: ignore[override]
        self,
        residual: Tensor,
        latents: Tensor,
        text: Tensor,
        text_mask: Tensor,
        timestep: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> tuple[Tensor, ...]:
        """Velocity [B,N,C] from ``residual`` [B,N,H] and the inputs of :class:`FullGraph`."""
        model = self.transformer
        streams = entered(model, latents, text)
        shared = shared_of(model, self.references, text_mask, timestep, rope_cos, rope_sin, latents)
        first = own(through(model.transformer_blocks[:1], streams, shared).tokens, self.references)
        return (leave(model, first + residual.to(first.dtype), shared.condition),)


class BypassGraph(nn.Module):
    """What follows the last block: final norm, modulated anew, and projection."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        # A shell with the same attribute names: exported weights then have the full graph's names,
        # and are stored once.
        self.transformer: Any = nn.Module()
        for part in ("time_text_embed", "norm_out", "proj_out"):
            setattr(self.transformer, part, getattr(transformer, part))

    def forward(self, feature: Tensor, timestep: Tensor) -> tuple[Tensor]:
        """Velocity [B,N,C] from ``feature`` [B,N,H] and ``timestep`` [B] (sigma in 0..1)."""
        model = self.transformer
        dtype = model.proj_out.weight.dtype
        return (leave(model, feature.to(dtype), condition_of(model, timestep, dtype)),)


# --- pieces -----------------------------------------------------------------------------------


class Streams(NamedTuple):
    """Image tokens [B,N+R,H] and text tokens [B,T,H] between two blocks."""

    tokens: Tensor
    context: Tensor


class Shared(NamedTuple):
    """What all blocks are called with beside both streams.

    ``condition`` [B,H] is the modulation vector at the step's sigma, ``still`` the same of the last
    ``references`` image tokens, None where that is no other; ``bias`` [B,1,1,T+N+R] is added to
    every score of attention; ``rope`` are cos and sin [T+N+R, head_dim].
    """

    condition: Tensor
    still: Tensor | None
    references: int
    bias: Tensor
    rope: tuple[Tensor, Tensor]


def entered(transformer: Any, latents: Tensor, text: Tensor) -> Streams:
    """Both streams in front of the first block, in the weights' own type."""
    dtype = transformer.img_in.weight.dtype
    context = transformer.txt_in(transformer.txt_norm(text.to(dtype)))
    return Streams(transformer.img_in(latents.to(dtype)), context)


def shared_of(
    transformer: Any,
    references: int,
    text_mask: Tensor,
    timestep: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    latents: Tensor,
) -> Shared:
    """What all blocks share, from the graph's inputs."""
    dtype = transformer.proj_out.weight.dtype
    return Shared(
        condition=condition_of(transformer, timestep, dtype),
        still=condition_of(transformer, timestep * 0, dtype)
        if has_still(transformer, references)
        else None,
        references=references,
        bias=bias_of(text_mask, latents, dtype),
        rope=(rope_cos, rope_sin),
    )


def condition_of(transformer: Any, timestep: Tensor, dtype: torch.dtype) -> Tensor:
    """The modulation vector [B,H] in ``dtype`` at sigma ``timestep`` [B]."""
    embed = transformer.time_text_embed
    embedded: Tensor = embed.timestep_embedder(embed.time_proj(timestep.float()).to(dtype))
    return embedded


def has_still(transformer: Any, references: int) -> bool:
    """Whether there are references that are modulated as at sigma 0."""
    return bool(references and transformer.config.zero_cond_t)


def through(blocks: Sequence[Any], streams: Streams, shared: Shared) -> Streams:
    """Both streams after some blocks."""
    for block in blocks:
        streams = passed(block, streams, shared)
    return streams


def passed(block: Any, streams: Streams, shared: Shared) -> Streams:
    """Both streams after one block: what ``QwenImageTransformerBlock.forward`` computes."""
    images, texts = _modulations(block.img_mod, shared), block.txt_mod(shared.condition)
    half = texts.shape[-1] // 2
    halves = [[each[:, :half], each[:, half:]] for each in (*images, texts)]
    firsts, seconds = zip(*halves, strict=True)
    tokens, context = attended(
        block.attn,
        _modulated(block.img_norm1(streams.tokens), firsts[:-1], shared),
        _modulated(block.txt_norm1(streams.context), firsts[-1:], shared),
        shared,
    )
    tokens = streams.tokens + _gated(tokens, firsts[:-1], shared)
    context = streams.context + _gated(context, firsts[-1:], shared)
    normed = _modulated(block.img_norm2(tokens), seconds[:-1], shared)
    text_normed = _modulated(block.txt_norm2(context), seconds[-1:], shared)
    return Streams(
        tokens=tokens + _gated(block.img_mlp(normed), seconds[:-1], shared),
        context=context + _gated(block.txt_mlp(text_normed), seconds[-1:], shared),
    )


def _modulations(layer: Any, shared: Shared) -> list[Tensor]:
    """Shift, scale and gate [B,6H] of both halves of a block: of all image tokens, or of the
    picture's own and of those of references.
    """
    given = [shared.condition] if shared.still is None else [shared.condition, shared.still]
    return [layer(each) for each in given]


def _modulated(normed: Tensor, modulations: Sequence[Tensor], shared: Shared) -> Tensor:
    """Normed tokens [B,S,H] scaled and shifted by what is in [B,3H]: all alike, or references by
    the second.
    """
    parts = _apart(normed, modulations, shared)
    found = [part * (1 + scale) + shift for part, (shift, scale, _) in parts]
    return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def _gated(tokens: Tensor, modulations: Sequence[Tensor], shared: Shared) -> Tensor:
    """Tokens [B,S,H] times the gate that is in [B,3H]: all alike, or references by the second."""
    found = [gate * part for part, (_, _, gate) in _apart(tokens, modulations, shared)]
    return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def _apart(
    tokens: Tensor, modulations: Sequence[Tensor], shared: Shared
) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
    """Tokens with their shift, scale and gate [B,1,H], the references' last where they differ."""
    own_count = tokens.shape[1] - (shared.references if len(modulations) > 1 else 0)
    parts = (tokens[:, :own_count], tokens[:, own_count:])
    for part, modulation in zip(parts, modulations, strict=False):
        yield part, modulation[:, None].chunk(3, dim=-1)


def attended(attn: Any, tokens: Tensor, context: Tensor, shared: Shared) -> tuple[Tensor, Tensor]:
    """Image and text tokens after the attention of both over both, text in front."""
    cos, sin = (table[None, :, None] for table in shared.rope)
    count = context.shape[1]
    query = torch.cat(
        [
            _heads(attn, attn.add_q_proj, context, attn.norm_added_q),
            _heads(attn, attn.to_q, tokens, attn.norm_q),
        ],
        dim=1,
    )
    key = torch.cat(
        [
            _heads(attn, attn.add_k_proj, context, attn.norm_added_k),
            _heads(attn, attn.to_k, tokens, attn.norm_k),
        ],
        dim=1,
    )
    value = torch.cat(
        [_heads(attn, attn.add_v_proj, context), _heads(attn, attn.to_v, tokens)], dim=1
    )
    query, key = turned(query, cos, sin), turned(key, cos, sin)
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    joint = functional.scaled_dot_product_attention(query, key, value, attn_mask=shared.bias)
    joint = joint.transpose(1, 2).flatten(2)
    return attn.to_out[0](joint[:, count:]), attn.to_add_out(joint[:, :count])


def _heads(attn: Any, layer: Any, tokens: Tensor, norm: Any = None) -> Tensor:
    """[B,S,heads,d] of tokens [B,S,H] by one of the attention's layers."""
    found: Tensor = layer(tokens).unflatten(-1, (attn.heads, -1))
    return found if norm is None else norm(found)


# --- by a signature ---------------------------------------------------------------------------


def graph_from_signature(transformer: nn.Module, signature: GraphSignature) -> nn.Module:
    """The module a signature of this family was written for; shares the transformer's weights."""
    inputs = {spec.name for spec in signature.inputs}
    if MASK not in inputs:
        return BypassGraph(transformer).eval()
    references = references_of(signature)
    if FEATURES["trunk"] in inputs:
        return TrunkBypassGraph(transformer, references=references).eval()
    outputs = {spec.name for spec in signature.outputs}
    site: CacheSite = "trunk" if FEATURES["trunk"] in outputs else "final"
    feature = FEATURES[site] in outputs
    return FullGraph(transformer, feature=feature, site=site, references=references).eval()
