"""Comparison as a feature: every engine against the eager reference, stage by stage and end to end.

The reference walks its own trajectory from one seed and prompt; at each step the engine sees the
same inputs, so that an error is the engine's and not an accumulation. Then the engines walk alone
and the two pictures are compared. Where a plan refines tokens they are given the reference's own
choice: a rounding error may tip one at the margin, which then is no error of the engine.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.comparing import ComparingRunner, OutputError
from fresco_trt.errors import (
    IncompatibleOptions,
    NonFiniteValues,
    PlanError,
    VerificationFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from torch import Generator, Tensor
    from torch.nn import Module

    from fresco_trt.bundle import Bundle
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import TokenRefinement
    from fresco_trt.run.selection import Window

PROMPT = "a red apple on a plain blue background"

TOLERANCES = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 3e-2, "int8": 0.4, "fp8": 0.5}
"""Largest allowed error of an output, relative to its largest value, by the engines' precision.

Sound engines of flux-tiny stay at 1e-6, 1.2e-3, 8e-3 and 0.2; those of fp8 were not measured.
"""

WHITE = 255
"""The largest value of a pixel, and so of a difference."""

PIXEL_TOLERANCES = {"fp32": 2, "fp16": 16, "bf16": 64, "int8": 255, "fp8": 255}
"""Largest allowed difference of a pixel value (0 to 255) between the two pictures.

Rounding to codes moves an edge by a pixel: pictures of int8 and fp8 are judged by their likeness,
when they are built, and not by single pixels.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome of a verification; `pixels` is the largest difference of the pictures."""

    engines: tuple[OutputError, ...]
    pixels: int
    tolerance: float
    pixel_tolerance: int

    @property
    def failures(self) -> tuple[str, ...]:
        """What exceeds its tolerance, worded for a person."""
        failed = [
            f"{e.engine} {e.output}: relative error {e.relative:.2e}"
            for e in self.engines
            if not e.relative <= self.tolerance
        ]
        if self.pixels > self.pixel_tolerance:
            failed.append(f"picture: {self.pixels} of 255")
        return tuple(failed)

    def to_json(self) -> dict[str, Any]:
        """What `fresco-trt verify --json` prints."""
        return {
            "passed": not self.failures,
            "tolerance": self.tolerance,
            "pixel_tolerance": self.pixel_tolerance,
            "pixels": self.pixels,
            "engines": [error.to_json() for error in self.engines],
        }

    def require(self) -> None:
        """Raise VerificationFailed naming every output beyond its tolerance."""
        if self.failures:
            raise VerificationFailed(
                "; ".join(self.failures),
                expected=f"relative errors up to {self.tolerance:g}, "
                f"pixels up to {self.pixel_tolerance}",
                fix="build again; if it stays, pass another --backend and report the figures",
            )


def verify_bundle(
    path: str | PathLike[str],
    *,
    weights: str | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    prompt: str = PROMPT,
    progress: Callable[[str, float], None] = lambda phase, fraction: None,
    trust_native_code: bool = False,
    verify_key: str | Path | None = None,
) -> Comparison:
    """Compare a bundle's engines with eager float32 of the same weights, on the CPU.

    `tolerance` bounds the relative error of an output (None: as `TOLERANCES` has it);
    `trust_native_code` and `verify_key` are those of `FrescoPipeline.from_bundle`. Raises the
    bundle's and backend's errors, PlanError for a tolerance or seed out of range, and
    IncompatibleOptions if `weights` (None: bundled or hub) are not the bundle's own.
    """
    from fresco_trt.pipelines.checks import check_seed
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.pipelines.loading import opened, trust_of

    check_seed(seed)
    _check_tolerance(tolerance)
    progress("reading weights", 0.0)
    trust = trust_of(trust_native_code, verify_key)
    bundle = opened(path, trust)
    transformer = _reference(bundle, weights)
    progress("reading weights", 1.0)
    precision = bundle.manifest.precision
    with ExitStack() as scope:
        pipe = scope.enter_context(FrescoPipeline.over(bundle, trust))
        comparing = _comparing(pipe, transformer, scope)
        pixels = _difference(pipe, comparing, prompt, seed, progress)
    return Comparison(
        engines=tuple(e for runner in comparing.values() for e in runner.errors.values()),
        pixels=pixels,
        tolerance=TOLERANCES[precision] if tolerance is None else tolerance,
        pixel_tolerance=PIXEL_TOLERANCES[precision],
    )


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise PlanError(
            f"tolerance {tolerance:g}",
            expected="a number from 0 up",
            fix=f"leave it out, or pass one like {TOLERANCES['fp32']:g}",
        )


# --- the reference ----------------------------------------------------------------------------


def _reference(bundle: Bundle, weights: str | None) -> Module:
    """The transformer with the bundle's weights as they are stored there, computed in float32."""
    import torch

    from fresco_trt.backends import backend
    from fresco_trt.lower.request import stored_dtype
    from fresco_trt.models.registry import family_of
    from fresco_trt.models.weights import weights_digest

    manifest = bundle.manifest
    given = "random" if weights is None and _is_random(bundle) else weights
    about = backend(manifest.backend.name).describe()
    stored = getattr(torch, stored_dtype(manifest.precision, about))
    facts = _facts(bundle)
    transformer = family_of(facts).weights.load(given, facts, dtype=stored)
    digest = weights_digest(transformer)
    if digest != manifest.model.weights_sha256:
        raise IncompatibleOptions(
            f"reference weights with digest {digest[:12]}",
            expected=f"{manifest.model.weights_sha256[:12]}, those of the bundle",
            fix="pass the weights the bundle was built from with --weights",
        )
    # diffusers' own ``to`` warns about every cast; this is the plain one.
    return torch.nn.Module.to(transformer, torch.float32)


