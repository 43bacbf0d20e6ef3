"""FLUX's stage graphs cut into pieces that are compiled one by one and run in turn.

Beside ``graph.py``, whose graphs these pieces make up again: conditioning, embedders, one
double-stream block, one single-stream block, final norm and projection. Blocks of one kind differ
in their weights only, so one compiled piece serves them all. Each piece is a module with tensors in
and tensors out, of static shapes; between the blocks they are of the weights' own type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from fresco_trt.models.cutting import FEATURE, RESIDUAL, Leave, StageCut, after, part, spec
from fresco_trt.models.family import Part
from fresco_trt.models.flux.fusing import fused
from fresco_trt.models.flux.graph import Streams, condition_of, through
from fresco_trt.models.flux.signatures import COARSE_ROPE
from fresco_trt.plan.signature import GraphSignature, TensorSpec

_GIVEN = ("pooled", "timestep", "guidance")
_ROPE = ("rope_cos", "rope_sin", *COARSE_ROPE)


# --- pieces -----------------------------------------------------------------------------------


class Condition(nn.Module):
    """From sigma, guidance and pooled text to the modulation vector."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.time_text_embed = transformer.time_text_embed

    def forward(self, pooled: Tensor, timestep: Tensor, *guidance: Tensor) -> tuple[Tensor]:
        """``condition`` [B,H] from ``pooled`` [B,P], ``timestep`` [B] and ``guidance`` [B]."""
        dtype = next(self.parameters()).dtype
        return (condition_of(self, pooled.to(dtype), timestep, *guidance),)


class Enter(nn.Module):
    """Both embedders."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.x_embedder = transformer.x_embedder
        self.context_embedder = transformer.context_embedder

    def forward(self, latents: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens`` [B,N,H] and ``context`` [B,T,H] from ``latents`` [B,N,C], ``text`` [B,T,D]."""
        dtype = self.x_embedder.weight.dtype
        return self.x_embedder(latents.to(dtype)), self.context_embedder(text.to(dtype))


class Block(nn.Module):
    """One block, double-stream or single-stream."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, tokens: Tensor, context: Tensor, condition: Tensor, *rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block, contiguous: a single-stream block's are parts of one
        tensor, and what is compiled for the next block relies on the strides of its inputs.
        """
        streams = through((self.block,), Streams(tokens, context), condition, rope)
        return streams.tokens.contiguous(), streams.context.contiguous()


# --- the cut ----------------------------------------------------------------------------------


def cut(graph: Any, signature: GraphSignature, *, fuse: bool = False) -> StageCut:
    """The parts of a stage graph of this family, as ``graph.graph_from_signature`` makes it for
    ``signature``; with ``fuse`` a block's projections of one input are one product
    (:mod:`fresco_trt.models.flux.fusing`).
    """
    parts = tuple(_parts(graph.transformer, signature, fuse))
    return StageCut(signature=signature, parts=parts)


def _parts(transformer: Any, signature: GraphSignature, fuse: bool) -> Iterator[Part]:
    dtype = str(transformer.proj_out.weight.dtype).removeprefix("torch.")
    velocity = signature.output("velocity")
    batch, count, _ = velocity.shape
    hidden = transformer.proj_out.in_features
    vector = spec("condition", (batch, hidden), dtype)
    tokens = spec("tokens", (batch, count, hidden), dtype)
    given = [signature.input(name) for name in _names(signature, *_GIVEN)]
    yield part("condition", "condition", given, [vector], [Condition(transformer)])
    if not _names(signature, FEATURE):
        yield from _block_parts(transformer, signature, [tokens, vector], fuse)
    yield part("leave", f"leave-{count}", [tokens, vector], [velocity], [Leave(transformer)])


def _block_parts(
    transformer: Any, signature: GraphSignature, between: Sequence[TensorSpec], fuse: bool
) -> Iterator[Part]:
    tokens, vector = between
    latents, text = signature.input("latents"), signature.input("text")
    batch, count, _ = latents.shape
    hidden = tokens.shape[-1]
    context = spec("context", (batch, text.shape[1], hidden), tokens.dtype)
    streams = [spec("tokens", (batch, count, hidden), tokens.dtype), context]
    yield part("enter", f"enter-{count}", [latents, text], streams, [Enter(transformer)])
    rope = [signature.input(name) for name in _names(signature, *_ROPE)]
    form = f"aligned-{count}" if len(rope) > 2 else f"{count}"
    for kind, blocks in _blocks(transformer, signature).items():
        layers = [Block(fused(block) if fuse else block) for block in blocks]
        yield part(kind, f"{kind}-{form}", [*streams, vector, *rope], after(streams), layers)


def _blocks(transformer: Any, signature: GraphSignature) -> dict[str, Sequence[nn.Module]]:
    """The blocks that the graph runs, by kind; a bypass at the trunk runs the first one alone."""
    blocks: dict[str, Sequence[nn.Module]] = {
        "double": tuple(transformer.transformer_blocks),
        "single": tuple(transformer.single_transformer_blocks),
    }
    present = {kind: each for kind, each in blocks.items() if each}
    if not _names(signature, RESIDUAL):
        return present
    return {kind: each[:1] for kind, each in tuple(present.items())[:1]}


def _names(signature: GraphSignature, *names: str) -> tuple[str, ...]:
    """Those of ``names`` that are inputs of a graph."""
    found = {each.name for each in signature.inputs}
    return tuple(name for name in names if name in found)
