"""What a manifest says of a bundle: its plan, its engines, its cache and calibration, its files.

No engine is loaded for any of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fresco_trt.backends import backend, backend_names
from fresco_trt.bundle.own_builds import is_own
from fresco_trt.bundle.signature import is_signed
from fresco_trt.plan.caching import spelling_of
from fresco_trt.plan.cost import plan_summary
from fresco_trt.report.charts import steps
from fresco_trt.report.html import Html, facts, folded, join, size_of, table, tag

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle
    from fresco_trt.bundle.manifest import Manifest, QuantRecord
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import TensorSpec
    from fresco_trt.plan.stages import StagePlan


# --- the plan ---------------------------------------------------------------------------------


def plan_content(bundle: Bundle, model: ModelFacts) -> Html:
    """Stages, steps, tokens, sigmas and FLOPs."""
    plan = bundle.plan
    summary: dict[str, Any] = plan_summary(model, plan)
    baseline = summary["baseline"]
    costs = summary["stage_tflops"]
    solver = "" if plan.solver == "euler" else f" by the {plan.solver} solver"
    said = (
        f"{plan.nfe} steps{solver}, {plan.full_steps} of them in full, {summary['tflops']:.4g} "
        f"TFLOP. The plain pipeline takes {baseline['steps']} steps and {baseline['tflops']:.4g} "
        f"TFLOP: {summary['flops_ratio']:.2f} times as many."
    )
    columns = ("stage", "latent", "tokens", "text tokens", "steps", "F full, B cache", "TFLOP")
    rows = [
        (*_stage(bundle, index), f"{cost:.4g}", f"{100 * cost / summary['tflops']:.1f}%")
        for index, cost in enumerate(costs)
    ]
    parts = [
        tag("p", said),
        tag("div", steps(plan), class_="charts"),
        table("Stages", (*columns, "share"), rows),
    ]
    if plan.transitions:
        names = ("from", "sigma", "restart", "lift", "noise", "tokens refined")
        parts.append(table("Between the stages", names, _transitions(plan)))
    sigmas = [
        (index, ", ".join(f"{sigma:.5g}" for sigma in stage.sigmas))
        for index, stage in enumerate(plan.stages, start=1)
    ]
    return join((*parts, folded("Every sigma", table("Noise levels", ("stage", "sigmas"), sigmas))))


def _stage(bundle: Bundle, index: int) -> tuple[object, ...]:
    plan, text = bundle.plan, bundle.manifest.text_tokens
    stage, tokens, refined = plan.stages[index], plan.tokens[index], 4 * plan.refined[index]
    mixed = f"{tokens} ({tokens - refined} coarse, {refined} fine)" if refined else tokens
    latent = f"{stage.grid.width}x{stage.grid.height}"
    words = spelling_of(stage.actions)
    return (index + 1, latent, mixed, plan.text_tokens(text)[index], stage.steps, words)


def _transitions(plan: StagePlan) -> Iterator[tuple[object, ...]]:
    for number, each in enumerate(plan.transitions, start=1):
        rules = ", then ".join(f"{rule.count} by {rule.rule}" for rule in each.refinements)
        levels = (f"{each.sigma:.5g}", f"{each.restart:.5g}")
        yield (f"stage {number}", *levels, each.lift, each.noise, rules or "all")


# --- the engines ------------------------------------------------------------------------------


def engines_content(bundle: Bundle, signed: bool) -> Html:
    """Which library, in what precision, how large; who vouches for native code; digests.

    ``signed`` says that the signature was checked, and is of the given key.
    """
    manifest = bundle.manifest
    about, sizes = manifest.backend, {file.path: file.bytes for file in manifest.files}
    whole = sum(sizes.values())
    pairs = [
        ("model", manifest.model.name),
        ("library", f"{about.name}: {about.library} {about.library_version or ''}"),
        ("target", str(about.target) or "this library has none to choose"),
        ("precision", manifest.precision),
        ("size", f"{size_of(whole)} in {len(sizes)} files, every digest right"),
        ("native code", _native(manifest, signed)),
        ("signature", _signature(bundle, signed)),
        ("weights", tag("code", manifest.model.weights_sha256)),
        ("build key", tag("code", manifest.key)),
        ("manifest", tag("code", manifest.digest)),
    ]
    rows = [
        (
            engine.name,
            engine.family,
            size_of(sum(sizes[path] for path in engine.files)),
            "; ".join(map(_shape, engine.signature.inputs)),
        )
        for engine in manifest.engines
    ]
    shared = "Files that engines share are counted at each of them"
    files = [(file.path, size_of(file.bytes), tag("code", file.sha256)) for file in manifest.files]
    return join(
        (
            facts(pairs),
            table(shared, ("engine", "family", "files", "inputs"), rows),
            folded(
                f"{len(files)} files and their digests",
                table("Files", ("file", "size", "SHA-256"), files),
            ),
        )
    )


def _shape(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {'x'.join(map(str, tensor.shape)) or 'scalar'}"


def _native(manifest: Manifest, signed: bool) -> str:
    name = manifest.backend.name
    if name not in backend_names():
        return "unknown: this installation has no such backend"
    kinds = ", ".join(backend(name).native_code.values())
    if not kinds:
        return "none"
    if signed:
        return f"{kinds}; signed by the given key"
    return f"{kinds}; {'built by this user' if is_own(manifest) else 'nobody vouches for it here'}"


def _signature(bundle: Bundle, signed: bool) -> str:
    if signed:
        return "valid, of the given key"
    return "there, not checked" if is_signed(bundle) else "none"


# --- what was measured before the build -------------------------------------------------------


def calibration_content(bundle: Bundle, model: ModelFacts) -> Html:
    """The cache, what was quantised and how well, and how the bundle came to be."""
    manifest, built = bundle.manifest, bundle.manifest.built
    pairs: list[tuple[str, object]] = list(_cache(bundle, model))
    calibration: object = "none"
    if manifest.calibration is not None:
        calibration = tag("code", manifest.calibration)
    pairs += [
        ("calibration", calibration),
        ("built by", f"fresco-trt {built.version}, Python {built.python}, torch {built.torch}"),
        ("took", f"{built.seconds:.1f} s"),
    ]
    record = manifest.quantized
    options = [(key, value) for key, value in sorted(built.options.items()) if value is not None]
    return join(
        (
            facts(pairs),
            "" if record is None else _quantised(record),
            folded("Options of the build", table("As resolved", ("option", "value"), options)),
        )
    )


def _cache(bundle: Bundle, model: ModelFacts) -> Iterator[tuple[str, object]]:
    plan = bundle.plan
    if plan.cache is None:
        yield "cache", "none: every step runs the whole network"
        return
    summary: dict[str, Any] = plan_summary(model, plan)
    skipped = plan.nfe - plan.full_steps
    yield "cache", f"{plan.cache.name}, order {plan.cache.max_order}, site {plan.cache.site}"
    yield "steps it answers", f"{skipped} of {plan.nfe}"
    yield "its memory", f"at most {size_of(summary['cache_bytes'])} a request"


def _quantised(record: QuantRecord) -> Html:
    kinds = sorted({kind for counts in record.products.values() for kind in counts})
    rows = [
        (name, *(counts.get(kind, 0) for kind in kinds), f"{record.errors[name]:.2%}")
        for name, counts in record.products.items()
    ]
    forced = ", published by force" if record.forced else ""
    pairs = [
        ("recipe", record.recipe),
        ("codes and scales", size_of(record.bytes)),
        ("the same in float32", size_of(record.float32_bytes)),
        ("kept as they are", ", ".join(record.kept)),
        (
            "SSIM to the plan unquantised",
            f"{record.ssim:.3f}, lowest {record.lowest:.3f}, gate {record.threshold:g}, "
            f"{record.prompts} prompts, by the {record.judged_by}{forced}",
        ),
    ]
    caption = "Matrix products by what they multiply"
    return join((facts(pairs), table(caption, ("engine", *kinds, "velocity error"), rows)))
