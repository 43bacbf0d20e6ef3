"""A mixed grid: which coarse tokens are expanded, and the way into, through and out of it.

Between the stages of :mod:`fresco_trt.run.sampler`, beside :mod:`fresco_trt.run.transition`. Its
tokens are one sequence, the engine's: the coarse tokens that are kept, in raster order, then the
four children of each refined one in the order of :func:`fresco_trt.run.resample.children_of`.
Lifts and noise are defined on whole pictures, so a transition takes the sequence apart into a
picture of each grid, applies the whole-grid rules to both, and puts together what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from fresco_trt.run.resample import block_mean, children_of, lift_nearest
from fresco_trt.run.transition import apply_transition, stay

if TYPE_CHECKING:
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import Transition
    from fresco_trt.run.noise import NoisePyramid


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixed:
    """The places of the tokens of a mixed stage; ``fine`` doubles ``coarse``.

    ``kept`` and ``refined`` are ascending raster indices on the coarse grid, int64 [K] and [P],
    K + P = N; ``children`` [4P] are raster indices on the fine one. All three are on the latents'
    device, where they were found: only their lengths are known to the host.
    """

    coarse: Grid
    fine: Grid
    kept: Tensor
    refined: Tensor
    children: Tensor

    @classmethod
    def from_mask(cls, coarse: Grid, fine: Grid, expanded: Tensor, count: int) -> Self:
        """From the mask of expanded coarse tokens, bool [N], and how many these are."""
        # A stable sort, because picking by mask would make the host wait for the count.
        order = expanded.to(torch.int8).argsort(stable=True)
        kept = coarse.tokens - count
        refined = order[kept:]
        return cls(
            coarse=coarse,
            fine=fine,
            kept=order[:kept],
            refined=refined,
            children=children_of(refined, coarse, fine),
        )

    @classmethod
    def whole(cls, coarse: Grid, fine: Grid, device: torch.device) -> Self:
        """The coarse grid itself: nothing is expanded yet."""
        expanded = torch.zeros(coarse.tokens, dtype=torch.bool, device=device)
        return cls.from_mask(coarse, fine, expanded, 0)

    @property
    def tokens(self) -> int:
        """Length of the sequence: K + 4P."""
        return len(self.kept) + len(self.children)

    def candidates(self) -> Tensor:
        """Which coarse tokens are not expanded, bool [N]."""
        mask = torch.zeros(self.coarse.tokens, dtype=torch.bool, device=self.kept.device)
        return mask.index_fill(0, self.kept, True)

    def split(self, tokens: Tensor, patchifier: Patchifier) -> tuple[Tensor, Tensor]:
        """Latents of the coarse and of the fine grid, [1,C,(F),H,W] each, from ``tokens``
        [1,K+4P,D].

        Where the coarse picture has no token of its own it holds the 2x2 block means of the
        children; where the fine one has none, zeros. Linear, so what it does to latents and
        velocity it does to every clean estimate.
        """
        own, children = tokens[:, : len(self.kept)], tokens[:, len(self.kept) :]
        dense = tokens.new_zeros(1, self.fine.tokens, tokens.shape[-1])
        fine = patchifier.unpack(dense.index_copy(1, self.children, children), self.fine)
        means = patchifier.pack(block_mean(fine, 2))
        return patchifier.unpack(means.index_copy(1, self.kept, own), self.coarse), fine

    def join(self, coarse: Tensor, fine: Tensor, patchifier: Patchifier) -> Tensor:
        """Inverse of :meth:`split`: this stage's ``tokens`` from a picture of each grid."""
        own = patchifier.pack(coarse).index_select(1, self.kept)
        children = patchifier.pack(fine).index_select(1, self.children)
        return torch.cat([own, children], dim=1)

    def overlay(self, below: Tensor, above: Tensor, patchifier: Patchifier) -> Tensor:
        """The fine picture ``below`` with the places of the children taken from ``above``."""
        children = patchifier.pack(above).index_select(1, self.children)
        return patchifier.unpack(
            patchifier.pack(below).index_copy(1, self.children, children), self.fine
        )

    def picture(self, tokens: Tensor, patchifier: Patchifier) -> Tensor:
        """All tokens as a fine picture [1,C,(F),H,W]; coarse ones are repeated over their place."""
        coarse, fine = self.split(tokens, patchifier)
        return self.overlay(lift_nearest(coarse, 2), fine, patchifier)

    def dense(self, tokens: Tensor, patchifier: Patchifier) -> Tensor:
        """All tokens as tokens of the coarse grid [1,N,D]; of children, the 2x2 block means."""
        return patchifier.pack(self.split(tokens, patchifier)[0])


def cross_mixed(
    transition: Transition,
    x: Tensor,
    v: Tensor,
    before: Mixed,
    pyramid: NoisePyramid,
    patchifier: Patchifier,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A picture of each grid, (coarse, fine), at ``transition.restart``.

    ``x`` and ``v`` are tokens [1,K+4P,D] of ``before`` at ``transition.sigma``. What stays coarse
    is to be read from the coarse picture, everything else from the fine one: there the tokens that
    were fine already keep their clean estimate, and all others are expanded by the whole-grid
    transition, over a coarse picture without holes, so that a lift may read neighbours. Raises
    ``ValueError`` as :func:`fresco_trt.run.transition.apply_transition`.
    """
    scale, scale_next = before.coarse.scale, before.fine.scale
    (x_coarse, x_fine), (v_coarse, v_fine) = (
        before.split(x, patchifier),
        before.split(v, patchifier),
    )
    # First of all, so that from a whole grid it draws what a transition of the whole grid draws.
    expanded = apply_transition(
        transition,
        x_coarse,
        v_coarse,
        pyramid,
        scale=scale,
        scale_next=scale_next,
        generator=generator,
    )
    kept = stay(transition, x_fine, v_fine, pyramid, scale=scale_next, generator=generator)
    coarse = stay(transition, x_coarse, v_coarse, pyramid, scale=scale, generator=generator)
    return coarse, before.overlay(expanded, kept, patchifier)
