"""HunyuanVideo's transformer as a stage graph: diffusers' own layers, with positions as tables and
the text's padding as a bias.

Between the family's signatures and ``lower/export.py`` (tracing). It needs torch to be imported at
all, so it is reached through ``family.py`` and the planning commands start without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fresco_trt.models.cutting import leave
from fresco_trt.models.hunyuan.signatures import BIAS
from fresco_trt.models.hunyuan.sparse import Sparse, layout_of, sparse_attention
from fresco_trt.models.masked import HIDDEN, turned
from fresco_trt.plan.caching import FEATURES, CacheSite

if TYPE_CHECKING:
    from fresco_trt.plan.signature import GraphSignature


class FullGraph(nn.Module):
    """Every block of a HunyuanVideo transformer, called with the tensors of
    ``signatures.full_signature``.

    Equal to ``HunyuanVideoTransformer3DModel.forward``, except that latents are tokens, positions
    are tables of cos and sin, and the text, with a bias that hides its padding, stands in front of
    the image tokens. Whatever precision the weights have, inputs and outputs are float32; sigma and
    guidance are expanded to sinusoids in float32, where bfloat16 would round sigma to three digits.
    """

    # ``Any`` because diffusers' attributes carry no types.
    def __init__(
        self,
        transformer: Any,
        *,
        feature: bool = False,
        site: CacheSite = "final",
        key_blocks: int | None = None,
    ) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.feature, self.site = feature, site
        self.key_blocks = key_blocks

    def forward(
        self,
        latents: Tensor,
        text: Tensor,
        text_bias: Tensor,
        pooled: Tensor,
        timestep: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """Velocity, and the feature if asked for, of one batch.

        ``latents`` [B,N,C], ``text`` [B,T,D], ``text_bias`` [B,T], ``pooled`` [B,P], ``timestep``
        [B] (sigma in 0..1), then ``guidance`` [B] if the model has it, and the tables [T+N,
        head_dim]. Returns ``velocity`` [B,N,C] and, with ``feature``, the image tokens [B,N,H]
        after the last block, or at the trunk what all blocks after the first added to them.
        """
        model = self.transformer
        inputs = (latents, text, text_bias, pooled, timestep, *rest)
        streams, shared = entered(model, *inputs, key_blocks=self.key_blocks)
        blocks = blocks_of(model)
        first = through(blocks[:1], streams, shared)
        last = through(blocks[1:], first, shared).tokens
        velocity = leave(model, last, shared.condition)
        if not self.feature:
            return (velocity,)
        kept = last if self.site == "final" else last - first.tokens
        return velocity, kept.float()


class TrunkBypassGraph(FullGraph):
    """The first block on this step's own latents, and the final projection: the blocks in between
    are replaced by what they were predicted to add to the image tokens.
    """

    def forward(self, residual: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Velocity [B,N,C] from ``residual`` [B,N,H] and the inputs of :class:`FullGraph`."""
        model = self.transformer
        streams, shared = entered(model, *inputs, key_blocks=self.key_blocks)
        first = through(blocks_of(model)[:1], streams, shared).tokens
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

    def forward(
        self, feature: Tensor, pooled: Tensor, timestep: Tensor, *guidance: Tensor
    ) -> tuple[Tensor]:
        """Velocity [B,N,C] from ``feature`` [B,N,H], ``pooled`` [B,P], ``timestep`` [B] (sigma in
        0..1) and, if the model has it, ``guidance`` [B].
        """
        model = self.transformer
        dtype = model.proj_out.weight.dtype
        condition = condition_of(model, pooled.to(dtype), timestep, *guidance)
        return (leave(model, feature.to(dtype), condition),)


# --- pieces -----------------------------------------------------------------------------------


class Streams(NamedTuple):
    """Image tokens [B,N,H] and text tokens [B,T,H] between two blocks."""

    tokens: Tensor
    context: Tensor


class Shared(NamedTuple):
    """What all blocks are called with beside both streams: the modulation vector ``condition``
    [B,H] at the step's sigma, ``bias`` [B,1,1,T+N] that is added to every score of attention,
    ``rope``, cos and sin [T+N, head_dim], and how attention is ``sparse``, None for dense.
    """

    condition: Tensor
    bias: Tensor
    rope: tuple[Tensor, Tensor]
    sparse: Sparse | None = None


