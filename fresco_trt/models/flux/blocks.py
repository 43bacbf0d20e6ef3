"""FLUX's stage graphs cut into pieces that are compiled one by one and run in turn.

Beside ``graph.py``, whose graphs these pieces make up again: conditioning, embedders, one
double-stream block, one single-stream block, final norm and projection. Blocks of one kind differ
in their weights only, so one compiled piece serves them all. Each piece is a module with tensors in
and tensors out, of static shapes; between the blocks they are of the weights' own type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from fresco_trt.models.family import Layer, Part
from fresco_trt.models.flux.fusing import fused
from fresco_trt.models.flux.graph import Streams, condition_of, leave, own, through
from fresco_trt.models.flux.signatures import COARSE_ROPE
from fresco_trt.plan.caching import FEATURES
from fresco_trt.plan.signature import GraphSignature, TensorSpec

Shape: TypeAlias = tuple[int, ...]

_GIVEN = ("pooled", "timestep", "guidance")
_ROPE = ("rope_cos", "rope_sin", *COARSE_ROPE)
_FEATURE, _RESIDUAL = FEATURES["final"], FEATURES["trunk"]


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


class Leave(nn.Module):
    """The final norm, modulated, and the projection."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.norm_out = transformer.norm_out
        self.proj_out = transformer.proj_out

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor]:
        """``velocity`` [B,N,C], float32."""
        return (leave(self, tokens, condition),)


# --- the cut ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FluxCut:
    """A stage graph as parts, and how they make it up again."""

    signature: GraphSignature
    parts: tuple[Part, ...]

    def run(
        self, layers: Mapping[str, Sequence[Layer]], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The graph's outputs from its inputs, by name; ``layers`` are those of every part, as they
        are or compiled, by the part's kind.
        """
        given = [inputs[name] for name in _names(self.signature, *_GIVEN)]
        (condition,) = layers["condition"][0](*given)
        kept: dict[str, Tensor] = {}
        if _FEATURE in inputs:
            tokens = inputs[_FEATURE].to(condition.dtype)
        else:
            tokens, kept = self._through(layers, inputs, condition)
        (velocity,) = layers["leave"][0](tokens, condition)
        return {"velocity": velocity, **kept}

    def _through(
        self, layers: Mapping[str, Sequence[Layer]], inputs: Mapping[str, Tensor], condition: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The image tokens for the final norm, and the feature if the graph gives one."""
        streams = layers["enter"][0](inputs["latents"], inputs["text"])
        references = _references(self.signature)
        rope = [inputs[name] for name in _names(self.signature, *_ROPE)]
        blocks = (*layers.get("double", ()), *layers.get("single", ()))
        first = streams = blocks[0](*streams, condition, *rope)
        if _RESIDUAL in inputs:
            tokens = own(first[0], references)
            return tokens + inputs[_RESIDUAL].to(tokens.dtype), {}
        for block in blocks[1:]:
            streams = block(*streams, condition, *rope)
        # What is compiled for them relies on their strides.
        tokens = own(streams[0], references).contiguous()
        outputs = {spec.name for spec in self.signature.outputs}
        if _RESIDUAL in outputs:
            return tokens, {_RESIDUAL: (tokens - own(first[0], references)).float()}
        return tokens, {_FEATURE: tokens.float()} if _FEATURE in outputs else {}


def cut(graph: Any, signature: GraphSignature, *, fuse: bool = False) -> FluxCut:
    """The parts of a stage graph of this family, as ``graph.graph_from_signature`` makes it for
    ``signature``; with ``fuse`` a block's projections of one input are one product
    (:mod:`fresco_trt.models.flux.fusing`).
    """
    parts = tuple(_parts(graph.transformer, signature, fuse))
    return FluxCut(signature=signature, parts=parts)


def _parts(transformer: Any, signature: GraphSignature, fuse: bool) -> Iterator[Part]:
    dtype = str(transformer.proj_out.weight.dtype).removeprefix("torch.")
    batch, count, _ = velocity = signature.outputs[0].shape
    hidden = transformer.proj_out.in_features
    vector = _spec("condition", (batch, hidden), dtype)
    tokens = _spec("tokens", (batch, count, hidden), dtype)
    given = [signature.input(name) for name in _names(signature, *_GIVEN)]
    yield _part("condition", "condition", given, [vector], [Condition(transformer)])
    if not _names(signature, _FEATURE):
        yield from _block_parts(transformer, signature, [tokens, vector], fuse)
    ends = [_spec("velocity", velocity)]
    yield _part("leave", f"leave-{count}", [tokens, vector], ends, [Leave(transformer)])


def _block_parts(
    transformer: Any, signature: GraphSignature, between: Sequence[TensorSpec], fuse: bool
) -> Iterator[Part]:
    tokens, vector = between
    latents, text = signature.input("latents"), signature.input("text")
    batch, count, _ = latents.shape
    hidden = tokens.shape[-1]
    context = _spec("context", (batch, text.shape[1], hidden), tokens.dtype)
    streams = [_spec("tokens", (batch, count, hidden), tokens.dtype), context]
    yield _part("enter", f"enter-{count}", [latents, text], streams, [Enter(transformer)])
    after = [_spec(f"{spec.name}_after", spec.shape, spec.dtype) for spec in streams]
    rope = [signature.input(name) for name in _names(signature, *_ROPE)]
    form = f"aligned-{count}" if len(rope) > 2 else f"{count}"
    for kind, blocks in _blocks(transformer, signature).items():
        layers = [Block(fused(block) if fuse else block) for block in blocks]
        yield _part(kind, f"{kind}-{form}", [*streams, vector, *rope], after, layers)


def _blocks(transformer: Any, signature: GraphSignature) -> dict[str, Sequence[nn.Module]]:
    """The blocks that the graph runs, by kind; a bypass at the trunk runs the first one alone."""
    blocks: dict[str, Sequence[nn.Module]] = {
        "double": tuple(transformer.transformer_blocks),
        "single": tuple(transformer.single_transformer_blocks),
    }
    present = {kind: each for kind, each in blocks.items() if each}
    if not _names(signature, _RESIDUAL):
        return present
    return {kind: each[:1] for kind, each in tuple(present.items())[:1]}


def _part(
    kind: str,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    layers: Sequence[nn.Module],
) -> Part:
    signature = GraphSignature(inputs=tuple(inputs), outputs=tuple(outputs))
    return Part(kind=kind, name=name, signature=signature, layers=tuple(layers))


def _references(signature: GraphSignature) -> int:
    """Tokens of references behind the picture's own."""
    return signature.input("latents").shape[1] - signature.output("velocity").shape[1]


def _spec(name: str, shape: Shape, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _names(signature: GraphSignature, *names: str) -> tuple[str, ...]:
    """Those of ``names`` that are inputs of a graph."""
    found = {spec.name for spec in signature.inputs}
    return tuple(name for name in names if name in found)
