"""A FLUX block's attention in pieces: projections, positions, the two products, what comes after.

diffusers' own processor does all of it in one go. Where a part is to be another one (positions of
two grids in ``aligned.py``, products of codes in a simulated model) it is put together here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Rope: TypeAlias = tuple[Tensor, ...]
Products: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention [B,heads,S,d] of queries [B,heads,S,d] and of keys and values [B,heads,K,d]."""

torch_products: Products = functional.scaled_dot_product_attention


def attention_paths(transformer: nn.Module) -> tuple[str, ...]:
    """Paths of the transformer's attentions, one for each block."""
    from diffusers.models.transformers.transformer_flux import FluxAttention

    parts = transformer.named_modules()
    return tuple(path for path, part in parts if isinstance(part, FluxAttention))


# --- products of one's own --------------------------------------------------------------------


def put_products(attn: Any, products: nn.Module) -> None:
    """Have a block's attention multiply by ``products``, a module that is called as
    :data:`Products` are, whatever processor it has later.
    """
    attn.products = products
    attn.set_processor(ProductsProcessor())


def products_of(attn: Any) -> Products:
    """What was put into an attention, or torch's own."""
    products: Products = getattr(attn, "products", torch_products)
    return products


class ProductsProcessor:
    """As diffusers' ``FluxAttnProcessor``, with the products of :func:`products_of`."""

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
        joint = attended(query, key, value, products_of(attn))
        return parted(attn, joint.flatten(2), encoder_hidden_states)


# --- pieces -----------------------------------------------------------------------------------


def attended(query: Tensor, key: Tensor, value: Tensor, products: Products) -> Tensor:
    """Of tensors [B,S,heads,d], as diffusers holds them."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return products(query, key, value).transpose(1, 2)


def rotated(sequence: Tensor, rope: Rope) -> Tensor:
    """``sequence`` [B,S,heads,d] turned by cos and sin [S,d] in float32, as diffusers does it."""
    cos, sin = (table[:, None] for table in rope)
    even, odd = sequence.reshape(*sequence.shape[:-1], sequence.shape[-1] // 2, 2).unbind(-1)
    quarter = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (sequence.float() * cos + quarter.float() * sin).to(sequence.dtype)


def projected(attn: Any, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B,S,heads,d] by the block's own layers, text in front."""
    heads = (-1, attn.head_dim)
    query, key, value = (
        layer(image).unflatten(-1, heads) for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    query, key = attn.norm_q(query), attn.norm_k(key)
    if text is None:
        return query, key, value
    added = (
        layer(text).unflatten(-1, heads)
        for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    query_text, key_text, value_text = added
    return (
        torch.cat([attn.norm_added_q(query_text), query], dim=1),
        torch.cat([attn.norm_added_k(key_text), key], dim=1),
        torch.cat([value_text, value], dim=1),
    )


def parted(attn: Any, joint: Tensor, text: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """The joint tokens [B,S,H] of attention as they are, or with ``text`` image and text tokens
    apart, each through its own projection.
    """
    if text is None:
        return joint
    count = text.shape[1]
    return attn.to_out[0](joint[:, count:]), attn.to_add_out(joint[:, :count])
