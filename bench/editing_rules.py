"""What SpotEdit and RegionE leave out of an edit, and when: their rules and published constants.

Those of the authors' code for FLUX.1-Kontext, at its 28 steps: SpotEdit (arXiv 2512.22323,
Biangbiang0321/SpotEdit 4830b06) and RegionE (arXiv 2510.25590, Peyton-Chen/RegionE 65924ef). With
fewer steps, for which they give none, steps are counted in proportion, halves rounded up, and no
kind of step is left out. :mod:`bench.editing_peers` draws by them.

Shapes: N tokens of the target and as many of the source, R rows of C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from fresco_trt.run.editing import cosine_discrepancy, feature_discrepancy

if TYPE_CHECKING:
    from bench.kept_tokens import Velocities
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.grid import Grid
    from fresco_trt.run.editing import Features

STEPS = 28
"""Those of the published constants."""

# fmt: off
GAMMA = (
    0.8352, 0.9986, 1.0090, 1.0097, 1.0161, 1.0152, 1.0160, 1.0173, 1.0177,
    1.0199, 1.0213, 1.0203, 1.0257, 1.0236, 1.0235, 1.0278, 1.0302, 1.0311,
    1.0352, 1.0371, 1.0391, 1.0459, 1.0498, 1.0581, 1.0693, 1.0866, 1.1090,
)
# fmt: on
"""RegionE's for FLUX.1-Kontext: a step's velocity is its predecessor's, times this and one plus the
(negative) change of sigma."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Course:
    """One edit before it is drawn: ``noise`` [1,N,C], falling ``sigmas`` from 1 to 0, and what the
    rules ask. ``features`` are the decoder's.
    """

    velocities: Velocities
    noise: Tensor
    sigmas: tuple[float, ...]
    grid: Grid
    patchifier: Patchifier
    features: Features

    def maps(self, tokens: Tensor) -> Sequence[Tensor]:
        """The decoder's features of clean tokens [1,N,C]."""
        return self.features(self.patchifier.unpack(tokens, self.grid))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ended:
    """Clean ``tokens`` [1,N,C], and which of them were edited at last, bool [N]."""

    tokens: Tensor
    edited: Tensor


# --- SpotEdit ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotEdit:
    """Before each step the clean estimate is compared with the source by the decoder's features;
    tokens below ``threshold`` sit the step out, and so do all of the source.

    ``initial`` steps and those of ``resets``, counted from 0, take every token. ``dilation`` is how
    far around them edited tokens make others edited. A token that sits out moves on by its last
    velocity, and ends as the source; next to an edited one it does so by ``smoothing`` only, in its
    code's order of operations by all of it (1.0). Its code's further blend of kept keys with those
    of the source has a weight that is 1 to five digits, so there is none here. The features of the
    source are computed once an edit, which its code means to do.
    """

    steps: int = STEPS
    threshold: float = 0.2
    initial: int = 4
    resets: tuple[int, ...] = (13, 22)
    dilation: int = 0
    smoothing: float = 0.8

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if not 1 <= self.initial <= self.steps:
            raise ValueError(f"initial={self.initial}; expected from 1 to {self.steps} steps")
        if not 0.0 <= self.smoothing <= 1.0:
            raise ValueError(f"smoothing={self.smoothing:g}; expected from 0 to 1")

    @classmethod
    def at(cls, steps: int) -> Self:
        """With fewer steps: the initial ones and the resets in proportion."""
        published = cls()
        return cls(
            steps=steps,
            initial=max(1, in_proportion(published.initial, steps)),
            resets=tuple(in_proportion(reset, steps) for reset in published.resets),
        )

    def edit(self, course: Course) -> Ended:
        """Draw an edit; a host that waits is told which tokens are in, each step."""
        tokens, source, velocity = course.noise, course.velocities.source, course.noise
        before, clean = course.maps(source), tokens
        edited = tokens.new_ones(tokens.shape[1], dtype=torch.bool)
        for step, (sigma, after) in enumerate(pairwise(course.sigmas)):
            touched = torch.ones_like(edited)
            if step >= self.initial and step not in self.resets:
                scores = feature_discrepancy(course.maps(clean), before, course.grid)
                edited = touched = dilated(scores >= self.threshold, course.grid, self.dilation)
            places = touched.nonzero().flatten()
            if len(places) == len(touched):
                velocity = course.velocities.whole(tokens, sigma)
            elif len(places):
                among = course.velocities.some(tokens[:, places], places, sigma)
                velocity = velocity.index_copy(1, places, among)
            clean = tokens - sigma * velocity
            tokens = tokens + (after - sigma) * velocity
        return Ended(
            tokens=settled(tokens, source, edited, course.grid, self.smoothing), edited=edited
        )


def settled(tokens: Tensor, source: Tensor, edited: Tensor, grid: Grid, share: float) -> Tensor:
    """Tokens [1,N,C] where they are ``edited``, bool [N], and the source's elsewhere; beside edited
    ones the source's by ``share``.
    """
    beside = dilated(edited, grid, 1).logical_and(~edited)[:, None]
    blended = torch.where(beside, torch.lerp(tokens, source, share), source)
    return torch.where(edited[:, None], tokens, blended)


