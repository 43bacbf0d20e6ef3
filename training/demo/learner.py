"""A module in training: weights, their moving average and optimisers, stored small."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from training.demo.coding import coded, decoded, named, short, under
from training.objective import fast_precision
from training.optim import Muon
from training.train import MUON_FACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    Arrays = Mapping[str, torch.Tensor]

DECAY = 0.999
"""Of the moving average, which begins shorter."""

MOMENTS = {"momentum": coded, "exp_avg": coded, "exp_avg_sq": short}
"""What the optimisers keep of a weight, and how it is stored. Second moments may differ by many
powers of ten in a row, so they keep an exponent each.
"""


def precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Matrix products in bfloat16 on a GPU, float32 on a CPU."""
    return contextlib.nullcontext() if device.type == "cpu" else fast_precision(device.type)


class Learner:
    """Trains what of a module wants a gradient: Muon for ``matrices``, AdamW for the others.

    Stored are the weights (bfloat16), how far their average is from them and the first moments (8
    bits), and AdamW's second moments (bfloat16): 4 bytes a weight instead of 12. Small arrays keep
    float32. Training goes on from what was stored, whether it was killed or not.
    """

    def __init__(
        self, module: nn.Module, matrices: Callable[[str, torch.Tensor], bool] = lambda *_: False
    ) -> None:
        self.module, self.step = module, 0
        self.weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        chosen = [value for name, value in self.weights.items() if matrices(name, value)]
        kept = {id(value) for value in chosen}
        others = [value for value in self.weights.values() if id(value) not in kept]
        self._optimisers: list[tuple[torch.optim.Optimizer, float]] = [
            (
                torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
                1.0,
            )
        ]
        if chosen:
            self._optimisers.append((Muon(chosen, lr=1.0), MUON_FACTOR))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.weights.values())).device

    def update(self, loss: torch.Tensor, rate: float) -> None:
        """One step down a loss."""
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimiser, factor in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * rate
            with precision(self.device):
                optimiser.step()
            optimiser.zero_grad()
        decay = min(DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            current = [value.detach() for value in self.weights.values()]
            torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)
        self.step += 1

    def load_average(self, module: nn.Module) -> None:
        """Give the averaged weights to a module of the same weights."""
        there = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                there[name].copy_(value)

    def settle(self) -> dict[str, torch.Tensor]:
        """Arrays to store; training goes on from these, as it would after reading them."""
        stored = self._stored()
        self.restore(stored)
        return stored

    def _stored(self) -> dict[str, torch.Tensor]:
        weights = short(self.weights)
        apart = {name: value - weights[name].float() for name, value in self.average.items()}
        stored = named("weights", weights) | named("average", coded(apart))
        for kind, code in MOMENTS.items():
            moments = {
                name: state[kind]
                for name, value in self.weights.items()
                if kind in (state := self._state(value))
            }
            stored |= named(kind, code(moments))
        return stored | {"step": torch.tensor(self.step)}

    def _state(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        for optimiser, _ in self._optimisers:
            if weight in optimiser.state:
                state: dict[str, torch.Tensor] = optimiser.state[weight]
                return state
        return {}

    @torch.no_grad()
    def restore(self, stored: Arrays) -> None:
        """Take up arrays that :meth:`settle` gave. Raises KeyError for those of another module."""
        self.step = int(stored["step"])
        weights, apart = under("weights", stored), decoded(under("average", stored))
        for name, value in self.weights.items():
            value.copy_(weights[name])
            self.average[name].copy_(value + apart[name].to(value.device))
        for optimiser, _ in self._optimisers:
            optimiser.state.clear()
        moments = {kind: decoded(under(kind, stored)) for kind in MOMENTS}
        for optimiser, _ in self._optimisers:
            for group in optimiser.param_groups:
                for weight in group["params"]:
                    self._take_up(optimiser, weight, moments)

    def _take_up(
        self,
        optimiser: torch.optim.Optimizer,
        weight: torch.Tensor,
        moments: Mapping[str, Arrays],
    ) -> None:
        name = next(name for name, value in self.weights.items() if value is weight)
        state = {
            kind: arrays[name].to(weight.device)
            for kind, arrays in moments.items()
            if name in arrays
        }
        if "exp_avg" in state:
            state["step"] = torch.tensor(float(self.step), device=weight.device)
        if state:
            optimiser.state[weight] = state
