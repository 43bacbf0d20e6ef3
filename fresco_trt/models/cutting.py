"""A stage graph as pieces that are compiled one by one and run in turn: what is alike in every
family.

Beside the families' ``graph.py`` and ``blocks.py``: their transformers end in the same way, carry
image tokens and text tokens through blocks that differ in their weights only, and keep the same
features. A family says what its pieces compute, this how they make up a graph again. It needs torch
to be imported at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fresco_trt.models.family import Layer, Part
from fresco_trt.plan.caching import FEATURES
from fresco_trt.plan.signature import GraphSignature, TensorSpec

FEATURE, RESIDUAL = FEATURES["final"], FEATURES["trunk"]

_AFTER = "_after"  # what blocks give has another name than what they take, in one signature


def own(tokens: Tensor, references: int) -> Tensor:
    """The picture's own tokens, without those of references behind them; a view."""
    return tokens[:, :-references] if references else tokens


def leave(transformer: Any, tokens: Tensor, condition: Tensor) -> Tensor:
    """The velocity [B,N,C], float32, from the image tokens after the last block."""
    velocity: Tensor = transformer.proj_out(transformer.norm_out(tokens, condition)).float()
    return velocity


def references_of(signature: GraphSignature) -> int:
    """Tokens of references behind the picture's own."""
    return signature.input("latents").shape[1] - signature.output("velocity").shape[1]


class Leave(nn.Module):
    """The final norm, modulated, and the projection."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.norm_out = transformer.norm_out
        self.proj_out = transformer.proj_out

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor]:
        """``velocity`` [B,N,C], float32."""
        return (leave(self, tokens, condition),)


# --- parts ------------------------------------------------------------------------------------


def part(
    kind: str,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    layers: Sequence[nn.Module],
) -> Part:
    """A part of these inputs and outputs."""
    signature = GraphSignature(inputs=tuple(inputs), outputs=tuple(outputs))
    return Part(kind=kind, name=name, signature=signature, layers=tuple(layers))


def spec(name: str, shape: tuple[int, ...], dtype: str) -> TensorSpec:
    """A tensor between two parts, in torch's name of the weights' own type."""
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def after(streams: Sequence[TensorSpec]) -> list[TensorSpec]:
    """What a block gives in the place of ``streams``, which the next block takes."""
    return [spec(f"{each.name}{_AFTER}", each.shape, each.dtype) for each in streams]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StageCut:
    """A stage graph as parts, and how they make it up again: a
    :class:`~fresco_trt.models.family.Cut`.

    The first of ``parts`` gives the ``condition``, the last the ``velocity`` from it and the
    picture's own ``tokens``. Between them, unless the graph starts from a feature, are the part
    that enters the blocks and one of each kind of block. A part takes by name what the graph was
    given and what the parts before it gave.
    """

    signature: GraphSignature
    parts: tuple[Part, ...]

    def run(
        self, layers: Mapping[str, Sequence[Layer]], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The graph's outputs from its inputs, by name; ``layers`` are those of every part, as they
        are or compiled, by the part's kind.
        """
        first, *middle, last = self.parts
        values, kept = dict(inputs), dict[str, Tensor]()
        _call(first, layers[first.kind][0], values)
        if FEATURE in inputs:
            values["tokens"] = inputs[FEATURE].to(values["condition"].dtype)
        else:
            kept = self._through(middle, layers, values)
        _call(last, layers[last.kind][0], values)
        return {"velocity": values["velocity"], **kept}

    def _through(
        self,
        parts: Sequence[Part],
        layers: Mapping[str, Sequence[Layer]],
        values: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Leave the image tokens for the final norm in ``values``; the feature if the graph gives
        one.
        """
        enter, *blocks = parts
        _call(enter, layers[enter.kind][0], values)
        calls = [(each, layer) for each in blocks for layer in layers[each.kind]]
        references = references_of(self.signature)
        _call(*calls[0], values)
        first = own(values["tokens"], references)
        if RESIDUAL in values:
            values["tokens"] = first + values[RESIDUAL].to(first.dtype)
            return {}
        for call in calls[1:]:
            _call(*call, values)
        # What is compiled for them relies on their strides.
        values["tokens"] = tokens = own(values["tokens"], references).contiguous()
        outputs = {each.name for each in self.signature.outputs}
        if RESIDUAL in outputs:
            return {RESIDUAL: (tokens - first).float()}
        return {FEATURE: tokens.float()} if FEATURE in outputs else {}


def _call(called: Part, layer: Layer, values: dict[str, Tensor]) -> None:
    """Run a layer of a part, and keep what it gives under the names that the next ones take."""
    found = layer(*(values[each.name] for each in called.signature.inputs))
    for each, value in zip(called.signature.outputs, found, strict=True):
        values[each.name.removesuffix(_AFTER)] = value
