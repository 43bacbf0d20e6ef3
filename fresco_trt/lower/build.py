"""From a request to a bundle: plan, graphs, engines, manifest, in one atomic write.

The last step left of the double arrow. Everything that went in is in the build key, so a bundle
that already holds the same engines is reused, and the report says which of the two happened.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import BuildOptions, Progress, StageGraph, silent, unavailable
from fresco_trt.basis import BASIS_FILE, Basis, check_basis, read_basis
from fresco_trt.bundle import BundleWriter, open_bundle
from fresco_trt.doctor import missing_to_build
from fresco_trt.errors import BundleError, BundleNotFound, error_context
from fresco_trt.listing import folder_digest
from fresco_trt.lower.principal import (
    Reference,
    default_prompts,
    measure_basis,
    read_prompts,
)
from fresco_trt.lower.record import (
    Ingredients,
    backend_record,
    built_record,
    differences,
    model_record,
    pipeline_record,
)
from fresco_trt.lower.request import (
    DTYPES,
    BuildRequest,
    Resolved,
    describe,
    requests_of,
    resolve,
)
from fresco_trt.manifest import EngineRecord, ManifestDraft
from fresco_trt.models.flux import graph_from_signature, load_transformer
from fresco_trt.models.flux_parts import PIPELINE_PARTS, find_pipeline
from fresco_trt.models.weights import BUNDLED, weights_digest
from fresco_trt.plan.caching import CacheChoice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.bundle import Bundle
    from fresco_trt.plan.sizes import Size

REUSED = "reused (same key)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build left: the opened bundle, what became of an older one, and wall seconds.

    ``state`` is "built", "reused (same key)", or "rebuilt: " and what differed.
    """

    bundle: Bundle
    state: str
    seconds: float

    @property
    def reused(self) -> bool:
        """Whether the bundle was there already."""
        return self.state.startswith(REUSED)

    def to_json(self) -> dict[str, Any]:
        """The report that `fresco-trt build --json` prints for each bundle."""
        manifest = self.bundle.manifest
        return {
            "folder": str(self.bundle.folder),
            "state": self.state,
            "key": manifest.key,
            "backend": manifest.backend.name,
            "engines": [engine.name for engine in manifest.engines],
            "bytes": sum(file.bytes for file in manifest.files),
            "seconds": round(self.seconds, 3),
        }


