"""Optimiser pieces of the demo training: Muon for convolutions, an exponential moving average."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


class ConvMuon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz steps (Muon), for weights seen as [out, rest].

    Source: K. Jordan et al., "Muon", 2024; quintic iteration with its published coefficients.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; the learning rate is the root-mean-square change of a weight's rows."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                nesterov = weight.grad.lerp(momentum, group["momentum"]).flatten(1)
                scale = math.sqrt(max(1.0, nesterov.shape[0] / nesterov.shape[1]))
                change = orthogonal_from(nesterov).view_as(weight)
                weight.add_(change, alpha=-group["lr"] * scale)


def orthogonal_from(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, approximately (singular values within about 0.7-1.2)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.T if tall else x
    return result


class MovingAverage:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        current = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
        torch._foreach_lerp_(
            [self.weights[name] for name in current], list(current.values()), 1 - self.decay
        )


def warm_cosine(step: int, total: int, warm_up: int, floor: float = 0.05) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to `floor`."""
    if step < warm_up:
        return (step + 1) / warm_up
    progress = min(1.0, (step - warm_up) / max(1, total - warm_up))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
