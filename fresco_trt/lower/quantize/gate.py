"""The quality gate: a quantised build is held against the same plan unquantised, by pictures.

Last step before a quantised bundle is published. The pictures are drawn by the engines where this
machine can run them, else by the simulated model, which rounds as they will.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.backends.comparing import ComparingRunner
from fresco_trt.backends.eager import module_runner
from fresco_trt.lower.calibrate.trajectories import cases, denoiser_of, drawn
from fresco_trt.lower.similarity import ssim

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Module

    from fresco_trt.backends.base import Backend, EngineFile, Progress, Runner
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.models.family import Decoder
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.denoise import Denoiser
    from fresco_trt.run.sampler import Step

JUDGING = "judging quality"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Mean and lowest SSIM over the calibration prompts, and the largest relative error of each
    engine's velocity, by its name.
    """

    ssim: float
    lowest: float
    errors: Mapping[str, float]

    @property
    def worst(self) -> str:
        """The engine with the largest error."""
        return max(self.errors, key=lambda name: self.errors[name])


def judge(
    reference: Reference,
    plan: StagePlan,
    runners: Mapping[str, Runner],
    *,
    basis: Tensor | None,
    progress: Progress,
) -> Verdict:
    """Draw every prompt with ``runners`` and with the unquantised model, and compare.

    ``runners``, entered by the caller, are named as engines are; ``basis`` [H,k] is what the
    plan's cache may need. Each engine is also compared on the reference's own steps. An edit is
    judged by what was drawn, its source not put back where nothing was to change.
    """
    decode = reference.family.components.decoder(reference.pipeline)
    likeness = []
    with ExitStack() as scope:
        comparing = _comparing(reference, runners, scope)
        drawers = [denoiser_of(reference, plan, each, basis) for each in (comparing, runners)]
        every = cases(reference, plan)
        for number, case in enumerate(every):
            progress(JUDGING, number / len(every))
            wanted, got = (
                _pixels(denoiser, decode, drawn(denoiser, case, reference.seed))
                for denoiser in drawers
            )
            likeness.append(float(ssim(got, wanted)))
    progress(JUDGING, 1.0)
    errors = {name: runner.errors["velocity"].relative for name, runner in comparing.items()}
    return Verdict(ssim=fmean(likeness), lowest=min(likeness), errors=errors)


Signatures: TypeAlias = "Mapping[str, GraphSignature]"
"""Of engines of one picture, by name: what is judged draws one prompt after another."""


def engine_runners(
    library: Backend,
    folder: Path,
    records: Sequence[EngineFile],
    signatures: Signatures,
    scope: ExitStack,
) -> dict[str, Runner]:
    """The built engines, their outputs brought to the CPU, where the reference is."""
    loaded = {each.name: scope.enter_context(library.load(folder, each)) for each in records}
    return {name: _Alone(runner, signatures[name]) for name, runner in loaded.items()}


def simulated_runners(
    reference: Reference, simulation: Module, signatures: Signatures, scope: ExitStack
) -> dict[str, Runner]:
    """The simulated model in place of engines that this machine cannot run."""
    return _eager(reference, simulation, signatures, scope)


class _Alone(BorrowedRunner):
    """An engine as one of one picture, its outputs brought to the CPU: where it takes several, all
    are the same picture.
    """

    def __init__(self, runner: Runner, signature: GraphSignature) -> None:
        super().__init__(runner)
        self._taken, self.signature = runner.signature, signature

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = {
            spec.name: inputs[spec.name].expand(spec.shape).contiguous()
            for spec in self._taken.inputs
        }
        return {name: value[:1].cpu() for name, value in self._runner(given).items()}


def _eager(
    reference: Reference,
    transformer: Module,
    signatures: Signatures,
    scope: ExitStack,
) -> dict[str, Runner]:
    graphs = reference.family.graphs
    return {
        name: scope.enter_context(module_runner(graphs.module(transformer, wanted), wanted))
        for name, wanted in signatures.items()
    }


def _comparing(
    reference: Reference, runners: Mapping[str, Runner], scope: ExitStack
) -> dict[str, ComparingRunner]:
    signatures = {name: runner.signature for name, runner in runners.items()}
    eager = _eager(reference, reference.transformer, signatures, scope)
    return {name: ComparingRunner(name, runners[name], eager[name]) for name in runners}


def _pixels(denoiser: Denoiser, decode: Decoder, steps: Iterator[Step]) -> Tensor:
    """The picture at the end, float32 [1,3,H,W] in [-1,1]; of a clip one for each frame."""
    *_, last = steps
    picture = torch.from_numpy(decode(denoiser.latents(last)))
    return picture.flatten(0, -4).permute(0, 3, 1, 2).float() / 127.5 - 1