def entered(
    transformer: Any,
    latents: Tensor,
    text: Tensor,
    text_bias: Tensor,
    pooled: Tensor,
    timestep: Tensor,
    *rest: Tensor,
    key_blocks: int | None = None,
) -> tuple[Streams, Shared]:
    """Both streams in front of the first block, and what all blocks share, from the graph's inputs;
    attention is over ``key_blocks`` blocks of the clip, None for all of them.

    Raises ``TypeError`` on a wrong number of inputs.
    """
    *guidance, rope_cos, rope_sin = rest
    if len(guidance) != (transformer.time_text_embed.guidance_embedder is not None):
        raise TypeError(f"{5 + len(rest)} inputs given; expected another number")
    dtype = transformer.proj_out.weight.dtype
    condition = condition_of(transformer, pooled.to(dtype), timestep, *guidance)
    streams = Streams(
        tokens=embedded(transformer.x_embedder.proj, latents.to(dtype)),
        context=refined(transformer.context_embedder, text, text_bias, timestep, dtype),
    )
    bias = bias_of(text_bias, latents, dtype)
    shared = Shared(condition=condition, bias=bias, rope=(rope_cos, rope_sin))
    if key_blocks is not None:
        layout = layout_of(shared.rope, transformer.config.rope_axes_dim, bias, text.shape[1])
        shared = shared._replace(sparse=Sparse(layout, key_blocks))
    return streams, shared


def embedded(convolution: Any, tokens: Tensor) -> Tensor:
    """Tokens [B,N,H] of packed latents [B,N,4C]: a convolution whose steps are as wide as its
    window is one product, by its weight's own order of channels.
    """
    return functional.linear(tokens, convolution.weight.flatten(1), convolution.bias)


def condition_of(transformer: Any, pooled: Tensor, timestep: Tensor, *guidance: Tensor) -> Tensor:
    """The modulation vector [B,H]; diffusers embeds 1000 times sigma and guidance."""
    time, *scale = (value.float() * 1000 for value in (timestep, *guidance))
    found: Tensor = transformer.time_text_embed(time, pooled, *scale)[0]
    return found


