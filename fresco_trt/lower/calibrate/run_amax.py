"""`fresco-trt calibrate` of amax: what int8 and fp8 need of a model, and which layers mind most.

Beside the data path. Both walk a plan with the calibration prompts
(:mod:`fresco_trt.lower.calibrate.amax`, :mod:`fresco_trt.lower.calibrate.sensitivity`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fresco_trt import __version__
from fresco_trt.files.atomic_file import store_json
from fresco_trt.lower.calibrate.options import STAGES
from fresco_trt.lower.calibrate.run_features import measured_on, reference_of
from fresco_trt.plan.facts import check_calibrated

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress
    from fresco_trt.bundle.amax import Amax
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.lower.calibrate.options import Options
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

SCHEMA = 1


def run_amax(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure and store the amax of a model's layers on one plan; what was stored.

    Raises what planning does, CalibrationError, BackendUnavailable without nvidia-modelopt,
    WeightsNotFound, OutputNotWritable and DiskFull.
    """
    _, _, amax = _measured(options, progress)
    amax.store(options.path)
    return amax.to_json()


def run_sensitivity(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure what quantising each group of layers alone does to the velocity, and store it.

    Raises as :func:`run_amax`.
    """
    from fresco_trt.lower.calibrate.sensitivity import error_of, measure_sensitivity

    reference, plan, amax = _measured(options, progress)
    recipe = options.quantised
    groups = measure_sensitivity(reference, plan, amax, recipe, progress)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        **measured_on(reference, plan),
        "recipe": recipe.name,
        "kept": list(amax.record.kept),
        "together": error_of(reference, plan, amax, recipe),
        "groups": [asdict(each) for each in groups],
    }
    store_json(document, options.path)
    return document


def _measured(options: Options, progress: Progress) -> tuple[Reference, StagePlan, Amax]:
    from fresco_trt.models.registry import model_facts

    facts = model_facts(options.model)
    check_calibrated(facts, "a calibration")
    plan = _plan(options, facts)
    recipe, reference = options.quantised, reference_of(options, facts, plan, progress)

    from fresco_trt.lower.calibrate.amax import measure_amax

    kept = (*facts.high_precision, *options.quant.keep)
    return reference, plan, measure_amax(reference, plan, recipe, kept, progress)


def _plan(options: Options, facts: ModelFacts) -> StagePlan:
    from fresco_trt.plan.making import make_plan
    from fresco_trt.plan.sizes import parse_size

    size = None if options.size is None else parse_size(options.size)
    return make_plan(facts, stages=options.stages or STAGES, preset=options.preset, size=size)
