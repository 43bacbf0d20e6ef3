"""What goes into a build and how a manifest records it: identity, differences, records.

Between the loaded weights and the bundle. The build key is taken over everything in
:func:`identity`; the same parts are read back from an older bundle to say why it is not reused.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt import __version__
from fresco_trt.bundle.identity import told_identity
from fresco_trt.bundle.manifest import BackendRecord, BuiltRecord, ModelRecord, PipelineRecord
from fresco_trt.files.atomic_file import writing
from fresco_trt.files.canonical_json import build_key
from fresco_trt.lower.calibrate.basis import basis_identity
from fresco_trt.lower.earlier import SECONDS
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.depth import format_blocks
from fresco_trt.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn import Module

    from fresco_trt.bundle.amax import Amax
    from fresco_trt.bundle.manifest import Manifest
    from fresco_trt.bundle.svd_basis import Basis
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.lower.request import Resolved

PIPELINE_FOLDER = "pipeline"
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript")
"""Packages whose version can change an engine's bytes or the pipeline's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ingredients:
    """Everything a build is made from, with the digests that identify it.

    ``pipeline`` is the diffusers folder of prompt encoders and decoder; ``basis`` the principal
    directions that the plan's cache needs, or what they are measured with; ``amax`` those that a
    quantised precision needs, if they were given; ``reference`` what either is measured with, and
    a quantised build judged.
    """

    resolved: Resolved
    transformer: Module
    weights_digest: str
    pipeline: Path
    pipeline_digest: str
    basis: Basis | Reference | None = None
    amax: Amax | None = None
    reference: Reference | None = None

    @property
    def key(self) -> str:
        """The build key: equal keys mean the bundle can be reused."""
        return build_key(identity(self))


# --- identity ---------------------------------------------------------------------------------


def identity(made: Ingredients) -> dict[str, Any]:
    """Everything that went in, by name, as :func:`told_identity` reads it back."""
    resolved = made.resolved
    about = resolved.backend.describe()
    return {
        "model": resolved.facts.name,
        "weights": made.weights_digest,
        "plan": resolved.plan.to_json(),
        "SVD basis": basis_identity(made.basis),
        "text length": resolved.facts.text_tokens,
        "precision": resolved.quant.precision,
        "quantisation": quantisation_identity(made),
        "backend": [about.name, about.library, about.version],
        "targets": list(resolved.target.gpus),
        "layout": resolved.target.layout,
        "weight streaming": resolved.target.stream_weights,
        "prompt encoders or decoder": made.pipeline_digest,
        "package versions": packages(),
        **_machine("kind of machine", about.machine),
        **({"batch": resolved.target.batch} if resolved.target.batch != 1 else {}),
    }


def differences(old: Manifest, made: Ingredients) -> tuple[str, ...]:
    """Names of the parts of :func:`identity` in which a built bundle differs, or its key alone."""
    was = told_identity(old)
    now = identity(made)
    names = dict.fromkeys((*now, *was))
    return tuple(name for name in names if now.get(name) != was.get(name)) or ("build key",)


def _machine(name: str, machine: str | None) -> dict[str, str]:
    """The kind of machine that engines are tied to; nothing where they run on any."""
    return {} if machine is None else {name: machine}


def packages() -> dict[str, str | None]:
    """Versions of this package and of those that shape engines; None for one that is absent."""
    return {"fresco-trt": __version__, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def quantisation_identity(made: Ingredients) -> list[Any] | None:
    """What tells one quantisation from another before it is measured; None without one."""
    recipe, reference = made.resolved.recipe, made.reference
    if recipe is None or reference is None:
        return None
    prompts = f"seed {reference.seed}, prompts {reference.prompts_sha256}"
    given = None if made.amax is None else made.amax.digest()
    return [recipe.name, list(made.resolved.kept), given, prompts]


# --- records ----------------------------------------------------------------------------------


def model_record(made: Ingredients) -> ModelRecord:
    """Name, weights digest and dimensions."""
    facts = made.resolved.facts
    config = made.resolved.family.weights.config(facts)
    return ModelRecord(name=facts.name, weights_sha256=made.weights_digest, config=config)


def backend_record(resolved: Resolved) -> BackendRecord:
    """The engine library as it is here, and what was asked for of it."""
    about = resolved.backend.describe()
    return BackendRecord(
        name=about.name,
        library=about.library,
        library_version=about.version,
        target=resolved.target,
    )


def pipeline_record(made: Ingredients, folder: Path) -> PipelineRecord:
    """The prompt encoders and decoder, copied into the bundle: it names no place outside it.

    Raises OutputNotWritable or DiskFull.
    """
    names = made.resolved.family.components.names
    files = [file for name in names for file in _files(made.pipeline / name)]
    for file in files:
        target = folder / PIPELINE_FOLDER / file.relative_to(made.pipeline)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return PipelineRecord(folder=PIPELINE_FOLDER, digest=made.pipeline_digest, parts=names)


def built_record(
    made: Ingredients, seconds: float, engine_seconds: Mapping[str, float]
) -> BuiltRecord:
    """Versions, seconds in all and of each graph, and the choices that were made; no path of this
    machine.
    """
    resolved = made.resolved
    given = resolved.weights not in (None, "random")
    options: dict[str, Any] = {
        "model": resolved.facts.name,
        "stages": len(resolved.plan.stages),
        "preset": resolved.plan.preset or str(resolved.preset) or None,
        "size": format_size(resolved.plan.size),
        "weights": "a given path" if given else resolved.weights,
        "blocks": None if resolved.blocks is None else format_blocks(resolved.blocks),
        "precision": str(replace(resolved.quant, amax=None)),
        "quantisation": quantisation_identity(made),
        "cache": str(_cache(resolved)),
        "svd_basis": basis_identity(made.basis),
        "backend": resolved.backend.name,
        "packages": packages(),
        SECONDS: dict(engine_seconds),
        **_machine("machine", resolved.backend.describe().machine),
    }
    return BuiltRecord(
        version=__version__,
        python=platform.python_version(),
        torch=_version("torch"),
        seconds=round(seconds, 3),
        options=options,
    )


def _cache(resolved: Resolved) -> CacheConfig:
    """The cache as it was asked for, or as a preset or a plan has it; without its
    basis, which is told by its digest.
    """
    asked, settings = resolved.cache, resolved.plan.cache
    if settings is None or settings.name == asked.name:
        return replace(asked, basis=None)
    return CacheConfig(name=settings.name, max_order=settings.max_order, site=settings.site)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
