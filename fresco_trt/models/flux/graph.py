"""FLUX's transformer as a stage graph: diffusers' own blocks with the rotary tables as inputs.

Between the family's signatures and ``lower/export.py`` (tracing). It needs torch to be imported at
all, so it is reached through ``family.py`` and the planning commands start without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fresco_trt.models.cutting import leave, own, references_of
from fresco_trt.models.flux.signatures import COARSE_ROPE
from fresco_trt.plan.caching import FEATURES, CacheSite

if TYPE_CHECKING:
    from fresco_trt.plan.signature import GraphSignature


class FullGraph(nn.Module):
    """Every block of a FLUX transformer, called with the tensors of ``signatures.full_signature``.

    Equal to ``FluxTransformer2DModel.forward`` except that positions arrive as cos and sin tables
    instead of integer ids: one graph then serves any layout of the same number of tokens, and the
    float64 arithmetic of the tables stays out of the engine.

    Whatever precision the weights have, inputs and outputs are float32; sigma and guidance are
    expanded to sinusoids in float32, where bfloat16 would round sigma to three digits.
    """

    tables = 2
    """How many inputs are tables of positions: the last ones."""

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
        self.guided = bool(transformer.config.guidance_embeds)

    def forward(
        self, latents: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Velocity, and the feature if asked for, of one batch.

        ``latents`` [B,N+R,C], ``text`` [B,T,D], ``pooled`` [B,P], ``timestep`` [B] (sigma in 0..1),
        then ``guidance`` [B] if the model has it, ``rope_cos`` and ``rope_sin`` [T+N+R, head_dim],
        and where :attr:`tables` says so more of them. The last R tokens are of references.
        Returns ``velocity`` [B,N,C] and, with ``feature``, the image tokens [B,N,H] after the last
        block, or at the trunk what all blocks after the first added to them. Raises ``TypeError``
        on a wrong number of inputs.
        """
        state, condition, rope = self.entered(latents, text, pooled, timestep, *rest)
        blocks = (*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks)
        first = through(blocks[:1], state, condition, rope)
        last = own(through(blocks[1:], first, condition, rope).tokens, self.references)
        velocity = leave(self.transformer, last, condition)
        if not self.feature:
            return (velocity,)
        kept = last if self.site == "final" else last - own(first.tokens, self.references)
        return velocity, kept.float()

    def entered(
        self, latents: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor, *rest: Tensor
    ) -> tuple[Streams, Tensor, tuple[Tensor, ...]]:
        """What the first block is called with: both streams, the modulation vector, the tables."""
        if len(rest) != self.tables + self.guided:
            expected = 4 + self.tables + self.guided
            raise TypeError(f"{4 + len(rest)} inputs given; expected {expected}")
        model, others, rope = self.transformer, rest[: -self.tables], rest[-self.tables :]
        dtype = dtype_of(model.proj_out)
        condition = condition_of(model, pooled.to(dtype), timestep, *others)
        context = model.context_embedder(text.to(dtype))
        return Streams(model.x_embedder(latents.to(dtype)), context), condition, rope


class Streams(NamedTuple):
    """Image tokens [B,N,H] and text tokens [B,T,H] between two blocks."""

    tokens: Tensor
    context: Tensor


def through(
    blocks: Sequence[Any], streams: Streams, condition: Tensor, rope: tuple[Tensor, ...]
) -> Streams:
    """Both streams after some blocks, double-stream or single-stream."""
    tokens, context = streams
    for block in blocks:
        context, tokens = block(
            hidden_states=tokens,
            encoder_hidden_states=context,
            temb=condition,
            image_rotary_emb=rope,
        )
    return Streams(tokens, context)


class BypassGraph(nn.Module):
    """What follows a FLUX transformer's last block: final norm, modulated anew, and projection.

    A step whose feature was predicted runs this alone; the blocks' weights are not in it.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        # A shell with the same attribute names: exported weights then have the full graph's names,
        # and are stored once.
        self.transformer: Any = nn.Module()
        for part in ("time_text_embed", "norm_out", "proj_out"):
            setattr(self.transformer, part, getattr(transformer, part))
        self.guided = bool(transformer.config.guidance_embeds)

    def forward(
        self, feature: Tensor, pooled: Tensor, timestep: Tensor, *guidance: Tensor
    ) -> tuple[Tensor, ...]:
        """Velocity [B,N,C] from ``feature`` [B,N,H], ``pooled`` [B,P], ``timestep`` [B] (sigma in
        0..1) and, if the model has it, ``guidance`` [B]. Raises ``TypeError`` on a wrong number.
        """
        if len(guidance) != self.guided:
            raise TypeError(f"{3 + len(guidance)} inputs given; expected {3 + self.guided}")
        model = self.transformer
        dtype = dtype_of(model.proj_out)
        condition = condition_of(model, pooled.to(dtype), timestep, *guidance)
        return (leave(model, feature.to(dtype), condition),)


class TrunkBypassGraph(FullGraph):
    """The first block on this step's own latents, and the final projection: the blocks in between
    are replaced by what they were predicted to add to the image tokens.
    """

    def forward(self, residual: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Velocity [B,N,C] from ``residual`` [B,N,H] and the inputs of :class:`FullGraph`."""
        streams, condition, rope = self.entered(*inputs)
        blocks = self.transformer.transformer_blocks[:1]
        first = own(through(blocks, streams, condition, rope).tokens, self.references)
        return (leave(self.transformer, first + residual.to(first.dtype), condition),)


def dtype_of(layer: Any) -> torch.dtype:
    """The dtype that a linear layer computes in: its weight's, unless that holds codes (GGUF's and
    4-bit layers say what they turn them into, 8-bit ones have a bias or take half precision).
    """
    dtype: torch.dtype = layer.weight.dtype
    if dtype.is_floating_point:
        return dtype
    named: torch.dtype | None = getattr(layer, "compute_dtype", None)
    if named is not None:
        return named
    return torch.float16 if layer.bias is None else layer.bias.dtype


def condition_of(transformer: Any, pooled: Tensor, timestep: Tensor, *guidance: Tensor) -> Tensor:
    """The modulation vector [B,H]; diffusers embeds 1000 times sigma and guidance."""
    scaled = [value.float() * 1000 for value in (timestep, *guidance)]
    embedded: Tensor = transformer.time_text_embed(*scaled, pooled)
    return embedded


def graph_from_signature(transformer: nn.Module, signature: GraphSignature) -> nn.Module:
    """The module a signature of this family was written for; shares the transformer's weights."""
    inputs = {spec.name for spec in signature.inputs}
    if FEATURES["final"] in inputs:
        return BypassGraph(transformer).eval()
    references = references_of(signature)
    if FEATURES["trunk"] in inputs:
        return TrunkBypassGraph(transformer, references=references).eval()
    outputs = {spec.name for spec in signature.outputs}
    site: CacheSite = "trunk" if FEATURES["trunk"] in outputs else "final"
    feature = FEATURES[site] in outputs
    if COARSE_ROPE[0] not in inputs:
        graph = FullGraph(transformer, feature=feature, site=site, references=references)
        return graph.eval()
    from fresco_trt.models.flux.aligned import AlignedGraph, MixedOrder

    text, tokens = (signature.input(name).shape[1] for name in ("text", "latents"))
    coarse = signature.input(COARSE_ROPE[0]).shape[0] - text
    refined = (tokens - coarse) // 3
    order = MixedOrder(text=text, kept=coarse - refined, refined=refined)
    return AlignedGraph(transformer, order, feature=feature).eval()
