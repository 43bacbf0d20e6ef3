"""From a request to a bundle: plan, graphs, engines, manifest, in one atomic write.

The last step left of the double arrow. Everything that went in is in the build key, so a bundle
that already holds the same engines is reused, and the report says which of the two happened.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import BuildOptions, Progress, StageGraph, silent, unavailable
from fresco_trt.backends.choosing import this_gpu
from fresco_trt.backends.missing import missing_to_build
from fresco_trt.backends.preparing import prepare
from fresco_trt.bundle import BundleWriter, open_bundle
from fresco_trt.bundle.manifest import EngineRecord, ManifestDraft
from fresco_trt.bundle.own_builds import is_own, remember
from fresco_trt.bundle.svd_basis import BASIS_FILE, Basis
from fresco_trt.errors import BundleError, BundleNotFound, error_context
from fresco_trt.files.atomic_folder import sweep
from fresco_trt.files.cache_folder import cache_folder
from fresco_trt.files.peak_memory import peak_memory
from fresco_trt.files.process_folder import sweep_process_folders
from fresco_trt.lower.calibrate.basis import Reference, measure_basis
from fresco_trt.lower.dry_run import check_gpu, describe
from fresco_trt.lower.gather import gather
from fresco_trt.lower.layout import graph_of, graph_signatures
from fresco_trt.lower.record import (
    Ingredients,
    backend_record,
    built_record,
    differences,
    model_record,
    pipeline_record,
)
from fresco_trt.lower.request import BuildRequest, requests_of, resolve
from fresco_trt.plan.arguments import (
    optional,
    place,
    preset_of,
    python_door,
    size_of,
    whole,
    word,
)
from fresco_trt.plan.stages import StagePlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.backends.base import EngineFiles
    from fresco_trt.bundle import Bundle
    from fresco_trt.lower.quantize.qdq import Quantizer
    from fresco_trt.plan.config import CacheConfig, PresetConfig, QuantConfig, TargetConfig
    from fresco_trt.plan.sizes import Size

_LOG = logging.getLogger(__name__)

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
            "model": manifest.model.name,
            "blocks": manifest.built.options.get("blocks"),
            "engines": [engine.name for engine in manifest.engines],
            "bytes": sum(file.bytes for file in manifest.files),
            "seconds": round(self.seconds, 3),
        }


@python_door
def build(
    model: str | StagePlan,
    *,
    stages: int | None = None,
    preset: PresetConfig | str | None = None,
    size: Size | str | None = None,
    cache: CacheConfig | str = "none",
    weights: str | None = None,
    backend: str | None = None,
    precision: QuantConfig | str | None = None,
    target: TargetConfig | str = "",
    out: str | Path | None = None,
) -> Path:
    """Build the engine bundle of a plan and return its folder.

    `model` is a model's name, with `stages` (None: 3), `preset`, `size` ((width, height) in pixels,
    or "512x384") and `cache` as `fresco_trt.plan` has them; or a plan, which has decided all of
    these but the basis of its cache. `weights` is a diffusers folder, a .safetensors file,
    "random", or None for the bundled or hub weights. `cache`, `precision` and `target` are a
    :class:`~fresco_trt.plan.config.CacheConfig`,
    :class:`~fresco_trt.plan.config.QuantConfig` and
    :class:`~fresco_trt.plan.config.TargetConfig` or their spelling:
    "svd,interval=3", "int8,keep=*.ff.net.2", "sm89,layout=profiles". `backend` and `precision`
    are by default what this machine runs best: TensorRT for RTX on an RTX GPU and TensorRT on any,
    where they are installed, else "inductor", in bf16; without a GPU "onnxruntime" in fp32.

    A bundle with the same build key is reused. Raises InvalidArgument for an argument of another
    type, PlanError or LowerError leaves, QualityTooLow among them; whatever happens, `out` holds
    the old bundle or the complete new one.
    """
    request = BuildRequest(
        model=model.model if isinstance(model, StagePlan) else word("model", model),
        plan=model if isinstance(model, StagePlan) else None,
        stages=optional(whole, "stages", stages),
        preset=None if preset is None else preset_of(preset, None, None),
        size=optional(size_of, "size", size),
        cache=cache,
        weights=_path(weights),
        backend=optional(word, "backend", backend),
        precision=precision,
        target=target,
        out=optional(place, "out", out),
    )
    return run(request).bundle.folder


def _path(weights: str | Path | None) -> str | None:
    if weights is None:
        return None
    found = place("weights", weights)
    return weights if isinstance(weights, str) else str(found)  # "./random" is a folder


def run(request: BuildRequest, *, progress: Progress = silent) -> Built:
    """Build one request's bundle, or reuse the one with the same key; see `build`."""
    began = perf_counter()
    resolved = resolve(request)
    if resolved.defaults is not None:
        _LOG.info("builds by default with %s", resolved.defaults)
    for missing in missing_to_build(resolved.backend):
        raise unavailable(resolved.backend.name, missing)
    check_gpu(resolved, this_gpu())
    _sweep(resolved.out)
    with error_context(f"build of {resolved.out}"), ExitStack() as scope:
        made = gather(resolved, scope, progress)
        bundle, state = _fate(made)
        if bundle is None:
            bundle = _written(made, began, progress)
            if resolved.backend.native_code:
                remember(bundle.manifest)
        return Built(bundle=bundle, state=state, seconds=perf_counter() - began)


def run_all(requests: Sequence[BuildRequest], *, progress: Progress = silent) -> dict[str, Any]:
    """Build one request after another: the bundles as JSON, and the most memory that it took."""
    bundles = [run(each, progress=progress).to_json() for each in requests]
    peak = peak_memory()
    return {"bundles": bundles, "peak": None if peak is None else peak.to_json()}


