"""A student that is its teacher and low-rank factors on every matrix (Hu et al. 2021, LoRA)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

RANK = 16
"""Of the factors, or a matrix's shorter side: 1.9 MB of them for the demo in two bytes each."""


class LowRank(nn.Module):
    """A linear layer and a change of it, which starts at nothing and alone is trained."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        rank = min(rank, linear.in_features, linear.out_features)
        self.base = linear.requires_grad_(False)
        where, scale = linear.weight.device, 1 / math.sqrt(linear.in_features)
        self.down = nn.Parameter(scale * torch.randn(rank, linear.in_features, device=where))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, device=where))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """As of the linear layer."""
        change = functional.linear(functional.linear(values, self.down), self.up)
        whole: torch.Tensor = self.base(values) + change
        return whole

    @property
    def weight(self) -> torch.Tensor:
        """The linear layer's own."""
        return self.base.weight


def add_factors(module: nn.Module, rank: int = RANK) -> None:
    """Freeze a module, and put factors on each of its linear layers."""
    module.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank))


def factors_of(module: nn.Module) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each matrix's name without factors -> (down [r,in], up [out,r]): the matrix gets up @ down
    more.
    """
    return {
        f"{path}.weight": (layer.down.detach(), layer.up.detach())
        for path, layer in module.named_modules()
        if isinstance(layer, LowRank)
    }
