"""What a quantised build does beside any other: amax, one more pass, the gate, its record."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.backends.missing import missing_to_run
from fresco_trt.bundle.manifest import QuantRecord
from fresco_trt.errors import QualityTooLow
from fresco_trt.lower.calibrate.amax import measure_amax
from fresco_trt.lower.calibrate.sensitivity import measure_sensitivity
from fresco_trt.lower.layout import graph_of
from fresco_trt.lower.quantize.gate import engine_runners, judge, simulated_runners
from fresco_trt.lower.quantize.qdq import Quantizer
from fresco_trt.lower.quantize.simulation import simulate
from fresco_trt.run.sampler import engine_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fresco_trt.backends.base import Progress
    from fresco_trt.bundle.manifest import EngineRecord
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.lower.quantize.gate import Verdict
    from fresco_trt.lower.record import Ingredients

THRESHOLD = 0.95
"""Least mean SSIM to the pictures of the same plan unquantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """A build's pass of the export, which has recipe and amax, and what measures and judges."""

    made: Ingredients
    reference: Reference
    quantizer: Quantizer

    def record(
        self,
        folder: Path,
        engines: Sequence[EngineRecord],
        basis: Tensor | None,
        progress: Progress,
    ) -> QuantRecord:
        """Judge the engines written into ``folder``, and say what was done.

        Raises QualityTooLow under the threshold, unless the build is forced, and always for an
        engine that gives no finite numbers.
        """
        verdict = self._verdict(folder, engines, basis, progress)
        _require_finite(verdict)
        if verdict.ssim < THRESHOLD and not self.made.resolved.quant.force:
            raise self._refused(verdict, progress)
        account, amax = self.quantizer.account, self.quantizer.amax
        layout = self.made.resolved.target.layout
        return QuantRecord(
            recipe=self.quantizer.recipe.name,
            kept=amax.record.kept,
            amax_sha256=amax.digest(),
            bytes=sum(account.stored.values()),
            float32_bytes=sum(account.float32.values()),
            products={
                engine.name: dict(account.products[graph_of(layout, engine.name)])
                for engine in engines
            },
            prompts=len(self.reference.prompts),
            ssim=round(verdict.ssim, 6),
            lowest=round(verdict.lowest, 6),
            threshold=THRESHOLD,
            judged_by="simulation" if self._elsewhere else "engines",
            errors={name: float(f"{error:.4g}") for name, error in verdict.errors.items()},
            forced=verdict.ssim < THRESHOLD,
        )

    @property
    def _elsewhere(self) -> bool:
        """Whether the engines run on other machines only."""
        return bool(missing_to_run(self.made.resolved.backend))

    def _verdict(
        self,
        folder: Path,
        engines: Sequence[EngineRecord],
        basis: Tensor | None,
        progress: Progress,
    ) -> Verdict:
        with ExitStack() as scope:
            resolved = self.made.resolved
            plan, alone = resolved.plan, replace(resolved.target, batch=1)
            signatures = {
                engine_name(index, action): replace(resolved, target=alone).signature(index, action)
                for index, action in plan.graphs
            }
            if self._elsewhere:
                amax, recipe = self.quantizer.amax, self.quantizer.recipe
                simulation = simulate(self.reference.transformer, amax, recipe)
                runners = simulated_runners(self.reference, simulation, signatures, scope)
            else:
                library = resolved.backend
                runners = engine_runners(library, folder, engines, signatures, scope)
            return judge(self.reference, plan, runners, basis=basis, progress=progress)

    def _refused(self, verdict: Verdict, progress: Progress) -> QualityTooLow:
        plan, passed = self.made.resolved.plan, self.quantizer
        groups = measure_sensitivity(self.reference, plan, passed.amax, passed.recipe, progress)
        worst, engine = groups[0], verdict.worst
        return QualityTooLow(
            f"mean SSIM {verdict.ssim:.3f} to the pictures of the same plan unquantised; worst "
            f"engine {engine} (relative error {verdict.errors[engine]:.3f}), worst group "
            f"{worst.group} ({worst.error:.3f} alone)",
            expected=f"{THRESHOLD:g} or more on the calibration prompts",
            fix=f"add keep={worst.pattern} to --precision, or force=true to publish it as it is",
        )


def _require_finite(verdict: Verdict) -> None:
    if not math.isfinite(verdict.errors[verdict.worst]):
        raise QualityTooLow(
            f"the engine {verdict.worst} gives values that are not finite",
            expected="a picture on every calibration prompt",
            fix="pass another --precision or recipe, and report the model",
        )


def quantisation(made: Ingredients, progress: Progress) -> Quantisation | None:
    """How a build is quantised, its amax measured unless they were given; None if it is not."""
    recipe, reference = made.resolved.recipe, made.reference
    if recipe is None or reference is None:
        return None
    amax = made.amax
    if amax is None:
        amax = measure_amax(reference, made.resolved.plan, recipe, made.resolved.kept, progress)
    return Quantisation(
        made=made,
        reference=reference,
        quantizer=Quantizer(recipe=recipe, amax=amax),
    )
