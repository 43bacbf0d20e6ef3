"""`fresco-trt calibrate` of features: the basis of SVD-Cache, and steps to skip.

Beside the data path. All walk trajectories of a plan with the eager model, every step in full
(:mod:`fresco_trt.lower.calibrate.trajectories`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt import __version__
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.files.atomic_file import check_writable, store_json
from fresco_trt.lower.calibrate.options import CACHE, STAGES
from fresco_trt.plan.caching import cache_names
from fresco_trt.plan.facts import check_calibrated

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.backends.base import Progress
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.lower.calibrate.options import Options
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

SCHEMA = 1


def run_basis(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure and store the SVD basis of a model's features; what was stored, in short.

    On the trajectories of its balanced plan of most stages. Raises UnknownModel, CalibrationError,
    WeightsNotFound, OutputNotWritable and DiskFull.
    """
    from fresco_trt.lower.calibrate import basis as svd
    from fresco_trt.models.registry import model_facts
    from fresco_trt.plan.making import make_plan

    facts = model_facts(options.model)
    check_calibrated(facts, "a calibration")
    energy = svd.check_energy(svd.ENERGY if options.energy is None else options.energy)
    plan = make_plan(facts, stages=max(facts.stage_counts))
    reference = reference_of(options, facts, plan, progress)
    basis = svd.measure_basis(reference, plan, energy=energy, progress=progress)
    basis.store(options.path)
    return basis.to_json()


def run_cache_schedule(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure which steps of a plan may be skipped, and store the lists; what was stored.

    Raises what planning does, CalibrationError, WeightsNotFound, OutputNotWritable and DiskFull.
    """
    from fresco_trt.lower.calibrate.basis import measure_basis
    from fresco_trt.lower.calibrate.cache_schedule import TOLERANCES, measure_cache_schedule
    from fresco_trt.models.registry import model_facts
    from fresco_trt.plan.cache_schedule import cache_settings
    from fresco_trt.plan.making import make_plan

    facts = model_facts(options.model)
    check_calibrated(facts, "a calibration")
    cache = cache_settings(options.predictor)
    if cache.traits.predicts != "feature":
        raise IncompatibleOptions(
            f"--measure cache-schedule --cache {cache.name}, which predicts no feature",
            expected=f"one of {', '.join(cache_names('feature'))}",
            fix=f"pass --cache {CACHE}, or say with actions which steps are coarse",
        )
    plan = make_plan(facts, stages=options.stages or STAGES, preset=options.preset)
    tolerances = TOLERANCES if options.tolerance is None else (options.tolerance,)
    reference = reference_of(options, facts, plan, progress)
    basis = None
    if cache.traits.needs_basis:
        basis = measure_basis(reference, plan, progress=progress).directions
    lists = measure_cache_schedule(
        reference, plan, cache, tolerances, basis=basis, progress=progress
    )
    document = {
        "schema": SCHEMA,
        "version": __version__,
        **measured_on(reference, plan),
        "cache": cache.to_json(),
        "steps": plan.nfe,
        "schedules": [each.to_json() for each in lists],
    }
    store_json(document, options.path)
    return document


def run_sea_schedule(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure where the input of the first block has changed enough for a full step, and store the
    lists; what was stored. Raises as :func:`run_cache_schedule`.
    """
    from fresco_trt.lower.calibrate.spectral_change import THRESHOLDS, measure_change_schedule
    from fresco_trt.models.registry import model_facts
    from fresco_trt.plan.making import make_plan

    facts = model_facts(options.model)
    check_calibrated(facts, "a calibration")
    plan = make_plan(facts, stages=options.stages or STAGES, preset=options.preset)
    thresholds = THRESHOLDS if options.tolerance is None else (options.tolerance,)
    reference = reference_of(options, facts, plan, progress)
    lists = measure_change_schedule(reference, plan, thresholds, progress=progress)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        **measured_on(reference, plan),
        "steps": plan.nfe,
        "schedules": [each.to_json() for each in lists],
    }
    store_json(document, options.path)
    return document


def reference_of(
    options: Options, facts: ModelFacts, plan: StagePlan, progress: Progress
) -> Reference:
    """Model and prompts, with pictures where it edits; the model is read once it is known that the
    result can be written.
    """
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.models.registry import family_of
    from fresco_trt.models.weights import weights_digest

    prompts, pictures = _asked(options, facts, plan)
    check_writable(options.path)
    progress("loading weights", 0.0)
    family = family_of(facts)
    transformer = family.weights.load(options.weights, facts)
    pipeline = family.components.find(options.weights, facts.name)
    family.components.check(pipeline, facts)
    return Reference(
        facts=facts,
        transformer=transformer,
        weights_sha256=weights_digest(transformer),
        pipeline=pipeline,
        prompts=prompts,
        pictures=pictures,
    )


def _asked(
    options: Options, facts: ModelFacts, plan: StagePlan
) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    """Prompts, and for a model that edits their pictures. Raises IncompatibleOptions for those of
    the other kind of model.
    """
    from fresco_trt.lower.calibrate.basis import default_prompts, read_prompts
    from fresco_trt.lower.calibrate.edits import METADATA, default_edits, read_edits

    if facts.references:
        if options.prompts is not None:
            raise IncompatibleOptions(
                f"--prompts {options.prompts} for {facts.name}, which edits pictures",
                expected=f"--pictures with a folder of sources, and their prompts in {METADATA}",
                fix=f"pass --pictures, or leave both out for {default_edits(facts.name)}",
            )
        return read_edits(options.pictures or default_edits(facts.name), plan.size)
    if options.pictures is not None:
        raise IncompatibleOptions(
            f"--pictures {options.pictures} for {facts.name}, which draws from prompts alone",
            expected=f"--prompts FILE: --measure {options.measure} edits no pictures with it",
            fix="leave --pictures out, or pass --measure spectrum to measure the pictures",
        )
    return read_prompts(options.prompts or default_prompts(facts.name)), ()


def measured_on(reference: Reference, plan: StagePlan) -> dict[str, Any]:
    """What a measurement was made on; for its file."""
    return {
        "model": reference.facts.name,
        "weights_sha256": reference.weights_sha256,
        "size": list(plan.size),
        "stages": len(plan.stages),
        "preset": plan.preset,
        "plan_sha256": plan.digest(),
        "prompts": len(reference.prompts),
        "prompts_sha256": reference.prompts_sha256,
        "seed": reference.seed,
    }
