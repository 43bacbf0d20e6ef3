"""What the bench compares: methods, the settings that they draw by, and points, which name both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fresco_trt.bench.plain import Plain
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.recipes import RECIPES

Method = Literal[
    "plain",
    "few-step",
    "taylorseer",
    "first-block",
    "cache-dit",
    "spectral",
    "ralu",
    "cache",
    "fresco",
]

METHODS: tuple[Method, ...] = get_args(Method)

# Okabe and Ito's colours, told apart by people who see fewer of them.
COLOURS: Mapping[Method, str] = {
    "plain": "#000000",
    "few-step": "#7f7f7f",
    "taylorseer": "#56b4e9",
    "first-block": "#0072b2",
    "cache-dit": "#cc79a7",
    "spectral": "#009e73",
    "ralu": "#e69f00",
    "cache": "#f0e442",
    "fresco": "#d55e00",
}
"""What a method is drawn in, wherever it is."""

PEERS: tuple[Method, ...] = ("taylorseer", "first-block", "cache-dit", "spectral", "ralu")
"""What a user would pick instead; few-step is the control beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorSeer:
    """diffusers' TaylorSeer hook: a full step each ``interval``, the others extrapolated.

    ``lite`` predicts the whole network (its "lite mode"); without it, attention alone, as the
    hook does unless told otherwise. ``mu`` replaces the model's log-shift, here and in the others.
    """

    steps: int
    interval: int
    order: int = 1
    lite: bool = True
    mu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBlock:
    """diffusers' FirstBlockCache hook: skips the rest where the first block changed little."""

    steps: int
    threshold: float
    mu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDit:
    """cache-dit's DBCache, and with ``taylor`` its TaylorSeer calibrator."""

    steps: int
    threshold: float
    taylor: bool
    mu: float | None = None


Settings = Plain | TaylorSeer | FirstBlock | CacheDit | Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operating point. ``model`` is what draws, None for the model that is measured;
    ``preset`` names the setting, ``ablation`` what was changed in it, ``variant`` who carries it
    out, and ``quant`` the recipe that its engines are quantised by; ``quick`` points are measured
    in the short version too.
    """

    method: Method
    settings: Settings
    model: str | None = None
    preset: str | None = None
    ablation: str | None = None
    variant: str | None = None
    quant: str | None = None
    quick: bool = False

    @property
    def name(self) -> str:
        """All that tells a point from the others, for people and for files."""
        parts = (self.method, self.model, self.preset, self.ablation, self.variant, self.quant)
        return ", ".join(part for part in parts if part is not None)

    @property
    def twin(self) -> str | None:
        """The name of the same point unquantised, None for one that is."""
        return None if self.quant is None else replace(self, quant=None).name

    @property
    def precision(self) -> str:
        """What its engines' linear layers are multiplied in."""
        return "fp32" if self.quant is None else RECIPES[self.quant].precision

    @property
    def nfe(self) -> int:
        """Sampling steps, those that a cache answers included, as the papers' tables count."""
        steps = self.settings.steps
        return steps if isinstance(steps, int) else sum(steps)
