"""Feature caching in a plan: which steps run the whole network, and what predicts the others.

Beside the refinements, below the stages. Which step is full and which a bypass is decided here,
ahead of time, so that no device has to be waited for to decide it; what a bypass starts from is
predicted by ``run/cache/``, whose predictors register their traits here when the package is
imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_args

from fresco_trt.errors import InvalidPlan, PlanError
from fresco_trt.plan.config import NONE, CacheConfig
from fresco_trt.plan.reading import REMAKE, choice, record, text, whole

Action = Literal["full", "bypass"]
CacheSite = Literal["final", "trunk", "velocity"]
Predicts = Literal["feature", "velocity"]

ACTIONS: tuple[Action, ...] = get_args(Action)
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

NO_CACHE = CacheConfig()

_LETTERS: Mapping[str, Action] = {"F": "full", "B": "bypass"}
_KEYS = ("name", "max_order", "site")


# --- what predictors are ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheTraits:
    """What a predictor of ``run/cache/`` is and needs, for whoever plans, builds or measures.

    ``orders`` of extrapolation that it has, ``default_order`` among them (0: none). It ``predicts``
    a feature, at one of ``sites``, of which the first is the default; or, at the site "velocity",
    what the whole network gives. ``needs_basis``: an SVD basis of the model's features.
    ``needs_whole_grid``: tokens of one size. A state holds at most ``kept`` features [N,H], and one
    more for each order. ``interval`` and ``warmup_steps`` are its own defaults, None for those that
    follow from the number of stages. Raises ValueError for traits that contradict one another.
    """

    name: str
    orders: tuple[int, ...]
    default_order: int
    predicts: Predicts = "feature"
    needs_basis: bool = False
    needs_whole_grid: bool = False
    sites: tuple[CacheSite, ...] = ("final", "trunk")
    kept: int = 1
    interval: int | None = None
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name == NONE:
            raise ValueError(f"the name {self.name!r}; expected letters, digits and underscores")
        if self.default_order not in self.orders or min(self.orders) < 0:
            raise ValueError(f"{self.name}: order {self.default_order} of {self.orders}")
        velocity = self.predicts == "velocity"
        if not self.sites or any((site == "velocity") != velocity for site in self.sites):
            raise ValueError(f"{self.name}: a {self.predicts} at the sites {self.sites}")

    def settings(self) -> CachePlan:
        """The settings that are used unless others are asked for."""
        return CachePlan(name=self.name, max_order=self.default_order, site=self.sites[0])


_REGISTER: dict[str, CacheTraits] = {}

_BUILT_IN = "fresco_trt.run.cache.registry"
"""Where the package's own predictors register. Loaded by name when the first predictor is asked
for: planning stands below running, and a plan without a cache needs none of them."""


def _registered() -> dict[str, CacheTraits]:
    import_module(_BUILT_IN)
    return _REGISTER


def register_traits(traits: CacheTraits) -> None:
    """Make a predictor known to planning. Raises ValueError for a name that another has."""
    if _REGISTER.setdefault(traits.name, traits) != traits:
        raise ValueError(f"a predictor {traits.name!r} is registered; expected another name")


def cache_names(predicts: Predicts | None = None) -> tuple[str, ...]:
    """Names of all predictors, or of those that predict a feature or a velocity."""
    known = _registered().items()
    return tuple(name for name, traits in known if predicts in (None, traits.predicts))


def cache_traits(name: str) -> CacheTraits:
    """The traits of the predictor ``name``. Raises InvalidPlan for one that is not registered."""
    known = _registered()
    if name not in known:
        raise InvalidPlan(
            f"a cache by {name!r}",
            expected=f"one of {', '.join(known)}",
            fix=f"{REMAKE}; or register a predictor of your own first",
        )
    return known[name]


# --- what a plan holds ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """What predicts the feature of a bypass step: a predictor of ``run/cache/`` and its settings.

    ``max_order`` is that of the extrapolation (0: the last feature), and ``site`` one of
    :data:`FEATURES`. Raises InvalidPlan for a predictor that is not registered, and for an order or
    a site that it does not have.
    """

    name: str
    max_order: int
    site: CacheSite = "final"

    def __post_init__(self) -> None:
        traits = self.traits
        if self.max_order not in traits.orders:
            orders = " or ".join(map(str, traits.orders))
            raise _invalid(f"the cache {self.name} of order {self.max_order}", f"order {orders}")
        if self.site not in traits.sites:
            sites = " or ".join(map(repr, traits.sites))
            raise _invalid(f"the cache {self.name} at the site {self.site!r}", f"the site {sites}")

    @property
    def traits(self) -> CacheTraits:
        """What its predictor is and needs."""
        return cache_traits(self.name)

    @property
    def kept_features(self) -> int:
        """Features [N,H] that its predictor's state holds at most."""
        return self.traits.kept + self.max_order

    def to_json(self) -> dict[str, object]:
        """``{name, max_order, site}``."""
        return {key: getattr(self, key) for key in _KEYS}

    @classmethod
    def from_json(cls, value: object) -> CachePlan:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, _KEYS, "cache")
        return cls(
            name=text(found["name"], "cache name"),
            max_order=whole(found["max_order"], "cache max_order"),
            site=choice(found["site"], SITES, "cache site"),
        )


# --- which steps ------------------------------------------------------------------------------


def interval_actions(steps: int, interval: int, warmup_steps: int) -> tuple[Action, ...]:
    """Full for ``warmup_steps``, then one full step in each ``interval`` (TaylorSeer's rule).

    50 steps after a warm-up of 3 have 18, 12, 9 and 8 full ones at intervals 3, 5, 7 and 9. Raises
    PlanError for an interval or warm-up below 1.
    """
    for name, value in (("interval", interval), ("warmup_steps", warmup_steps)):
        if value < 1:
            raise PlanError(
                f"{name}={value} of a cache",
                expected="1 or more",
                fix=f"write it like {CacheConfig.option} {CacheConfig.example}",
            )
    return tuple(
        "full" if step < warmup_steps or (step - warmup_steps + 1) % interval == 0 else "bypass"
        for step in range(steps)
    )


def spelt_actions(spelling: str) -> tuple[Action, ...]:
    """The actions that a word like "FFBF" spells: F for full, B for bypass. Raises PlanError."""
    wrong = sorted(set(spelling) - set(_LETTERS))
    if wrong or not spelling:
        raise PlanError(
            f"the actions {spelling!r}",
            expected="a word of F (full) and B (bypass), one letter a step",
            fix="write them like actions=FFBF+FBF: one word a stage",
        )
    return tuple(_LETTERS[letter] for letter in spelling)


def spelling_of(actions: Sequence[Action]) -> str:
    """Inverse of :func:`spelt_actions`."""
    return "".join("F" if action == "full" else "B" for action in actions)


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