def _facts(bundle: Bundle) -> ModelFacts:
    """The model's, or those of as few of its blocks as the bundle was built with."""
    from fresco_trt.models.registry import family_of, model_facts
    from fresco_trt.plan.depth import parse_blocks

    facts = model_facts(bundle.manifest.model.name)
    blocks = bundle.manifest.built.options.get("blocks")
    if blocks is None:
        return facts
    return family_of(facts).weights.with_blocks(facts, parse_blocks(str(blocks)))


def _is_random(bundle: Bundle) -> bool:
    return bundle.manifest.built.options.get("weights") == "random"


# --- the comparison ---------------------------------------------------------------------------


def _comparing(
    pipe: FrescoPipeline, transformer: Module, scope: ExitStack
) -> dict[str, ComparingRunner]:
    from fresco_trt.backends.eager import module_runner
    from fresco_trt.models.registry import family_of

    family = family_of(_facts(pipe.bundle))
    comparing: dict[str, ComparingRunner] = {}
    for name, engine in pipe.runners.items():
        graph = family.graphs.module(transformer, engine.signature)
        reference = scope.enter_context(module_runner(graph, engine.signature))
        comparing[name] = ComparingRunner(name, engine, reference)
    return comparing


def _difference(
    pipe: FrescoPipeline,
    comparing: Mapping[str, ComparingRunner],
    prompt: str,
    seed: int,
    progress: Callable[[str, float], None],
) -> int:
    """The largest pixel difference between the reference's pictures and the engines' own: as many
    as the engines take at once, each from another seed; of an edit in every stage that may follow
    its draft.
    """
    import numpy as np

    from fresco_trt.pipelines.edit import example_source
    from fresco_trt.pipelines.selective import example_masks, whole_edits_asked

    source = example_source(pipe.bundle)
    masks = example_masks(pipe.plan)

    def draw(drawer: FrescoPipeline, number: int, phase: str) -> Any:
        def on_step(step: Any) -> None:
            progress(phase, (number + (step.step + 1) / step.steps_total) / len(masks))

        with whole_edits_asked():
            drawn = drawer(
                prompt,
                image=source,
                mask=masks[number],
                seed=seed,
                num_images_per_prompt=pipe.batch,
                on_step=on_step,
            )
        images = [*drawn.images, *(frame for clip in drawn.frames for frame in clip)]
        return np.stack([np.asarray(image) for image in images]).astype(int)

    choices, drawn = Choices(), range(len(masks))
    reference = pipe.with_runners(comparing, choice=choices.make)
    wanted = [draw(reference, number, "against eager") for number in drawn]
    again = pipe.with_runners(pipe.runners, choice=choices.repeat)
    try:
        pictures = [draw(again, number, "engines alone") for number in drawn]
    except NonFiniteValues:
        errors = (error for runner in comparing.values() for error in runner.errors.values())
        if all(math.isfinite(error.relative) for error in errors):
            raise
        return WHITE  # said of the engine already; the pictures are as far apart as can be
    return max(int(np.abs(a - b).max()) for a, b in zip(wanted, pictures, strict=True))


class Choices:
    """The tokens that one run refines, for another to refine the same ones.

    Both methods are a :data:`fresco_trt.run.selection.Choice`; those made are repeated in order.
    """

    def __init__(self) -> None:
        self._made: list[Tensor] = []

    def make(
        self,
        refinements: Sequence[TokenRefinement],
        window: Window,
        candidates: Tensor,
        generator: Generator | None,
    ) -> Tensor:
        """Choose by the plan's rules, and remember."""
        from fresco_trt.run.selection import select

        self._made.append(select(refinements, window, candidates, generator))
        return self._made[-1]

    def repeat(
        self,
        refinements: Sequence[TokenRefinement],
        window: Window,
        candidates: Tensor,
        generator: Generator | None,
    ) -> Tensor:
        """The choice made first of those not yet repeated."""
        from fresco_trt.run.selection import select

        # Drawn all the same: what is drawn after it comes from the same generator.
        select(refinements, window, candidates, generator)
        return self._made.pop(0)
