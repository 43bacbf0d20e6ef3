"""Attention over chosen blocks of keys, in the order of a curve that fills space and time.

Beside ``graph.py``, which it takes the place of dense attention in. Image tokens are put in the
order of a Hilbert curve and cut into blocks of 128. A block of queries sees all of the text, and so
many blocks of the image, head by head: itself, then its neighbours, then those whose mean key is
nearest to its mean query (Jenga's AttenCarve, arXiv 2505.16864, with a fixed count and no floor of
probability). It is one rule in two forms: :func:`_masked`, plain torch under a mask, is what
engines are held against and no faster than dense attention; :func:`_flexible` is torch's
FlexAttention, which inductor compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fresco_trt.models.hunyuan.config import THETA
from fresco_trt.models.masked import HIDDEN
from fresco_trt.plan.sparse import BLOCK

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_BITS = 10
"""Of a place along an axis, in halves of a token: a clip has at most 511 tokens along a side."""

_NEAR, _OWN = 2.0, 4.0  # over what any other block scores, which is from -1 to 1


class Layout(NamedTuple):
    """Where tokens stand for sparse attention.

    ``order`` int64 [P] has the token at each place: text first, then the image along the curve,
    both filled up with their last token to whole blocks; ``hidden`` [B,P] is added to the scores of
    the token there, and hides what only fills up. ``place`` int64 [T+N] is where each token stands,
    and ``lift`` float32 [n,n] what is added to the score of each block of the image for each, 4 for
    itself and 2 for those beside it.
    """

    order: Tensor
    hidden: Tensor
    place: Tensor
    lift: Tensor


class Sparse(NamedTuple):
    """How attention is sparse: ``key_blocks`` of the image for each block of queries, by torch's
    FlexAttention if ``flex`` says so.
    """

    layout: Layout
    key_blocks: int
    flex: bool = False


# --- order ------------------------------------------------------------------------------------


def layout_of(rope: tuple[Tensor, Tensor], axes: Sequence[int], bias: Tensor, text: int) -> Layout:
    """The layout of tokens whose tables of cos and sin are ``rope`` [T+N, head_dim], of which
    ``text`` rows are the text's; ``axes`` are the widths of frame, row and column in them, and
    ``bias`` [B,1,1,T+N] is added to the scores of every query.
    """
    # Whole and half numbers, which the tables have to a few millionths.
    halves = (2 * positions_of(rope[0][text:], rope[1][text:], axes)).round()
    along = curve(halves.long()).argsort(stable=True)
    order = torch.cat([_filled(torch.arange(text, device=along.device)), text + _filled(along)])
    first = len(order) - len(_filled(along))
    place = torch.cat([torch.arange(text, device=along.device), first + along.argsort()])
    hidden = bias[:, 0, 0][:, order] - _repeated(order, place).to(bias.dtype) * HIDDEN
    lift = _lift(halves[_filled(along)] / 2)
    return Layout(order=order, hidden=hidden, place=place, lift=lift)


def positions_of(cos: Tensor, sin: Tensor, axes: Sequence[int]) -> Tensor:
    """Positions [N,A] from their tables [N, head_dim]: of each axis the slowest of its angles,
    which no clip is long enough to turn half around.
    """
    found, end = [], 0
    for width in axes:
        end += width
        angle = torch.atan2(sin[:, end - 1], cos[:, end - 1])
        found.append(angle * THETA ** ((width - 2) / width))
    return torch.stack(found, dim=1)


def curve(cells: Tensor) -> Tensor:
    """How far along a Hilbert curve cells int64 [N,A] of whole numbers from 0 are: int64 [N], in
    steps of a cell. Neighbours on the curve are neighbours in space (Skilling 2004, "Programming
    the Hilbert curve", doi:10.1063/1.1751381).
    """
    axes = list(cells.clamp(min=0, max=2**_BITS - 1).unbind(1))
    for bit in reversed(range(1, _BITS)):
        below = 2**bit - 1
        for index, each in enumerate(axes):
            turned = (each >> bit) & 1 > 0
            swapped = (axes[0] ^ each) & below
            other = torch.where(turned, each, each ^ swapped)
            axes[0] = torch.where(turned, axes[0] ^ below, axes[0] ^ swapped)
            axes[index] = axes[index] if index == 0 else other
    for index in range(1, len(axes)):
        axes[index] = axes[index] ^ axes[index - 1]
    flipped = torch.zeros_like(axes[0])
    for bit in range(1, _BITS):
        flipped = flipped ^ torch.where((axes[-1] >> bit) & 1 > 0, 2**bit - 1, 0)
    key = torch.zeros_like(axes[0])
    for bit in reversed(range(_BITS)):
        for each in axes:
            key = (key << 1) | (((each ^ flipped) >> bit) & 1)
    return key


def _filled(tokens: Tensor) -> Tensor:
    """Whole blocks of ``tokens`` [N], the last one filled up with the last of them."""
    return torch.cat([tokens, tokens[-1:].expand(-len(tokens) % BLOCK)])


def _repeated(order: Tensor, place: Tensor) -> Tensor:
    """Which places only fill up a block, bool [P]."""
    return place[order] != torch.arange(len(order), device=order.device)


def _lift(places: Tensor) -> Tensor:
    """What the scores of blocks get beside their own, from the places [P,A] of their tokens: blocks
    are neighbours where the boxes around them are at most a token apart.
    """
    inside = places.reshape(-1, BLOCK, places.shape[1])
    low, high = inside.amin(dim=1), inside.amax(dim=1)
    near = ((low[:, None] <= high + 1) & (high[:, None] >= low - 1)).all(dim=-1)
    itself = torch.eye(len(near), device=near.device)
    lift: Tensor = near * _NEAR + itself * (_OWN - _NEAR)
    return lift


# --- attention --------------------------------------------------------------------------------


def sparse_attention(query: Tensor, key: Tensor, value: Tensor, sparse: Sparse) -> Tensor:
    """[B,T+N,H] of queries, keys and values [B,T+N,heads,d], text in front."""
    order, hidden, place, lift = sparse.layout
    query, key, value = (each.transpose(1, 2)[:, :, order] for each in (query, key, value))
    own = ~_repeated(order, place)
    chosen = blocks_chosen(query, key, own, lift, sparse.key_blocks)
    found = (_flexible if sparse.flex else _masked)(query, key, value, hidden, chosen)
    return found[:, :, place].transpose(1, 2).flatten(2)


def blocks_chosen(query: Tensor, key: Tensor, own: Tensor, lift: Tensor, count: int) -> Tensor:
    """The ``count`` blocks of the image that each of its n blocks sees, of every head: int64
    [B,heads,n,count], counted behind the text's blocks.

    ``query`` and ``key`` [B,heads,P,d] are in the layout's order; ``own`` bool [P] says which of
    the places are no repetition. Scores are in float32 whatever the weights are.
    """
    blocks = len(lift)
    shares = own.float()[-blocks * BLOCK :].reshape(blocks, BLOCK)
    shares = (shares / shares.sum(dim=1, keepdim=True))[..., None]
    queries, keys = (
        (each[:, :, -blocks * BLOCK :].float().reshape(*each.shape[:2], blocks, BLOCK, -1) * shares)
        for each in (query, key)
    )
    scores = queries.sum(dim=3) @ keys.sum(dim=3).transpose(-1, -2)
    scores = scores / scores.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    chosen: Tensor = (scores + lift).topk(count, dim=-1).indices
    return chosen


def _masked(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, chosen: Tensor) -> Tensor:
    """[B,heads,P,d]: torch's own attention, a block of queries at a time, under a mask."""
    blocks, image = query.shape[2] // BLOCK, chosen.shape[2]
    text = blocks - image
    seen = torch.ones((*chosen.shape[:2], blocks, blocks), dtype=torch.bool, device=query.device)
    seen[:, :, text:, text:] = False
    seen[:, :, text:].scatter_(-1, text + chosen, True)
    rows = []
    for index in range(blocks):
        block = query[:, :, index * BLOCK : (index + 1) * BLOCK]
        shown = seen[:, :, index].repeat_interleave(BLOCK, dim=-1)
        mask = torch.where(shown, hidden[:, None], -torch.inf)[:, :, None]
        rows.append(functional.scaled_dot_product_attention(block, key, value, attn_mask=mask))
    return torch.cat(rows, dim=2)


def _flexible(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, chosen: Tensor) -> Tensor:
    """[B,heads,P,d]: torch's FlexAttention, which reads the blocks of a list and no others. Only
    where it is compiled: without, torch takes no notice of the list.
    """
    from torch.nn.attention import flex_attention as library

    def biased(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        # Of an input of the compiled code: inductor takes nothing here that it computed itself.
        return score + hidden[batch, column]

    untyped: Any = library
    mask = block_mask(chosen, query.shape[2] // BLOCK)
    found: Tensor = untyped.flex_attention(query, key, value, score_mod=biased, block_mask=mask)
    return found


def block_mask(chosen: Tensor, blocks: int) -> BlockMask:
    """What each of so many ``blocks`` of queries reads: those of the text everything, the others
    the text and the ``chosen`` [B,heads,n,count] of the image.
    """
    from torch.nn.attention import flex_attention as library

    batch, heads, image, count = chosen.shape
    text = blocks - image
    every = torch.arange(blocks, device=chosen.device)
    front = every[:text].expand(batch, heads, image, text)
    unread = every[: image - count].expand(batch, heads, image, image - count)
    rows = torch.cat([front, text + chosen, unread], dim=-1)
    indices = torch.cat([every.expand(batch, heads, text, blocks), rows], dim=2)
    counts = torch.where(every < text, blocks, text + count).expand(batch, heads, blocks)
    untyped: Any = library.BlockMask
    mask: BlockMask = untyped.from_kv_blocks(
        counts.int().contiguous(),
        indices.int().contiguous(),
        BLOCK_SIZE=BLOCK,
        seq_lengths=(blocks * BLOCK, blocks * BLOCK),
        compute_q_blocks=False,
    )
    return mask
