"""Linear layers of a transformer as numbers, and what parameters they come to.

Under the families' tables of layers. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fresco_trt.plan.memory import Parameters
from fresco_trt.plan.recipes import Recipe, kept_by

SINUSOIDS = 256
"""Channels that sigma and guidance are expanded to before they are embedded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A linear layer with a bias, by diffusers' name: ``inputs`` channels to ``outputs``."""

    name: str
    inputs: int
    outputs: int


def linear(name: str, inputs: int, outputs: int) -> Linear:
    """The same, in one line of a table."""
    return Linear(name=name, inputs=inputs, outputs=outputs)


def parameters_of(
    layers: Iterable[Linear],
    norms: int,
    *,
    recipe: Recipe | None = None,
    kept: tuple[str, ...] = (),
) -> Parameters:
    """Those of ``layers``, and as many more as ``norms`` have. A ``recipe`` turns the weights of
    all layers into codes that no pattern of ``kept`` names.
    """
    layers = list(layers)
    quantized = [each for each in layers if recipe is not None and not kept_by(kept, each.name)]
    by_channel = recipe is not None and recipe.channels
    scales = sum(each.outputs for each in quantized) if by_channel else len(quantized)
    return Parameters(
        whole=norms + sum((each.inputs + 1) * each.outputs for each in layers),
        quantized=sum(each.inputs * each.outputs for each in quantized),
        scales=scales,
    )