# --- RegionE ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionE:
    """After ``warmup`` steps the clean estimate is compared with the source by the cosine of their
    tokens: up to ``threshold`` they are edited, single ones dropped and the rest grown. The others
    jump to the next step that takes all tokens, in one step by the velocity that they have.

    Those are, of ``refreshes`` counted from 1, and the last ``post``. In between the edited tokens
    alone are in the sequence, and a step's velocity is the last computed one times its decay while
    the decay since is within ``cache_threshold``; right after the warm-up it is computed. ``gamma``
    is of 28 steps.
    """

    steps: int = STEPS
    threshold: float = 0.93
    warmup: int = 6
    refreshes: tuple[int, ...] = (16,)
    post: int = 2
    cache_threshold: float = 0.04
    gamma: tuple[float, ...] = GAMMA

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        whole = (self.warmup, *self.refreshes, self.steps - self.post + 1)
        if not (self.warmup >= 1 <= self.post and all(b - a > 1 for a, b in pairwise(whole))):
            raise ValueError(
                f"warmup={self.warmup}, refreshes={self.refreshes} and post={self.post} of"
                f" {self.steps} steps; expected one or more of the first and the last, and a step"
                " or more between each two"
            )
        if len(self.gamma) != STEPS - 1:
            raise ValueError(f"{len(self.gamma)} numbers for gamma; expected {STEPS - 1}")

    @classmethod
    def at(cls, steps: int, gamma: tuple[float, ...] = GAMMA) -> Self:
        """With fewer steps: each kind of step in proportion, and as steps are longer by as much a
        decay as many times as large is allowed.
        """
        published = cls()
        return cls(
            steps=steps,
            warmup=max(1, in_proportion(published.warmup, steps)),
            refreshes=tuple(in_proportion(each, steps) for each in published.refreshes),
            post=max(1, in_proportion(published.post, steps)),
            cache_threshold=published.cache_threshold * STEPS / steps,
            gamma=gamma,
        )

    def edit(self, course: Course) -> Ended:
        """Draw an edit; the host waits once, to hear which tokens are edited."""
        tokens, source, sigmas = course.noise, course.velocities.source, course.sigmas
        meetings = [each - 1 for each in self.refreshes] + [self.steps - self.post]
        jumps = dict(pairwise([self.warmup - 1, *meetings]))
        computed = self.computed(sigmas)
        edited = tokens.new_ones(tokens.shape[1], dtype=torch.bool)
        places, velocity, decays = torch.empty(0), tokens, self.decays(sigmas)
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            if self.is_whole(step):
                moved = course.velocities.whole(tokens, sigma)
                if step == self.warmup - 1:
                    edited = self.edited(tokens - sigma * moved, source, course.grid)
                    places = edited.nonzero().flatten()
                ends = tokens.new_full((len(edited), 1), after)
                if step in jumps:
                    ends = torch.where(edited[:, None], ends, sigmas[jumps[step]])
                    velocity = moved[:, places]
                tokens = tokens + (ends - sigma) * moved
            elif len(places):
                inside = tokens[:, places]
                if step in computed:
                    moved = velocity = course.velocities.some(inside, places, sigma)
                else:
                    moved = velocity * decays[step - 1]
                tokens = tokens.index_copy(1, places, inside + (after - sigma) * moved)
        return Ended(tokens=tokens, edited=edited)

    def is_whole(self, step: int) -> bool:
        """Whether a step, counted from 0, takes every token."""
        late = step >= self.steps - self.post
        return step < self.warmup or step + 1 in self.refreshes or late

    def edited(self, clean: Tensor, source: Tensor, grid: Grid) -> Tensor:
        """Which tokens differ from the source, bool [N]: without those that have a neighbour that
        does not, and then with all up to two tokens away.
        """
        differs = cosine_discrepancy(clean, source) >= 1.0 - self.threshold
        return dilated(eroded(differs, grid), grid, 2)

    def decays(self, sigmas: Sequence[float]) -> tuple[float, ...]:
        """What each step's velocity but the first's is, in parts of its predecessor's. The gamma of
        a longer step is the product of those that it spans.
        """
        logs = np.concatenate([[0.0], np.cumsum(np.log(self.gamma))])
        places = np.arange(self.steps) * STEPS / self.steps
        spanned = np.exp(np.diff(np.interp(places, np.arange(STEPS), logs)))
        return tuple(
            float(gamma * (1.0 + after - sigma))
            for gamma, (sigma, after) in zip(spanned, pairwise(sigmas[:-1]), strict=True)
        )

    def computed(self, sigmas: Sequence[float]) -> frozenset[int]:
        """The steps among the edited tokens whose velocity is computed, not predicted."""
        found, share = set[int](), 1.0
        for step, decay in enumerate(self.decays(sigmas), start=1):
            if self.is_whole(step):
                share = 1.0
                continue
            share *= decay
            if step == self.warmup or decay >= 1.0 or 1.0 - share > self.cache_threshold:
                found.add(step)
                share = 1.0
        return frozenset(found)


# --- tokens as a picture ----------------------------------------------------------------------


def dilated(mask: Tensor, grid: Grid, reach: int) -> Tensor:
    """Tokens up to ``reach`` rows and columns from one of ``mask``, bool [N]."""
    places = mask.float().reshape(1, 1, grid.rows, grid.columns)
    return max_pool2d(places, 2 * reach + 1, stride=1, padding=reach).flatten() > 0


def eroded(mask: Tensor, grid: Grid) -> Tensor:
    """Tokens of ``mask``, bool [N], whose four neighbours are in it too; outside there are none."""
    inside = pad(mask.reshape(grid.rows, grid.columns), (1, 1, 1, 1), value=False)
    above, below = inside[:-2, 1:-1], inside[2:, 1:-1]
    left, right = inside[1:-1, :-2], inside[1:-1, 2:]
    return (inside[1:-1, 1:-1] & above & below & left & right).flatten()


# --- numbers of steps ---------------------------------------------------------------------------


def in_proportion(count: int, steps: int) -> int:
    """``count`` of 28 steps as one of so many; halves are rounded up."""
    return math.floor(count * steps / STEPS + 0.5)


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= STEPS:
        raise ValueError(f"steps={steps}; expected from 1 to {STEPS}")
