"""Arrays of a checkpoint: a byte for each number where a byte is enough, two or four elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    Arrays = Mapping[str, torch.Tensor]

STEP = ".step"

LARGE = 4096
"""Smaller arrays stay in float32."""


def short(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Large arrays in bfloat16, others as they are."""
    return {name: _short(value) for name, value in arrays.items()}


def _short(value: torch.Tensor) -> torch.Tensor:
    large = value.is_floating_point() and value.numel() >= LARGE
    return value.detach().to(torch.bfloat16 if large else value.dtype, copy=True)


def coded(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Large arrays [R,...] as whole numbers of 8 bits with a step for each row beside them."""
    stored: dict[str, torch.Tensor] = {}
    for name, value in arrays.items():
        if value.ndim < 2 or value.numel() < LARGE:
            stored[name] = value.detach().clone()
            continue
        rows = value.detach().float().flatten(1)
        step = rows.abs().amax(1, keepdim=True) / 127
        safe = step.clamp(min=torch.finfo(torch.float32).tiny)
        stored[name] = (rows / safe).round().to(torch.int8).view(value.shape)
        stored[name + STEP] = step
    return stored


def decoded(stored: Arrays) -> dict[str, torch.Tensor]:
    """What was coded, in float32."""
    found = {}
    for name, value in stored.items():
        if name.endswith(STEP):
            continue
        step = stored.get(name + STEP)
        plain = value.float()
        if step is not None:
            plain = plain * step.view(-1, *[1] * (value.ndim - 1))
        found[name] = plain
    return found


def named(prefix: str, arrays: Arrays) -> dict[str, torch.Tensor]:
    """Arrays under a name in common."""
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def under(prefix: str, arrays: Arrays) -> dict[str, torch.Tensor]:
    """Those that have a name in common, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): v for name, v in arrays.items() if name.startswith(start)}