def bias_of(text_bias: Tensor, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias of every score of joint attention, [B,1,1,T+N]: that of the text [B,T], and none of
    ``latents`` [B,N,C].
    """
    # Zeros of the latents' own, as :func:`fresco_trt.models.masked.bias_of` says.
    whole = torch.cat([text_bias, latents[:, :, :1].flatten(1) * 0], dim=1)
    return whole[:, None, None].to(dtype).clamp(min=-HIDDEN, max=HIDDEN)


def refined(
    refiner: Any, text: Tensor, text_bias: Tensor, timestep: Tensor, dtype: torch.dtype
) -> Tensor:
    """The text's tokens [B,T,H] as ``HunyuanVideoTokenRefiner.forward`` makes them, but for the
    padding, which nothing sees.
    """
    mask = (text_bias + HIDDEN).clamp(min=0.0, max=1.0)
    # Of the prompt's own tokens: divisions are no operators of a bundle's.
    mean = (text * mask[..., None]).mean(dim=1) * mask.mean(dim=1, keepdim=True).reciprocal()
    condition = refiner.time_text_embed(timestep.float() * 1000, mean.to(dtype))
    bias = ((mask - 1) * HIDDEN)[:, None, None].to(dtype).clamp(min=-HIDDEN, max=0.0)
    tokens: Tensor = refiner.proj_in(text.to(dtype))
    for block in refiner.token_refiner.refiner_blocks:
        tokens = _refined_once(block, tokens, condition, bias)
    return tokens


def _refined_once(block: Any, tokens: Tensor, condition: Tensor, bias: Tensor) -> Tensor:
    attn = block.attn
    normed = block.norm1(tokens)
    query, key, value = (
        layer(normed).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    found = attn.to_out[0](_attention(query, key, value, bias))
    gates = block.norm_out.linear(functional.silu(condition))[:, None].chunk(2, dim=-1)
    tokens = tokens + found * gates[0]
    made: Tensor = tokens + block.ff(block.norm2(tokens)) * gates[1]
    return made


def blocks_of(transformer: Any) -> tuple[Any, ...]:
    """All blocks in their order."""
    return (*transformer.transformer_blocks, *transformer.single_transformer_blocks)


def through(blocks: Sequence[Any], streams: Streams, shared: Shared) -> Streams:
    """Both streams after some blocks, double-stream or single-stream."""
    for block in blocks:
        passed = passed_single if hasattr(block, "proj_mlp") else passed_double
        streams = passed(block, streams, shared)
    return streams


def passed_double(block: Any, streams: Streams, shared: Shared) -> Streams:
    """What ``HunyuanVideoTransformerBlock.forward`` computes."""
    normed, *modulation = block.norm1(streams.tokens, emb=shared.condition)
    text_normed, *text_modulation = block.norm1_context(streams.context, emb=shared.condition)
    attn, count = block.attn, text_normed.shape[1]
    own = _projected(attn, normed, ("to_q", "to_k", "to_v"), (attn.norm_q, attn.norm_k))
    added = _projected(
        attn,
        text_normed,
        ("add_q_proj", "add_k_proj", "add_v_proj"),
        (attn.norm_added_q, attn.norm_added_k),
    )
    joint = _joint([torch.cat(pair, dim=1) for pair in zip(added, own, strict=True)], shared)
    return Streams(
        tokens=_finished(
            streams.tokens, attn.to_out[0](joint[:, count:]), modulation, block.norm2, block.ff
        ),
        context=_finished(
            streams.context,
            attn.to_add_out(joint[:, :count]),
            text_modulation,
            block.norm2_context,
            block.ff_context,
        ),
    )


def passed_single(block: Any, streams: Streams, shared: Shared) -> Streams:
    """What ``HunyuanVideoSingleTransformerBlock.forward`` computes, with the text in front."""
    attn, count = block.attn, streams.context.shape[1]
    whole = torch.cat([streams.context, streams.tokens], dim=1)
    normed, gate = block.norm(whole, emb=shared.condition)
    heads = _projected(attn, normed, ("to_q", "to_k", "to_v"), (attn.norm_q, attn.norm_k))
    beside = block.act_mlp(block.proj_mlp(normed))
    found = block.proj_out(torch.cat([_joint(heads, shared), beside], dim=2))
    whole = gate[:, None] * found + whole
    return Streams(tokens=whole[:, count:], context=whole[:, :count])


def _projected(
    attn: Any, tokens: Tensor, layers: Sequence[str], norms: Sequence[Any]
) -> list[Tensor]:
    """Queries, keys and values [B,S,heads,d] of tokens [B,S,H], the first two normed."""
    made = [getattr(attn, name)(tokens).unflatten(-1, (attn.heads, -1)) for name in layers]
    return [norms[0](made[0]), norms[1](made[1]), made[2]]


def _joint(heads: Sequence[Tensor], shared: Shared) -> Tensor:
    """Attention of text and image tokens over both, text in front: [B,T+N,H]."""
    cos, sin = (table[None, :, None] for table in shared.rope)
    query, key, value = heads
    query, key = turned(query, cos, sin), turned(key, cos, sin)
    if shared.sparse is not None:
        return sparse_attention(query, key, value, shared.sparse)
    return _attention(query, key, value, shared.bias)


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """[B,S,H] of queries, keys and values [B,S,heads,d]."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return found.transpose(1, 2).flatten(2)


def _finished(
    tokens: Tensor, attended: Tensor, modulation: Sequence[Tensor], norm: Any, feed_forward: Any
) -> Tensor:
    """A stream [B,S,H] after its attention and its MLP, by what its norm made of the condition."""
    gate, shift_mlp, scale_mlp, gate_mlp = (each[:, None] for each in modulation)
    tokens = tokens + attended * gate
    normed = norm(tokens) * (1 + scale_mlp) + shift_mlp
    made: Tensor = tokens + gate_mlp * feed_forward(normed)
    return made


# --- by a signature ---------------------------------------------------------------------------


def graph_from_signature(transformer: nn.Module, signature: GraphSignature) -> nn.Module:
    """The module a signature of this family was written for; shares the transformer's weights."""
    inputs = {spec.name for spec in signature.inputs}
    if BIAS not in inputs:
        return BypassGraph(transformer).eval()
    if FEATURES["trunk"] in inputs:
        return TrunkBypassGraph(transformer, key_blocks=signature.key_blocks).eval()
    outputs = {spec.name for spec in signature.outputs}
    site: CacheSite = "trunk" if FEATURES["trunk"] in outputs else "final"
    return FullGraph(
        transformer,
        feature=FEATURES[site] in outputs,
        site=site,
        key_blocks=signature.key_blocks,
    ).eval()
