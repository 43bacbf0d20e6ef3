"""What draws a clip by a preset: static engines shared by all points, and what is around them.

What every point needs alike is made once for each clip and is not timed: the prompt encoded. Nor is
decoding, which is the same for all. The rest of a request is: noise, steps and transitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from bench.video.points import plan_of
from fresco_trt.bench.engines import EnginePool, plan_method, signatures_of
from fresco_trt.bench.scenes.clips import render_clip
from fresco_trt.models.registry import family_of
from fresco_trt.plan.sizes import frames_of
from fresco_trt.run.denoise import Denoiser

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from bench.video.points import ClipPoint
    from fresco_trt.backends.base import Backend, Progress
    from fresco_trt.bench.instrument import Draw
    from fresco_trt.bench.scenes.clips import Clip
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan

    Inputs = Mapping[str, Tensor]
    Frames = npt.NDArray[np.uint8]


class Engines:
    """Engines of a model over its pipeline folder, and the encoders and decoder around them.

    ``plans`` of the points are made when it is: raises what making them raises.
    """

    def __init__(
        self,
        facts: ModelFacts,
        folder: Path,
        library: Backend,
        size: Size,
        points: Sequence[ClipPoint],
    ) -> None:
        components = family_of(facts).components
        self.facts, self.folder, self.library, self.size = facts, folder, library, size
        self.plans = {
            point.name: plan_of(facts, point, size) for point in points if point.preset is not None
        }
        self._prompt = components.prompt_encoder(folder, facts.text_tokens)
        self._encode, self._decode = components.encoder(folder), components.decoder(folder)

    def draws(self, built: Path, scope: ExitStack, progress: Progress) -> dict[str, Draw]:
        """What draws, by the point's name, on engines that are built in a folder, those of each
        share of sparse attention in one of their own.
        """
        found: dict[str, Draw] = {}
        for share in dict.fromkeys(plan.sparse_attention for plan in self.plans.values()):
            plans = {
                name: plan for name, plan in self.plans.items() if plan.sparse_attention == share
            }
            pool = EnginePool(self.facts, self.library, built / _folder(share), scope)
            signatures = signatures_of(self.facts, plans.values())
            transformer = family_of(self.facts).weights.load(self.folder, self.facts)
            pool.build(signatures, transformer, progress)
            for name, plan in plans.items():
                found[name] = plan_method(self._denoiser(plan, pool))
        return found

    def _denoiser(self, plan: StagePlan, pool: EnginePool) -> Denoiser:
        return Denoiser.of(
            self.facts,
            plan,
            pool.runners(plan),
            text_tokens=self.facts.text_tokens,
            device=pool.device,
        )

    def prepared(self, clip: Clip) -> Inputs:
        """The engines' inputs of a clip's caption; the guidance is the model's own."""
        inputs = self._prompt(clip.caption)
        if self.facts.guidance_default is not None:
            inputs["guidance"] = torch.tensor([self.facts.guidance_default])
        return inputs

    def frames(self, latents: Tensor) -> Frames:
        """Frames uint8 [F,H,W,3] of normalised latents [1,C,f,h,w]."""
        found: Frames = self._decode(latents)[0]
        return found

    def true_frames(self, clip: Clip) -> Frames:
        """What a clip's caption describes, as frames of the size that is drawn."""
        return render_clip(clip, self.size[0], frames_of(self.size))

    def coded(self, clip: Clip) -> Frames:
        """The true clip through the codec, than which these engines draw none better."""
        return self.frames(self._encode(self.true_frames(clip)[None].copy()))


def _folder(share: float | None) -> str:
    return "dense" if share is None else f"keep-{share:g}"
