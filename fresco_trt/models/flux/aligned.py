"""Phase-aligned attention: on a mixed grid each query measures positions on its own grid.

The variant of ``graph.py`` for the mixed stages of a plan with positions "aligned" (PMA, arXiv
2511.19778). A pretrained head answers to whole distances of one grid; any single numbering of a
mixed grid gives one kind of its tokens distances that the head never saw. So the rotary tables come
twice, and each query reads the keys in the table of its own grid:

- fine queries see every key in fine units, as in the scheme "fine": fine ones at whole positions,
  coarse ones at the centre of their four, half a step from where a bare scaling would put them;
- coarse queries see, in coarse units, the coarse keys and of each four children the first, whose
  place halved is its parent's: a whole coarse grid, at its own density;
- text queries see every key in fine units. Text is at position 0 of either grid and belongs to
  none, so it keeps the attention that it has in the whole-grid stage that follows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fresco_trt.models.flux.attention import (
    Products,
    Rope,
    attended,
    parted,
    products_of,
    projected,
    rotated,
    torch_products,
)
from fresco_trt.models.flux.graph import FullGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedOrder:
    """What a mixed sequence is made of: ``text`` tokens, ``kept`` coarse ones, and the children of
    ``refined`` coarse tokens, four in a row."""

    text: int
    kept: int
    refined: int

    @property
    def fine(self) -> int:
        """Where the fine tokens begin."""
        return self.text + self.kept

    def seen(self, sequence: Tensor) -> Tensor:
        """What coarse queries see of ``sequence`` [B,S,...]: one child of each four."""
        return torch.cat([sequence[:, : self.fine], sequence[:, self.fine :: 4]], dim=1)


class AlignedGraph(FullGraph):
    """:class:`FullGraph` with phase-aligned attention, for ``flux.full_signature`` with
    ``refined``.

    Takes two more tables, ``rope_cos_coarse`` and ``rope_sin_coarse`` [T+K+P, head_dim]: the coarse
    frame of text, kept and refined tokens. The transformer is left as it is, and its weights are
    these graphs' weights too.
    """

    tables = 4

    def __init__(self, transformer: Any, order: MixedOrder, *, feature: bool = False) -> None:
        super().__init__(_shell(transformer, AlignedProcessor(order)), feature=feature)


class AlignedProcessor:
    """For diffusers' ``FluxAttention``; its rotary embedding is the tables of both frames."""

    def __init__(self, order: MixedOrder) -> None:
        self.order = order

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: None,
        image_rotary_emb: Rope,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As ``FluxAttnProcessor``: a double-stream block's image and text, or the joint tokens."""
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        joint = aligned_attention(
            query, key, value, image_rotary_emb, self.order, products_of(attn)
        )
        return parted(attn, joint.flatten(2), encoder_hidden_states)


def aligned_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rope: Rope,
    order: MixedOrder,
    products: Products = torch_products,
) -> Tensor:
    """Attention [B,S,heads,d] of a joint sequence, text in front, each query on its own grid.

    ``rope`` is cos and sin of the fine frame, [S,d] each, and of the coarse one, [T+K+P,d]: a row
    for each key that coarse queries see, in the order of :meth:`MixedOrder.seen`.
    """
    fine, coarse, own = rope[:2], rope[2:], slice(order.text, order.fine)
    turned = rotated(query, fine)
    others = torch.cat([turned[:, : order.text], turned[:, order.fine :]], dim=1)
    everywhere = attended(others, rotated(key, fine), value, products)
    rows = tuple(table[own] for table in coarse)
    between = attended(
        rotated(query[:, own], rows),
        rotated(order.seen(key), coarse),
        order.seen(value),
        products,
    )
    return torch.cat([everywhere[:, : order.text], between, everywhere[:, order.text :]], dim=1)


def _shell(module: nn.Module, processor: AlignedProcessor) -> nn.Module:
    """A second module over the same parameters, whose attention goes by ``processor``.

    Setting it on the module itself would change every other graph over the same transformer.
    """
    shell = copy.copy(module)
    children = module._modules.items()
    shell._modules = {
        name: None if child is None else _shell(child, processor) for name, child in children
    }
    if "processor" in vars(module):
        shell.processor = processor  # type: ignore[assignment]
    return shell
