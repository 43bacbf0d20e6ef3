"""SpotEdit and RegionE with a model's own weights: what else leaves out what an edit leaves alone.

    peers = EditingPeers(facts, transformer, decoder, size)
    made = peers.draw(RegionE.at(14), conditioning, seed)  # its pixels, seconds, FLOPs and mask

Both are training-free and draw by the plain schedule, with some tokens left out of some steps, so
they take the noise of a plain edit, its conditioning and its codec. Their rules are in
``editing_rules.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.editing_rules import STEPS, Course
from bench.editing_rules import RegionE as RegionE
from bench.editing_rules import SpotEdit as SpotEdit
from bench.kept_tokens import KeptTransformer
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.registry import family_of
from fresco_trt.plan.making import make_plan
from fresco_trt.run.denoise import HeldPatchifier
from fresco_trt.run.noise import NoisePyramid
from fresco_trt.run.positions import whole_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from fresco_trt.models.family import Decoder
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.editing import Features
    from fresco_trt.run.request import Conditioning


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PeerEdit:
    """What a peer made of an edit: pixels uint8 [H,W,3], ``latents`` [1,C,h,w], the ``mask`` of
    what it touched at last, bool [H,W], and FLOPs of its transformer.

    ``seconds`` is from the noise to the latents, as a result's ``seconds.denoise``; of these
    ``engine_seconds`` are inside the transformer and ``judging`` inside the decoder, where a rule
    looks at what differs.
    """

    pixels: npt.NDArray[np.uint8]
    latents: Tensor
    mask: npt.NDArray[np.bool_]
    flops: float
    seconds: float
    engine_seconds: float
    judging: float


class EditingPeers:
    """Draws edits by the rules of others, at one size.

    ``transformer`` is of a model of the FLUX family that edits one picture, on ``device``; its
    attentions are changed for good. ``decoder`` is read for pixels and for what a rule compares.
    One edit is drawn at a time. Raises IncompatibleOptions for another model.
    """

    def __init__(
        self,
        facts: ModelFacts,
        transformer: Any,
        decoder: Decoder,
        size: Size,
        device: torch.device | str = "cpu",
    ) -> None:
        if facts.family != "flux" or facts.references != 1:
            raise IncompatibleOptions(
                f"--model {facts.name}",
                expected="a model of the FLUX family that edits one picture",
                fix="pass one, such as flux-kontext",
            )
        self._facts, self._size, self._device = facts, size, device
        self._model, self._decoder = KeptTransformer(transformer), decoder
        self._plans: dict[int, StagePlan] = {}
        self._patchifier: HeldPatchifier | None = None  # of the first text's length

    def draw(self, rule: SpotEdit | RegionE, given: Conditioning, seed: int) -> PeerEdit:
        """An edit of the source in ``given``, which is batch 1, from the noise of a seed."""
        judging = 0.0

        def features(latents: Tensor) -> Sequence[Tensor]:
            nonlocal judging
            began = perf_counter()
            maps = [each.to(latents.device) for each in self._decoder.features(latents)]
            judging += perf_counter() - began
            return maps

        plan = self._plan(rule.steps)
        began = perf_counter()
        course = self._course(given, seed, plan, features)
        ended = rule.edit(course)
        latents = course.patchifier.unpack(ended.tokens, course.grid).cpu()
        seconds = perf_counter() - began
        rows, columns = course.grid.rows, course.grid.columns
        edited = ended.edited.reshape(rows, columns).cpu().numpy()
        pixels = self._decoder(latents)[0]
        side = pixels.shape[0] // rows
        return PeerEdit(
            pixels=pixels,
            latents=latents,
            mask=edited.repeat(side, axis=0).repeat(side, axis=1),
            flops=self._flops(course, given.inputs["text"].shape[1]),
            seconds=seconds,
            engine_seconds=course.velocities.seconds,
            judging=judging,
        )

    def fitted_gamma(self, edits: Sequence[Conditioning]) -> tuple[float, ...]:
        """What this model has for RegionE's gamma, which is another's: the factors by which a
        step's velocity comes nearest to its successor's, on average over plain edits.
        """
        found: list[list[float]] = []
        for seed, given in enumerate(edits):
            course = self._course(given, seed, self._plan(STEPS), self._decoder.features)
            tokens, before, factors = course.noise, None, list[float]()
            for sigma, after in pairwise(course.sigmas):
                velocity = course.velocities.whole(tokens, sigma)
                if before is not None:
                    factors.append(float((velocity * before).sum() / before.square().sum()))
                tokens, before = tokens + (after - sigma) * velocity, velocity
            found.append(factors)
        gaps = 1.0 + np.diff(course.sigmas[:-1])
        return tuple((np.mean(found, axis=0) / gaps).tolist())

    def _plan(self, steps: int) -> StagePlan:
        if steps not in self._plans:
            self._plans[steps] = make_plan(self._facts, stages=1, steps=steps, size=self._size)
        return self._plans[steps]

    def _course(
        self, given: Conditioning, seed: int, plan: StagePlan, features: Features
    ) -> Course:
        facts, given = self._facts, given.to(self._device)
        (stage,), (source,) = plan.stages, given.references
        if self._patchifier is None:
            plain = family_of(facts).patchifier(facts, given.inputs["text"].shape[1])
            self._patchifier = HeldPatchifier(plain, self._device)
        noise = NoisePyramid.of_plan(
            plan, seed, channels=facts.latent_channels, device=self._device
        )
        return Course(
            velocities=self._model.velocities(
                given,
                self._patchifier.pack(source),
                whole_tables(self._patchifier, stage.grid, references=1),
            ),
            noise=self._patchifier.pack(noise.field(stage.grid.scale)),
            sigmas=stage.sigmas,
            grid=stage.grid,
            patchifier=self._patchifier,
            features=features,
        )

    def _flops(self, course: Course, text: int) -> float:
        """As ``plan/cost.py`` counts them; tokens that are not in a pass are attended to."""
        facts, length = self._facts, 2 * course.grid.tokens + text
        projections = (4 + 2 * facts.mlp_ratio) * facts.hidden**2 * 2
        attention = 4 * facts.hidden * length
        taken = sum(tokens + text for tokens in course.velocities.passes)
        return float(facts.blocks * taken * (projections + attention))
