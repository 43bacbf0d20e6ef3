"""Rounding a model's weights to few bits so that its outputs stay what they were.

Under ``assemble.py``, which stores models. The columns of a matrix are rounded one after another,
and what each leaves over is made up for in those after it, as far as the layer's inputs go together
(GPTQ, Frantar et al. 2022, arXiv 2210.17323). What is then left on average goes into the bias.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fresco_trt.models.difference import added, best_step, coded, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

DAMPING = 0.01
"""Share of the inputs' mean variance that is added to each: they are a sample. A hundredth of it of
what the inputs are on average, too, for those that do not vary."""


@dataclass(slots=True)
class Inputs:
    """Sums over what a layer was given: ``count`` rows x, of x [C] and of x x^T [C,C], float64."""

    count: int
    first: Tensor
    second: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean input [C]."""
        return self.first / self.count

    @property
    def covariance(self) -> Tensor:
        """Damped, so that it has an inverse [C,C]."""
        square = self.second / self.count
        centred = square - torch.outer(self.mean, self.mean)
        extra = DAMPING * (centred.diag().mean() + DAMPING * square.diag().mean())
        return centred + extra * torch.eye(len(square), dtype=square.dtype)


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, Inputs]]:
    """The inputs of every linear layer that runs meanwhile, by the name of its weight."""
    found: dict[str, Inputs] = {}

    def hook_of(name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().reshape(-1, given[0].shape[-1])
            first, second = rows.sum(0).double(), (rows.mT @ rows).double()
            if name in found:
                seen = found[name]
                first, second = first + seen.first, second + seen.second
            count = len(rows) + (found[name].count if name in found else 0)
            found[name] = Inputs(count, first, second)

        return hook

    handles = [
        layer.register_forward_pre_hook(hook_of(f"{name}.weight"))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def rounded_difference(
    weights: Mapping[str, Tensor], base: Mapping[str, Tensor], inputs: Mapping[str, Inputs]
) -> dict[str, Tensor]:
    """The difference of ``weights`` to ``base`` in 4 bits, as
    :func:`~fresco_trt.models.difference.coded` stores it, rounded by the ``inputs`` of its layers;
    those without are rounded to the nearest.
    """

    def rounding(name: str, change: Tensor, top: int) -> tuple[Tensor, Tensor]:
        if name not in inputs:
            return nearest(name, change, top)
        covariance = inputs[name].covariance
        step = best_step(change, top, covariance.diag().float())
        return _compensated(change, step, covariance, top), step

    stored = coded(weights, base, 4, rounding)
    whole = added(base, stored)
    for name, seen in inputs.items():
        bias = name.removesuffix("weight") + "bias"
        if bias in base:
            left = (weights[name].double() - whole[name].double()) @ seen.mean
            stored[bias] = (weights[bias].double() + left - base[bias].double()).half()
    return stored


def _compensated(change: Tensor, step: Tensor, covariance: Tensor, top: int) -> Tensor:
    """Codes [R,C] of a change: the columns that vary most are first, and the errors of each, times
    its row of the inverse covariance's Cholesky factor, are taken off those after it.
    """
    order = covariance.diag().argsort(descending=True)
    lower = torch.linalg.cholesky(covariance[order][:, order])
    factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    left, steps = change.double()[:, order], step.double().clamp(min=torch.finfo().tiny)
    codes = torch.zeros_like(left)
    for column in range(len(order)):
        here = left[:, column : column + 1]
        codes[:, column : column + 1] = (here / steps).round().clamp(-top, top)
        error = (here - codes[:, column : column + 1] * steps) / factor[column, column]
        left[:, column + 1 :] -= error * factor[column, column + 1 :]
    return codes[:, order.argsort()].float()
