"""A FLUX transformer run on some of a picture's tokens, the keys and values of the others kept.

What peers of selective editing do (SpotEdit, arXiv 2512.22323; RegionE, arXiv 2510.25590): tokens
that an edit leaves alone go out of the sequence, and attention still sees them as they were in the
last pass over all. How many stay is known only while drawing, so this is eager torch.

Shapes: N tokens of the target, R of its source behind them, T of the text, K of N in a pass; one
picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fresco_trt.models.flux.attention import (
    Rope,
    attended,
    attention_paths,
    parted,
    projected,
    rotated,
    torch_products,
)
from fresco_trt.models.flux.graph import FullGraph

if TYPE_CHECKING:
    from fresco_trt.run.request import Conditioning


class _Present:
    """Which rows of T+N+R tokens are in the pass that runs now; None for all of them."""

    rows: Tensor | None = None


class KeepingProcessor:
    """diffusers' attention for a block that keeps the keys and values of its last whole pass.

    In a pass over some tokens what these have is written over what was kept of them, and they
    attend to all. Keys are kept with their positions in them.
    """

    def __init__(self, present: _Present) -> None:
        self._present = present
        self._key, self._value = torch.empty(0), torch.empty(0)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: None,
        image_rotary_emb: Rope,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """A double-stream block's image and text, or the joint tokens of a single-stream one."""
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)
        rows = self._present.rows
        if rows is None:
            self._key, self._value = key, value
        else:
            self._key.index_copy_(1, rows, key)
            self._value.index_copy_(1, rows, value)
        joint = attended(query, self._key, self._value, torch_products)
        return parted(attn, joint.flatten(2), encoder_hidden_states)


class KeptTransformer:
    """A transformer of the FLUX family whose attentions keep keys and values; it is changed for
    good. One edit is drawn at a time.
    """

    def __init__(self, transformer: Any) -> None:
        self.transformer, self.present = transformer, _Present()
        for path in attention_paths(transformer):
            transformer.get_submodule(path).set_processor(KeepingProcessor(self.present))

    def velocities(
        self, given: Conditioning, source: Tensor, tables: Mapping[str, Tensor]
    ) -> Velocities:
        """Those of one edit: its conditioning, the tokens [1,R,C] of its source, and the rotary
        tables [T+N+R,d].
        """
        return Velocities(self, given, source, tables)


class Velocities:
    """The velocities of one edit, of all tokens of its target or of some.

    ``source`` are the source's tokens [1,R,C]. ``passes`` says how many picture tokens, target's
    and source's, went through the blocks each time, and ``seconds`` how long that took in all.
    """

    def __init__(
        self,
        model: KeptTransformer,
        given: Conditioning,
        source: Tensor,
        tables: Mapping[str, Tensor],
    ) -> None:
        self.source, self.passes, self.seconds = source, list[int](), 0.0
        self._present, inputs = model.present, given.inputs
        self._whole = FullGraph(model.transformer, references=source.shape[1])
        self._some = FullGraph(model.transformer)
        self._text, self._pooled = inputs["text"], inputs["pooled"]
        self._guidance = [inputs["guidance"]] if "guidance" in inputs else []
        self._rope = tables["rope_cos"], tables["rope_sin"]

    @torch.no_grad()
    def whole(self, tokens: Tensor, sigma: float) -> Tensor:
        """Velocity [1,N,C] of ``tokens`` [1,N,C] at ``sigma``; every key and value is kept anew."""
        self._present.rows = None
        return self._called(self._whole, torch.cat([tokens, self.source], dim=1), sigma, self._rope)

    @torch.no_grad()
    def some(self, tokens: Tensor, places: Tensor, sigma: float) -> Tensor:
        """Velocity [1,K,C] of ``tokens`` [1,K,C] at the ``places`` [K] of the target, in any order,
        beside what was kept of the others. Before it there must have been a whole pass.
        """
        count = self._text.shape[1]
        text = torch.arange(count, device=places.device)
        rows = torch.cat([text, places + count])
        self._present.rows = rows
        cos, sin = (table[rows] for table in self._rope)
        return self._called(self._some, tokens, sigma, (cos, sin))

    def _called(
        self, graph: FullGraph, tokens: Tensor, sigma: float, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        began = perf_counter()
        timestep = torch.full((1,), sigma, device=tokens.device)
        rest = (*self._guidance, *rope)
        outputs: tuple[Tensor, ...] = graph(tokens, self._text, self._pooled, timestep, *rest)
        self.passes.append(tokens.shape[1])
        self.seconds += perf_counter() - began
        return outputs[0]
