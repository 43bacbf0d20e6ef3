"""From conditioning and a seed to sampler steps: noise, tokens and engines of one plan, put
together.

The one place where these meet. Pipelines, the verification, calibrations and the bench all draw
through it, so that a seed means the same picture in each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from fresco_trt.models.registry import family_of
from fresco_trt.run.editing import judge_of
from fresco_trt.run.noise import NoisePyramid, fresh_generator
from fresco_trt.run.request import Request
from fresco_trt.run.resample import LIFTS, lift_nearest
from fresco_trt.run.sampler import Step, steps_of
from fresco_trt.run.selection import Choice, select
from fresco_trt.run.transition import draws, ratio_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.captured import StageEnd
    from fresco_trt.run.editing import Features, Judge
    from fresco_trt.run.request import Conditioning


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Denoiser:
    """A plan, the runners of its engines, and what is the same for all requests to them.

    ``runners`` are entered by the caller; ``device`` is where their outputs live. ``basis`` [H,k]
    is for a plan whose cache needs one; ``choice`` chooses the tokens that are refined, by the
    plan's rules unless told otherwise; ``judge`` sees what an edit touches, for plans that ask.
    """

    facts: ModelFacts
    plan: StagePlan
    runners: Mapping[str, Runner]
    patchifier: Patchifier
    device: torch.device | str = "cpu"
    basis: Tensor | None = None
    choice: Choice = select
    judge: Judge | None = None

    @classmethod
    def of(
        cls,
        facts: ModelFacts,
        plan: StagePlan,
        runners: Mapping[str, Runner],
        *,
        text_tokens: int,
        device: torch.device | str = "cpu",
        basis: Tensor | None = None,
        choice: Choice = select,
        features: Features | None = None,
    ) -> Self:
        """With the patchifier of the model's family, its tables held on the device. ``features``,
        the decoder's, are what a plan of selective edits compares.
        """
        patchifier = HeldPatchifier(family_of(facts).patchifier(facts, text_tokens), device)
        judge = None
        if plan.edit is not None and features is not None:
            judge = judge_of(plan.edit.discrepancy, plan.stages[0].grid, patchifier, features)
        return cls(
            facts=facts,
            plan=plan,
            runners=runners,
            patchifier=patchifier,
            device=device,
            basis=basis,
            choice=choice,
            judge=judge,
        )

    def steps(
        self, conditioning: Conditioning, noise: int | Sequence[int] | Tensor
    ) -> Generator[Step, None, None]:
        """The sampler's steps of one request.

        ``noise`` is one seed a picture, or the field itself: latents [B,C,(F),H,W] of full size,
        float32 on the CPU, from which what is drawn at transitions follows too. Raises as
        :func:`fresco_trt.run.sampler.sample`.
        """
        return steps_of(self.request(conditioning, noise))

    def request(self, conditioning: Conditioning, noise: int | Sequence[int] | Tensor) -> Request:
        """One request, checked, with all that it reads on the device; takes and raises as
        :meth:`steps`.
        """
        plan, given = self.plan, len(conditioning.references)
        if given != self.facts.references:
            raise ValueError(
                f"{given} reference pictures for {self.facts.name};"
                f" expected {self.facts.references}, whose tokens its engines take"
            )
        if isinstance(noise, int | Sequence):
            seeds = noise
            pyramid = NoisePyramid.of_plan(
                plan, seeds, channels=self.facts.latent_channels, device=self.device
            )
        else:
            digest = hashlib.sha256(noise.contiguous().numpy().tobytes()).digest()
            seeds = int.from_bytes(digest[:7], "big")
            grid = plan.stages[0].grid
            pyramid = NoisePyramid.from_field(
                noise.to(self.device), coarsest=grid.scale, patch=grid.patch
            )
        return Request(
            plan=plan,
            runners=self.runners,
            conditioning=conditioning.to(self.device),
            pyramid=pyramid,
            patchifier=self.patchifier,
            generator=fresh_generator(seeds) if any(map(draws, plan.transitions)) else None,
            choice=self.choice,
            basis=self.basis,
            judge=self.judge,
            guide=family_of(self.facts).guide,
        )

    def whole(self, step: Step | StageEnd) -> Tensor:
        """Tokens [B,N,C] of full size from any step or stage: the sampler's own, or those of a
        coarser grid with every latent pixel repeated over its place.
        """
        final = self.plan.stages[-1].grid
        if step.mixed is not None:
            grid, latents = step.mixed.fine, step.mixed.picture(step.tokens, self.patchifier)
        elif (grid := self.plan.stages[step.stage].grid) != final:
            latents = self.patchifier.unpack(step.tokens, grid)
        else:
            return step.tokens
        repeated = lift_nearest(latents, ratio_of(grid.scale, final.scale))
        return self.patchifier.pack(repeated[..., : final.height, : final.width])

    def latents(self, step: Step | StageEnd) -> Tensor:
        """The latents [B,C,(F),H,W] of full size from the last step or stage. What an edit left
        coarse is lifted.
        """
        if step.mixed is None:
            return self.patchifier.unpack(step.tokens, self.plan.stages[-1].grid)
        coarse, fine = step.mixed.split(step.tokens, self.patchifier)
        lifted = LIFTS[self.plan.transitions[0].lift](coarse, 2)
        return step.mixed.overlay(lifted, fine, self.patchifier)


class HeldPatchifier:
    """A model's patchifier whose tables are made once and kept on the engines' device.

    Making them takes 30 ms for FLUX at 1024x1024, and moving them again would cost every step.
    Tables are the same tensors every time, on the device, and not to be written to.
    """

    def __init__(self, patchifier: Patchifier, device: torch.device | str) -> None:
        self._patchifier, self._device = patchifier, device
        self._positions: dict[tuple[Grid, int], Tensor] = {}
        self._tables: dict[bytes, Mapping[str, Tensor]] = {}

    def pack(self, latents: Tensor) -> Tensor:
        """As the patchifier's own."""
        return self._patchifier.pack(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As the patchifier's own."""
        return self._patchifier.unpack(tokens, grid)

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        """As the patchifier's own, by grid and image."""
        key = grid, image
        if key not in self._positions:
            self._positions[key] = self._patchifier.positions(grid, image)
        return self._positions[key]

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        """As the patchifier's own, by the values of ``positions``."""
        key = positions.numpy().tobytes()
        if key not in self._tables:
            made = self._patchifier.tables(positions)
            self._tables[key] = {name: value.to(self._device) for name, value in made.items()}
        return self._tables[key]
