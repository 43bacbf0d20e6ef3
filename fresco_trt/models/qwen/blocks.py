"""Qwen-Image's stage graphs cut into pieces that are compiled one by one and run in turn.

Beside ``graph.py``, whose graphs these pieces make up again: conditioning, embedders, one block,
final norm and projection. Blocks differ in their weights only, so one compiled piece serves them
all. Each piece is a module with tensors in and tensors out, of static shapes; between the blocks
they are of the weights' own type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from fresco_trt.models.cutting import (
    RESIDUAL,
    Leave,
    StageCut,
    after,
    part,
    references_of,
    spec,
)
from fresco_trt.models.family import Part
from fresco_trt.models.masked import bias_of
from fresco_trt.models.qwen.graph import (
    Shared,
    Streams,
    condition_of,
    entered,
    has_still,
    passed,
)
from fresco_trt.models.qwen.signatures import MASK
from fresco_trt.plan.signature import GraphSignature, TensorSpec

_ROPE = ("rope_cos", "rope_sin")


# --- pieces -----------------------------------------------------------------------------------


class Condition(nn.Module):
    """From sigma to the modulation vector, and to that of references where it is another."""

    def __init__(self, transformer: Any, *, still: bool) -> None:
        super().__init__()
        self.time_text_embed, self.still = transformer.time_text_embed, still
        self.dtype = transformer.proj_out.weight.dtype

    def forward(self, timestep: Tensor) -> tuple[Tensor, ...]:
        """``condition`` [B,H], and ``still`` [B,H] if there is one, from ``timestep`` [B]."""
        sigmas = (timestep, timestep * 0) if self.still else (timestep,)
        return tuple(condition_of(self, each, self.dtype) for each in sigmas)


class Enter(nn.Module):
    """Both embedders, and what hides the text's padding."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        for name in ("img_in", "txt_in", "txt_norm"):
            setattr(self, name, getattr(transformer, name))

    def forward(
        self, latents: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``tokens`` [B,N,H], ``context`` [B,T,H] and ``bias`` [B,1,1,T+N]."""
        streams = entered(self, latents, text)
        return *streams, bias_of(text_mask, latents, streams.tokens.dtype)


class Block(nn.Module):
    """One block, of whose image tokens the last ``references`` may have a condition of their
    own."""

    def __init__(self, block: nn.Module, references: int) -> None:
        super().__init__()
        self.block, self.references = block, references

    def forward(
        self,
        tokens: Tensor,
        context: Tensor,
        bias: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        condition: Tensor,
        *still: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block, contiguous: what is compiled for the next one relies on the
        strides of its inputs.
        """
        shared = Shared(
            condition=condition,
            still=still[0] if still else None,
            references=self.references,
            bias=bias,
            rope=(rope_cos, rope_sin),
        )
        streams = passed(self.block, Streams(tokens, context), shared)
        return streams.tokens.contiguous(), streams.context.contiguous()


# --- the cut ----------------------------------------------------------------------------------


def cut(graph: Any, signature: GraphSignature) -> StageCut:
    """The parts of a stage graph of this family, as ``graph.graph_from_signature`` makes it for
    ``signature``.
    """
    return StageCut(signature=signature, parts=tuple(_parts(graph.transformer, signature)))


def _parts(transformer: Any, signature: GraphSignature) -> Iterator[Part]:
    dtype = str(transformer.proj_out.weight.dtype).removeprefix("torch.")
    velocity = signature.output("velocity")
    batch, count, _ = velocity.shape
    hidden = transformer.proj_out.in_features
    whole = any(each.name == MASK for each in signature.inputs)
    references = references_of(signature) if whole else 0
    vector = spec("condition", (batch, hidden), dtype)
    still = has_still(transformer, references)
    vectors = [vector, spec("still", vector.shape, dtype)] if still else [vector]
    condition = [Condition(transformer, still=still)]
    yield part("condition", "condition", [signature.input("timestep")], vectors, condition)
    if whole:
        yield from _block_parts(transformer, signature, vectors)
    tokens = spec("tokens", (batch, count, hidden), dtype)
    yield part("leave", f"leave-{count}", [tokens, vector], [velocity], [Leave(transformer)])


def _block_parts(
    transformer: Any, signature: GraphSignature, vectors: Sequence[TensorSpec]
) -> Iterator[Part]:
    given = [signature.input(name) for name in ("latents", "text", MASK)]
    (batch, count, _), (_, text, _) = given[0].shape, given[1].shape
    hidden, dtype = vectors[0].shape[-1], vectors[0].dtype
    streams = [
        spec("tokens", (batch, count, hidden), dtype),
        spec("context", (batch, text, hidden), dtype),
    ]
    bias = spec("bias", (batch, 1, 1, text + count), dtype)
    yield part("enter", f"enter-{count}", given, [*streams, bias], [Enter(transformer)])
    rope = [signature.input(name) for name in _ROPE]
    references = references_of(signature)
    alone = any(each.name == RESIDUAL for each in signature.inputs)
    blocks = transformer.transformer_blocks[: 1 if alone else None]
    yield part(
        "block",
        f"block-{count - references}+{references}",
        [*streams, bias, *rope, *vectors],
        after(streams),
        [Block(block, references) for block in blocks],
    )