def build(
    model: str,
    *,
    stages: int = 3,
    preset: str | None = None,
    size: Size | None = None,
    steps: int | None = None,
    delta: float | None = None,
    weights: str | None = None,
    backend: str = "onnxruntime",
    precision: str = "fp32",
    cache: str = "none",
    interval: int | None = None,
    warmup: int | None = None,
    actions: Sequence[str] | None = None,
    site: str | None = None,
    basis: str | Path | None = None,
    targets: tuple[str, ...] = (),
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Build the engine bundle of a plan and return its folder.

    `size` is (width, height) in pixels; `steps` only for one stage; `delta` places the switches by
    the spectrum of the model's latents; `weights` a diffusers folder, a .safetensors file,
    "random", or None for the bundled or hub weights; `cache` and what belongs to it as
    `fresco_trt.plan` has them; `basis` a file of `fresco-trt calibrate --measure basis` for the
    cache "svd" (None: measured now, with the prompts in calibration/); `targets` GPU architectures
    for TensorRT ("sm89"). A bundle with the same build key is reused. Raises PlanError or
    LowerError leaves; whatever happens, `out` holds the old bundle or the complete new one.
    """
    request = BuildRequest(
        model=model,
        stages=stages,
        preset=preset,
        size=size,
        steps=steps,
        delta=delta,
        weights=weights,
        backend=backend,
        precision=precision,
        cache=CacheChoice(
            name=cache,
            interval=interval,
            warmup=warmup,
            actions=None if actions is None else tuple(actions),
            site=site,
        ),
        basis=None if basis is None else Path(basis),
        targets=targets,
        out=None if out is None else Path(out),
    )
    return run(request, progress=progress).bundle.folder


def run(request: BuildRequest, *, progress: Progress = silent) -> Built:
    """Build one request's bundle, or reuse the one with the same key; see `build`."""
    began = perf_counter()
    resolved = resolve(request)
    for missing in missing_to_build(resolved.backend):
        raise unavailable(resolved.backend.name, missing)
    with error_context(f"build of {resolved.out}"), ExitStack() as scope:
        made = _gathered(resolved, scope, progress)
        bundle, state = _fate(made)
        if bundle is None:
            bundle = _written(made, began, progress)
        return Built(bundle=bundle, state=state, seconds=perf_counter() - began)


def _gathered(resolved: Resolved, scope: ExitStack, progress: Progress) -> Ingredients:
    """Weights and pipeline folder with their digests; ``scope`` holds what is temporary."""
    import torch

    progress("loading weights", 0.0)
    dtype = getattr(torch, DTYPES[resolved.precision])
    transformer = load_transformer(resolved.weights, resolved.facts, dtype=dtype)
    progress("loading weights", 0.5)
    pipeline = _pipeline(resolved, scope)
    made = Ingredients(
        resolved=resolved,
        transformer=transformer,
        weights_digest=weights_digest(transformer),
        pipeline=pipeline,
        pipeline_digest=folder_digest(pipeline, PIPELINE_PARTS),
    )
    progress("loading weights", 1.0)
    return replace(made, basis=_basis_source(made))


def _basis_source(made: Ingredients) -> Basis | Reference | None:
    """The principal directions that were given, checked, or what they will be measured with."""
    resolved = made.resolved
    if resolved.plan.cache is None or resolved.plan.cache.name != "svd":
        return None
    name, hidden = resolved.facts.name, resolved.facts.hidden
    if resolved.basis is not None:
        basis = read_basis(resolved.basis)
        check_basis(basis, model=name, weights_sha256=made.weights_digest, hidden=hidden)
        return basis
    return Reference(
        facts=resolved.facts,
        transformer=made.transformer,
        weights_sha256=made.weights_digest,
        pipeline=made.pipeline,
        prompts=read_prompts(default_prompts(name)),
    )


def _pipeline(resolved: Resolved, scope: ExitStack) -> Path:
    """The prompt encoders and decoder; made up for random weights where none are bundled."""
    name = resolved.facts.name
    if resolved.weights != "random" or (BUNDLED / name).is_dir():
        return find_pipeline(resolved.weights, name)
    from fresco_trt.models.flux_random import write_random_pipeline

    folder = Path(scope.enter_context(tempfile.TemporaryDirectory()))
    return write_random_pipeline(resolved.facts, folder)


def _fate(made: Ingredients) -> tuple[Bundle | None, str]:
    """The bundle at ``out`` if it can be reused, and what becomes of it, in words."""
    try:
        bundle = open_bundle(made.resolved.out)
    except BundleNotFound:
        return None, "built"
    except BundleError as error:
        return None, f"rebuilt: the old bundle cannot be used, {error.given}"
    if bundle.manifest.key != made.key:
        return None, f"rebuilt: {_differ(differences(bundle.manifest, made))}"
    graphs = "; no graphs were exported" if made.resolved.graphs is not None else ""
    return bundle, REUSED + graphs


def _differ(names: tuple[str, ...]) -> str:
    plural = len(names) > 1 or names[0].endswith("s")
    return f"{', '.join(names)} {'differ' if plural else 'differs'}"


# --- writing ----------------------------------------------------------------------------------


def _written(made: Ingredients, began: float, progress: Progress) -> Bundle:
    resolved = made.resolved
    with BundleWriter(resolved.out) as writer:
        calibration = _stored_basis(made, writer.folder, progress)
        engines = _engines(made, writer.folder, progress)
        draft = ManifestDraft.model_validate(
            {
                "model": model_record(made),
                "plan": resolved.plan,
                "text_tokens": resolved.facts.text_tokens,
                "precision": resolved.precision,
                "calibration": calibration,
                "backend": backend_record(resolved),
                "engines": engines,
                "pipeline": pipeline_record(made, writer.folder),
                "built": built_record(made, perf_counter() - began),
                "key": made.key,
            }
        )
        return writer.commit(draft, progress=progress)


def _stored_basis(made: Ingredients, folder: Path, progress: Progress) -> str | None:
    """Write the principal directions into the bundle; their file's SHA-256, None without them."""
    basis = made.basis
    if basis is None:
        return None
    if isinstance(basis, Reference):
        basis = measure_basis(basis, made.resolved.plan, progress=progress)
    path = folder / BASIS_FILE
    basis.store(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _engines(made: Ingredients, folder: Path, progress: Progress) -> tuple[EngineRecord, ...]:
    resolved = made.resolved
    options = BuildOptions(
        folder=folder, targets=resolved.targets, precision=resolved.precision, progress=progress
    )
    # Inside the folder that is being written: what a killed build leaves, the next one removes.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        graphs = _stage_graphs(made, Path(work), progress)
        return tuple(
            EngineRecord(
                name=graph.name,
                files=resolved.backend.build(graph, options),
                signature=graph.signature,
            )
            for graph in graphs
        )


def _stage_graphs(made: Ingredients, work: Path, progress: Progress) -> tuple[StageGraph, ...]:
    """Every graph of the plan in the form the backend builds from."""
    from fresco_trt.lower.export import export_stages
    from fresco_trt.lower.weights import write_source
    from fresco_trt.run.sampler import engine_name

    resolved, source = made.resolved, work / "transformer"
    graphs = tuple(
        StageGraph(
            name=engine_name(index, action),
            signature=signature,
            module=graph_from_signature(made.transformer, signature),
            onnx=None,
            weights=None,
            source=source,
        )
        for index, action in resolved.plan.graphs
        for signature in (resolved.signature(index, action),)
    )
    if resolved.backend.describe().graph_format == "onnx":
        return export_stages(graphs, resolved.graphs or work, progress=progress)
    write_source(made.transformer, source)
    return graphs


__all__ = ["BuildRequest", "Built", "build", "describe", "requests_of", "resolve", "run"]
