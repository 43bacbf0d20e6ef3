"""HunyuanVideo's stage graphs cut into pieces that are compiled one by one and run in turn.

Beside ``graph.py``, whose graphs these pieces make up again: conditioning, embedders with the
text's refiner, one double-stream block, one single-stream block, final norm and projection. Blocks
of one kind differ in their weights only, so one compiled piece serves them all. Each piece is a
module with tensors in and tensors out, of static shapes; between the blocks they are of the
weights' own type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fresco_trt.models.cutting import RESIDUAL, Leave, StageCut, after, part, spec
from fresco_trt.models.family import Part
from fresco_trt.models.hunyuan.graph import (
    Shared,
    Streams,
    bias_of,
    condition_of,
    embedded,
    refined,
    through,
)
from fresco_trt.models.hunyuan.signatures import BIAS
from fresco_trt.models.hunyuan.sparse import Layout, Sparse, layout_of
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from fresco_trt.plan.sparse import BLOCK, blocks_of

_GIVEN = ("pooled", "timestep", "guidance")
_ENTERED = ("latents", "text", BIAS, "timestep")
_ROPE = ("rope_cos", "rope_sin")


# --- pieces -----------------------------------------------------------------------------------


class Condition(nn.Module):
    """From sigma, guidance and pooled text to the modulation vector."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.time_text_embed = transformer.time_text_embed
        self.dtype = transformer.proj_out.weight.dtype

    def forward(self, pooled: Tensor, timestep: Tensor, *guidance: Tensor) -> tuple[Tensor]:
        """``condition`` [B,H] from ``pooled`` [B,P], ``timestep`` [B] and ``guidance`` [B]."""
        return (condition_of(self, pooled.to(self.dtype), timestep, *guidance),)


class Enter(nn.Module):
    """Both embedders, what hides the text's padding, and where sparse attention has tokens."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.convolution = transformer.x_embedder.proj
        self.context_embedder = transformer.context_embedder
        self.dtype = transformer.proj_out.weight.dtype
        self.axes = tuple(transformer.config.rope_axes_dim)

    def forward(
        self, latents: Tensor, text: Tensor, text_bias: Tensor, timestep: Tensor, *rope: Tensor
    ) -> tuple[Tensor, ...]:
        """``tokens`` [B,N,H], ``context`` [B,T,H] and ``bias`` [B,1,1,T+N]; with ``rope``, cos and
        sin, what a :class:`~fresco_trt.models.hunyuan.sparse.Layout` has, too.
        """
        tokens = embedded(self.convolution, latents.to(self.dtype))
        context = refined(self.context_embedder, text, text_bias, timestep, self.dtype)
        bias = bias_of(text_bias, latents, self.dtype)
        if not rope:
            return tokens, context, bias
        cos, sin = rope
        return tokens, context, bias, *layout_of((cos, sin), self.axes, bias, text.shape[1])


class Block(nn.Module):
    """One block, double-stream or single-stream; with ``key_blocks`` its attention is sparse, by
    FlexAttention if ``flex`` says so.
    """

    def __init__(
        self, block: nn.Module, key_blocks: int | None = None, *, flex: bool = False
    ) -> None:
        super().__init__()
        self.block = block
        self.key_blocks, self.flex = key_blocks, flex

    def forward(
        self,
        tokens: Tensor,
        context: Tensor,
        bias: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        condition: Tensor,
        *layout: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block, contiguous: a single-stream block's are parts of one
        tensor, and what is compiled for the next block relies on the strides of its inputs.
        """
        shared = Shared(condition=condition, bias=bias, rope=(rope_cos, rope_sin))
        if self.key_blocks is not None:
            sparse = Sparse(Layout(*layout), self.key_blocks, flex=self.flex)
            shared = shared._replace(sparse=sparse)
        streams = through((self.block,), Streams(tokens, context), shared)
        return streams.tokens.contiguous(), streams.context.contiguous()


# --- the cut ----------------------------------------------------------------------------------


def cut(graph: Any, signature: GraphSignature, *, flex: bool = False) -> StageCut:
    """The parts of a stage graph of this family, as ``graph.graph_from_signature`` makes it for
    ``signature``; sparse attention is FlexAttention if ``flex`` says so, which has to be compiled.
    """
    parts = tuple(_parts(graph.transformer, signature, flex))
    return StageCut(signature=signature, parts=parts)


def _parts(transformer: Any, signature: GraphSignature, flex: bool) -> Iterator[Part]:
    dtype = str(transformer.proj_out.weight.dtype).removeprefix("torch.")
    velocity = signature.output("velocity")
    batch, count, _ = velocity.shape
    hidden = transformer.proj_out.in_features
    vector = spec("condition", (batch, hidden), dtype)
    tokens = spec("tokens", (batch, count, hidden), dtype)
    given = [each for each in signature.inputs if each.name in _GIVEN]
    yield part("condition", "condition", given, [vector], [Condition(transformer)])
    if any(each.name == BIAS for each in signature.inputs):
        yield from _block_parts(transformer, signature, (tokens, vector), flex)
    yield part("leave", f"leave-{count}", [tokens, vector], [velocity], [Leave(transformer)])


def _block_parts(
    transformer: Any, signature: GraphSignature, given: tuple[TensorSpec, TensorSpec], flex: bool
) -> Iterator[Part]:
    tokens, vector = given
    (batch, count, hidden), dtype = tokens.shape, tokens.dtype
    text = signature.input("text").shape[1]
    streams = [tokens, spec("context", (batch, text, hidden), dtype)]
    bias = spec("bias", (batch, 1, 1, text + count), dtype)
    entered = [signature.input(name) for name in _ENTERED]
    rope = [signature.input(name) for name in _ROPE]
    layout: list[TensorSpec] = []
    if signature.key_blocks is not None:
        entered, layout = [*entered, *rope], _layout(batch, text, count, dtype)
    outputs = [*streams, bias, *layout]
    yield part("enter", f"enter-{count}", entered, outputs, [Enter(transformer)])
    inputs = [*streams, bias, *rope, vector, *layout]
    kinds: dict[str, Sequence[nn.Module]] = {"double": transformer.transformer_blocks}
    if any(each.name == RESIDUAL for each in signature.inputs):
        kinds = {"double": kinds["double"][:1]}
    else:
        kinds["single"] = transformer.single_transformer_blocks
    for kind, blocks in kinds.items():
        layers = [Block(each, signature.key_blocks, flex=flex) for each in blocks]
        made = part(kind, f"{kind}-{count}", inputs, after(streams), layers)
        # Compiled code relies on how many blocks there are, which no tensor's shape says.
        counted = replace(made.signature, key_blocks=signature.key_blocks)
        yield replace(made, signature=counted)


def _layout(batch: int, text: int, tokens: int, dtype: str) -> list[TensorSpec]:
    """Of a :class:`~fresco_trt.models.hunyuan.sparse.Layout`."""
    image = blocks_of(tokens)
    places = (blocks_of(text) + image) * BLOCK
    return [
        spec("order", (places,), "int64"),
        spec("hidden", (batch, places), dtype),
        spec("place", (text + tokens,), "int64"),
        spec("lift", (image, image), "float32"),
    ]
