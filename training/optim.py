"""Optimiser pieces of the demo training: Muon for matrices, an exponential moving average."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz steps, for weights seen as [out, rest].

    Source: K. Jordan et al., "Muon", 2024; quintic iteration with its published coefficients.
    Weights of one shape are orthogonalised together.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; the learning rate is the size of the singular values of a change."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
                self._change(weights, group["lr"], group["momentum"])

    def _change(self, weights: list[torch.Tensor], rate: float, momentum: float) -> None:
        averages = [self.state[w].setdefault("momentum", torch.zeros_like(w)) for w in weights]
        gradients = [w.grad for w in weights if w.grad is not None]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        nesterov = torch.stack(torch._foreach_lerp(gradients, averages, momentum)).flatten(2)
        rate *= math.sqrt(max(1.0, nesterov.shape[1] / nesterov.shape[2]))
        changes = orthogonal_from(nesterov).to(weights[0].dtype).unbind()
        shaped = [c.view_as(w) for c, w in zip(changes, weights, strict=True)]
        torch._foreach_add_(weights, shaped, alpha=-rate)


def orthogonal_from(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices to [...,out,in], approximately.

    Singular values end within about 0.7-1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
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
