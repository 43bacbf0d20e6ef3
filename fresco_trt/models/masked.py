"""Attention that does not see the padding of a text, and queries turned by tables: what the
families' graphs have in common.

Under the families whose text is masked. It needs torch to be imported at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = 1e4
"""What is taken from the score of a token that a mask hides: its share then rounds to 0 exactly, in
half precision too, where minus infinity would make engines compute with what is no number."""


def bias_of(text_mask: Tensor, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """What hides the padding of a text [B,T] from attention, and nothing of ``latents`` [B,N+R,C]:
    [B,1,1,T+N+R].
    """
    # Zeros of the latents' own, because ONNX would make others from a shape: an operator that can
    # make any amount of them, which no graph of a bundle may have.
    shown = latents[:, :, :1].flatten(1) * 0
    whole = torch.cat([(text_mask - 1) * HIDDEN, shown], dim=1)
    return whole[:, None, None].to(dtype).clamp(min=-HIDDEN, max=0.0)


def turned(sequence: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``sequence`` [B,S,heads,d] turned by tables [1,S,1,d] in float32, as diffusers does it with
    complex numbers.
    """
    even, odd = sequence.reshape(*sequence.shape[:-1], -1, 2).unbind(-1)
    quarter = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (sequence.float() * cos + quarter.float() * sin).to(sequence.dtype)
