"""Draws plans on shared engines, and times their steps. The only file here that runs a model.

Prompts are encoded once. A picture is of a prompt and a seed, both counted by its number, whichever
plan draws it, so that all of a number are compared with one many-step picture.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from fresco_trt.bench.engines import EnginePool, signatures_of
from fresco_trt.lower.calibrate.basis import Reference
from fresco_trt.lower.calibrate.spectral_change import measure_change_schedule
from fresco_trt.models.registry import family_of
from fresco_trt.run.denoise import Denoiser, HeldPatchifier
from fresco_trt.run.request import Conditioning
from fresco_trt.tune.cost import Kinds, medians, step_kinds

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.backends.base import Backend, Progress
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.sampler import Step
    from fresco_trt.tune.judge import Pixels


WALKED = 2
"""Prompts that changes are the mean of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is drawn and with what: a model, its weights as they were asked for, the pipeline folder
    around them, the engine library and the precision of its engines, and a folder for those. Of
    each picture the prompt, and for a model that edits the source.
    """

    facts: ModelFacts
    weights: str | None
    pipeline: Path
    backend: Backend
    precision: str
    engines: Path
    prompts: tuple[str, ...]
    sources: tuple[Image, ...] = ()


class ModelRunner:
    """Draws the picture of any number by any plan whose engines were built.

    Engines are loaded when a plan first needs them and freed by ``scope``.
    """

    def __init__(self, setup: Setup, scope: ExitStack) -> None:
        self.setup = setup
        components = family_of(setup.facts).components
        self._scope = scope
        self._pool = EnginePool(setup.facts, setup.backend, setup.engines, scope)
        self._device = setup.backend.describe().device
        self._patchifier = HeldPatchifier(
            family_of(setup.facts).patchifier(setup.facts, setup.facts.text_tokens), self._device
        )
        self._decoder = components.decoder(setup.pipeline)
        self._cases = list(_cases(setup))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return max(each.prompt_tokens or 1 for each in self._cases)

    def require(self, plans: Sequence[StagePlan], progress: Progress) -> str:
        """Build the engines of all plans, unless the folder has them; what became of them, in
        words. Raises what the backend's ``build`` raises, and ExportError.
        """
        setup = self.setup
        signatures = signatures_of(setup.facts, plans)
        if self._pool.has(signatures):
            return f"{len(signatures)} engines of an earlier run"
        shutil.rmtree(setup.engines, ignore_errors=True)
        progress("loading weights", 0.0)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setup.precision, torch.float32)
        weights = family_of(setup.facts).weights
        transformer = weights.load(setup.weights, setup.facts, dtype=dtype)
        self._pool.build(signatures, transformer, progress, precision=setup.precision)
        return f"{len(signatures)} engines built"

    def changes(self, plan: StagePlan, progress: Progress) -> list[tuple[float, float]]:
        """What SeaCache adds up on a plan of one stage, in full, at each of its sigmas: points
        (sigma, sum so far), the mean of :data:`WALKED` prompts. Runs the model without engines.
        """
        setup = self.setup
        progress("measuring changes", 0.0)
        transformer = family_of(setup.facts).weights.load(setup.weights, setup.facts)
        reference = Reference(
            facts=setup.facts,
            transformer=transformer,
            weights_sha256="",
            pipeline=setup.pipeline,
            prompts=setup.prompts[:WALKED],
            pictures=setup.sources[:WALKED],
        )
        (found,) = measure_change_schedule(reference, plan, (1.0,), progress=progress)
        sums = accumulate(found.changes[0], lambda total, each: total + (each or 0.0), initial=0.0)
        return list(zip(plan.stages[0].sigmas, list(sums)[1:], strict=False))

    # --- pictures ---------------------------------------------------------------------------------

    def draw(self, plan: StagePlan, number: int) -> tuple[Pixels, float]:
        """The picture uint8 [H,W,3] of a number by a plan, and the seconds of its denoising. Raises
        what the sampler raises.
        """
        denoiser = self._denoiser(plan)
        began = perf_counter()
        step = _last(denoiser.steps(self._cases[number], number))
        # Where engines run asynchronously, this copy is what waits for them.
        latents = denoiser.latents(step).cpu()
        seconds = perf_counter() - began
        return self._decoder(latents)[0], seconds

    def time(self, plans: Sequence[StagePlan], rounds: int, progress: Progress) -> dict[str, float]:
        """Median seconds of every kind of step that the plans have. They take turns, so that what
        else the machine does meets all of them; a first round warms up.
        """
        samples: list[tuple[Kinds, float]] = []
        for turn in range(rounds + 1):
            for place, plan in enumerate(plans):
                progress("timing engines", (turn + place / len(plans)) / (rounds + 1))
                found = list(zip(step_kinds(plan), self._seconds(plan), strict=True))
                samples += found if turn else []
        progress("timing engines", 1.0)
        return medians(samples)

    def _seconds(self, plan: StagePlan) -> Iterator[float]:
        """Wall seconds of each step, with the transition before it."""
        began = perf_counter()
        for _ in self._denoiser(plan).steps(self._cases[0], 0):
            if self._device == "cuda":
                torch.cuda.synchronize()
            now = perf_counter()
            yield now - began
            began = perf_counter()

    def _denoiser(self, plan: StagePlan) -> Denoiser:
        return Denoiser(
            facts=self.setup.facts,
            plan=plan,
            runners=self._pool.runners(plan),
            patchifier=self._patchifier,
            device=self._device,
        )


def _last(steps: Iterator[Step]) -> Step:
    found = None
    for step in steps:
        found = step
    if found is None:
        raise ValueError("a plan without a step; expected one or more")
    return found


def _cases(setup: Setup) -> Iterator[Conditioning]:
    """What each picture is drawn from, in order; a prompt is encoded once."""
    import numpy as np

    facts, components = setup.facts, family_of(setup.facts).components
    encode = components.prompt_encoder(setup.pipeline, facts.text_tokens)
    latents = components.encoder(setup.pipeline) if setup.sources else None
    guidance: dict[str, Tensor] = {}
    if facts.guidance_default is not None:
        guidance = {"guidance": torch.tensor([facts.guidance_default])}
    known: dict[tuple[str, bytes | None], Conditioning] = {}
    for prompt, source in zip_longest(setup.prompts, setup.sources):
        key = prompt, None if source is None else source.tobytes()
        if key not in known:
            pixels = () if source is None or latents is None else (np.array(source)[None],)
            known[key] = Conditioning(
                inputs={**encode(prompt, source), **guidance},
                references=tuple(latents(each) for each in pixels) if latents is not None else (),
                prompt_tokens=encode.tokens(prompt),
            )
        yield known[key]
