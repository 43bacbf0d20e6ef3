"""Feature caching in a plan: which steps run the whole network, and what predicts the others.

Beside the refinements, below the stages. Which step is full and which a bypass is decided here,
ahead of time, so that no device has to be waited for to decide it; what a bypass starts from is
predicted by ``run/cache/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fresco_trt.errors import InvalidPlan, PlanError
from fresco_trt.plan.reading import REMAKE, choice, number, record, text, whole

Action = Literal["full", "bypass"]
CacheName = Literal["reuse", "taylor", "hicache", "svd", "freqca", "coarse_velocity"]
CacheAxis = Literal["step", "sigma"]
CacheSite = Literal["final", "trunk", "velocity"]

ACTIONS: tuple[Action, ...] = get_args(Action)
CACHES: tuple[CacheName, ...] = get_args(CacheName)
AXES: tuple[CacheAxis, ...] = get_args(CacheAxis)
SITES: tuple[CacheSite, ...] = get_args(CacheSite)

FEATURES: Mapping[CacheSite, str] = {
    "final": "feature",
    "trunk": "residual",
    "velocity": "velocity",
}
"""What is cached, as the graphs call it. "final": the image tokens after the last block; a bypass
runs the final norm and projection. "trunk": what all blocks after the first add to the image
tokens; a bypass runs the first block too, as DBCache does, on this step's own latents. "velocity":
what the whole network gave; a bypass runs the whole network too, on a coarser grid."""

VARIANTS: Mapping[CacheName, tuple[str, ...]] = {
    "reuse": ("",),
    "taylor": ("", "published"),
    "hicache": ("",),
    "svd": ("", "literal", "slope"),
    "freqca": ("",),
    "coarse_velocity": ("",),
}
"""Readings of a method that its paper leaves open; "" is the one that is used unless asked."""

ORDERS: Mapping[CacheName, tuple[int, ...]] = {
    "reuse": (0,),
    "taylor": (1, 2, 3),
    "hicache": (1, 2, 3),
    "svd": (1, 2, 3),
    "freqca": (1, 2, 3),
    "coarse_velocity": (0,),
}
"""Orders of extrapolation that each predictor has."""

LARGEST_ORDER = max(max(orders) for orders in ORDERS.values())

VELOCITY_SITE = "the site 'velocity' for the cache coarse_velocity, and for no other"

_BY_STEP: tuple[CacheName, ...] = ("hicache", "freqca")

_LETTERS: Mapping[str, Action] = {"F": "full", "B": "bypass"}
_KEYS = ("name", "order", "scale", "axis", "variant", "site")


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """What predicts the feature of a bypass step: a predictor of ``run/cache/`` and its settings.

    ``order`` is that of the extrapolation (0: the last feature), ``scale`` the contraction of a
    Hermite basis, ``axis`` what differences are taken over, ``variant`` one of :data:`VARIANTS`,
    and ``site`` one of :data:`FEATURES`; that of coarse_velocity, and of no other, is velocity.
    Raises InvalidPlan.
    """

    name: CacheName
    order: int = 2
    scale: float = 0.5
    axis: CacheAxis = "step"
    variant: str = ""
    site: CacheSite = "final"

    def __post_init__(self) -> None:
        named = ((self.name, CACHES), (self.axis, AXES), (self.site, SITES))
        for value, options in named:
            if value not in options:
                raise _invalid(f"a cache by {value!r}", f"one of {', '.join(options)}")
        if (self.name, self.site) == ("svd", "trunk"):
            raise _invalid("the cache svd at the trunk", "the site 'final', where it is measured")
        if (self.name == "coarse_velocity") != (self.site == "velocity"):
            raise _invalid(f"the cache {self.name} at the site {self.site!r}", VELOCITY_SITE)
        if self.variant not in VARIANTS[self.name]:
            names = ", ".join(repr(each) for each in VARIANTS[self.name])
            raise _invalid(f"the variant {self.variant!r} of {self.name}", f"one of {names}")
        if not 0 <= self.order <= LARGEST_ORDER:
            raise _invalid(f"a cache of order {self.order}", f"0 to {LARGEST_ORDER}")
        if self.axis == "sigma" and self.name in _BY_STEP:
            # At order 2 a constant, -2 scale^2, weighs a difference per unit of the axis squared:
            # the forecast depends on the unit, and the published one counts steps.
            raise _invalid(f"{self.name} over sigma", "the axis 'step' for a Hermite basis")
        if not 0.0 < self.scale <= 1.0:
            raise _invalid(f"a cache with scale {self.scale}", "a number above 0 and up to 1")

    def to_json(self) -> dict[str, object]:
        """``{name, order, scale, axis, variant, site}``."""
        return {key: getattr(self, key) for key in _KEYS}

    @classmethod
    def from_json(cls, value: object) -> CachePlan:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, _KEYS, "cache")
        return cls(
            name=choice(found["name"], CACHES, "cache name"),
            order=whole(found["order"], "cache order"),
            scale=number(found["scale"], "cache scale"),
            axis=choice(found["axis"], AXES, "cache axis"),
            variant=text(found["variant"], "cache variant"),
            site=choice(found["site"], SITES, "cache site"),
        )


DEFAULTS: Mapping[CacheName, CachePlan] = {
    "reuse": CachePlan(name="reuse", order=0),
    "taylor": CachePlan(name="taylor", order=2),
    "hicache": CachePlan(name="hicache", order=2, scale=0.5),
    "svd": CachePlan(name="svd", order=2),
    "freqca": CachePlan(name="freqca", order=2, scale=0.71),
    "coarse_velocity": CachePlan(name="coarse_velocity", order=0, site="velocity"),
}
"""The settings of the papers: order 2, HiCache's contraction for FLUX.1-dev, FreqCa's for its high
band (arXiv 2508.16984, 2510.08669). coarse_velocity is this project's own."""