def _sweep(out: Path) -> None:
    """Remove what killed builds and runs left, whether this one will write anything or not."""
    with suppress(OSError):  # a folder that cannot be written is said where it is written
        sweep(out.resolve())
    sweep_process_folders()


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
    record = bundle.manifest.quantized
    if record is not None and record.forced and not made.resolved.quant.force:
        return None, "rebuilt: the old bundle failed the quality gate and was forced"
    if made.resolved.backend.native_code and not is_own(bundle.manifest):
        # With the right key: whoever writes a manifest writes that, too.
        return None, "rebuilt: the old bundle has native code that this user did not build"
    graphs = "; no graphs were exported" if made.resolved.graphs is not None else ""
    return bundle, REUSED + graphs


def _differ(names: tuple[str, ...]) -> str:
    plural = len(names) > 1 or names[0].endswith("s")
    return f"{', '.join(names)} {'differ' if plural else 'differs'}"


# --- writing ----------------------------------------------------------------------------------


def _written(made: Ingredients, began: float, progress: Progress) -> Bundle:
    from fresco_trt.lower.quantize.quantisation import quantisation

    resolved = made.resolved
    with BundleWriter(resolved.out) as writer:
        basis = _measured_basis(made, progress)
        calibration = None if basis is None else _stored(basis, writer.folder)
        quantised = quantisation(made, progress)
        quantizer = None if quantised is None else quantised.quantizer
        engines, seconds = _engines(made, quantizer, writer.folder, progress)
        quantized = None
        if quantised is not None:
            directions = None if basis is None else basis.directions
            quantized = quantised.record(writer.folder, engines, directions, progress)
        draft = ManifestDraft.model_validate(
            {
                "model": model_record(made),
                "plan": resolved.plan,
                "text_tokens": resolved.facts.text_tokens,
                "precision": resolved.quant.precision,
                "calibration": calibration,
                "quantized": quantized,
                "backend": backend_record(resolved),
                "engines": engines,
                "pipeline": pipeline_record(made, writer.folder),
                "built": built_record(made, perf_counter() - began, seconds),
                "key": made.key,
            }
        )
        return writer.commit(draft, progress=progress)


def _measured_basis(made: Ingredients, progress: Progress) -> Basis | None:
    """The SVD basis, measured if it was not given."""
    if isinstance(made.basis, Reference):
        return measure_basis(made.basis, made.resolved.plan, progress=progress)
    return made.basis


def _stored(basis: Basis, folder: Path) -> str:
    """Write the SVD basis into the bundle; its file's SHA-256."""
    path = folder / BASIS_FILE
    basis.store(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _engines(
    made: Ingredients, quantizer: Quantizer | None, folder: Path, progress: Progress
) -> tuple[tuple[EngineRecord, ...], dict[str, float]]:
    """Every engine's record, and the wall seconds that the library took for each graph: those
    that were taken for all of them are spread evenly.
    """
    from fresco_trt.run.sampler import engine_name

    resolved = made.resolved
    options = BuildOptions(
        folder=folder,
        targets=resolved.target.gpus,
        precision=resolved.quant.precision,
        progress=progress,
        stream_weights=resolved.target.stream_weights,
        timings=cache_folder() / "timings",
    )
    files: dict[str, EngineFiles] = {}
    seconds: dict[str, float] = {}
    # Inside the folder that is being written: what a killed build leaves, the next one removes.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        graphs = _stage_graphs(made, quantizer, Path(work), progress)
        began = perf_counter()
        prepare(resolved.backend, graphs, options)
        shared = (perf_counter() - began) / len(graphs)
        for graph in graphs:
            began = perf_counter()
            files[graph.name] = resolved.backend.build(graph, options)
            seconds[graph.name] = round(shared + perf_counter() - began, 3)
    records = tuple(
        EngineRecord(
            name=name,
            family=resolved.family.name,
            files=files[graph_of(resolved.target.layout, name)],
            signature=resolved.signature(index, action),
        )
        for index, action in resolved.plan.graphs
        for name in (engine_name(index, action),)
    )
    return records, seconds


def _stage_graphs(
    made: Ingredients, quantizer: Quantizer | None, work: Path, progress: Progress
) -> tuple[StageGraph, ...]:
    """Every graph of the plan in the form the backend builds from."""
    from fresco_trt.lower.export import export_stages
    from fresco_trt.lower.weights import write_source

    resolved, source = made.resolved, work / "transformer"
    onnx = resolved.backend.describe().graph_format == "onnx"
    transformer = made.transformer
    if quantizer is not None and not onnx:
        from fresco_trt.lower.quantize.fp8_modules import with_fp8_modules

        transformer = with_fp8_modules(transformer, quantizer)
    graphs = tuple(
        StageGraph(
            name=name,
            signature=signatures[-1],
            module=resolved.family.graphs.module(transformer, signatures[-1]),
            family=resolved.family.name,
            onnx=None,
            weights=None,
            source=source,
            profiles=signatures if len(signatures) > 1 else (),
        )
        for name, signatures in graph_signatures(resolved).items()
    )
    if onnx:
        folder = resolved.graphs or work
        return export_stages(graphs, folder, quantizer=quantizer, progress=progress)
    if quantizer is not None:
        from fresco_trt.lower.quantize.fp8_modules import products_of

        quantizer.account.products |= {graph.name: products_of(graph) for graph in graphs}
    write_source(transformer, source)
    return graphs


__all__ = [
    "BuildRequest",
    "Built",
    "build",
    "describe",
    "requests_of",
    "resolve",
    "run",
]