FEATURE_CACHES: tuple[CacheName, ...] = tuple(
    name for name, settings in DEFAULTS.items() if settings.site != "velocity"
)
"""Those that predict a feature, by a predictor of ``run/cache/``; coarse_velocity predicts none."""

NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheChoice:
    """What was asked for: a predictor's name or "none", and which steps it answers.

    Either ``interval`` and ``warmup`` (None: the default for so many stages) or ``actions``, one
    word a stage, F for a full step and B for a bypass. ``site`` is where features are taken, None
    for the final one, and ``order`` that of the extrapolation, None for the predictor's own.
    """

    name: str = NONE
    interval: int | None = None
    warmup: int | None = None
    actions: tuple[str, ...] | None = None
    site: str | None = None
    order: int | None = None


NO_CACHE = CacheChoice()


def kept_features(cache: CachePlan) -> int:
    """Features [N,H] that a predictor's state holds at most.

    One a difference; SVD-Cache one residual and FreqCa one low band besides, the principal parts
    being narrower than a feature.
    """
    return cache.order + (2 if cache.name in ("svd", "freqca") else 1)


def interval_actions(steps: int, interval: int, warmup: int) -> tuple[Action, ...]:
    """Full for ``warmup`` steps, then one full step in each ``interval`` (TaylorSeer's rule).

    50 steps after a warm-up of 3 have 18, 12, 9 and 8 full ones at intervals 3, 5, 7 and 9. Raises
    PlanError for an interval or warm-up below 1.
    """
    for name, value in (("--interval", interval), ("--warmup", warmup)):
        if value < 1:
            raise PlanError(
                f"{name} {value}", expected="1 or more", fix=f"pass {name} with such a number"
            )
    return tuple(
        "full" if step < warmup or (step - warmup + 1) % interval == 0 else "bypass"
        for step in range(steps)
    )


def spelt_actions(spelling: str) -> tuple[Action, ...]:
    """The actions that a word like "FFBF" spells: F for full, B for bypass. Raises PlanError."""
    wrong = sorted(set(spelling) - set(_LETTERS))
    if wrong or not spelling:
        raise PlanError(
            f"the actions {spelling!r}",
            expected="a word of F (full) and B (bypass), one letter a step",
            fix="pass --actions like FFBF,FBF: one word a stage",
        )
    return tuple(_LETTERS[letter] for letter in spelling)


def spelling_of(actions: Sequence[Action]) -> str:
    """Inverse of :func:`spelt_actions`."""
    return "".join("F" if action == "full" else "B" for action in actions)


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
