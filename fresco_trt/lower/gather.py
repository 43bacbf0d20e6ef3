"""What a build is made from, loaded and checked: weights, pipeline folder, calibrations.

Between the resolved request and the export. Everything that is refused for what a file holds is
refused here, before anything is measured or written.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.bundle.amax import Amax, check_amax, read_amax
from fresco_trt.bundle.svd_basis import Basis, check_basis, read_basis
from fresco_trt.files.digests import folder_digest
from fresco_trt.files.process_folder import process_folder, temporary_room
from fresco_trt.lower.calibrate.basis import Reference, default_prompts, read_prompts
from fresco_trt.lower.calibrate.edits import default_edits, read_edits
from fresco_trt.lower.record import Ingredients
from fresco_trt.models.weights import bundled_folder, weights_digest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn import Module

    from fresco_trt.backends.base import Progress
    from fresco_trt.lower.request import Resolved


_RANDOM_BYTES = 96 * 1024 * 1024
"""More than made-up encoders and decoder take at the widths of any model."""


def gather(resolved: Resolved, scope: ExitStack, progress: Progress) -> Ingredients:
    """Weights and pipeline folder with their digests; ``scope`` holds what is temporary."""
    import torch

    progress("loading weights", 0.0)
    dtype = getattr(torch, resolved.dtype)
    family = resolved.family
    transformer = family.weights.load(resolved.weights, resolved.facts, dtype=dtype)
    progress("loading weights", 0.5)
    pipeline = _pipeline(resolved, scope)
    made = Ingredients(
        resolved=resolved,
        transformer=transformer,
        weights_digest=weights_digest(transformer),
        pipeline=pipeline,
        pipeline_digest=folder_digest(pipeline, family.components.names),
    )
    made = replace(made, reference=_reference(made))
    progress("loading weights", 1.0)
    return replace(made, basis=_basis_source(made), amax=_given_amax(made))


def _reference(made: Ingredients) -> Reference | None:
    """What trajectories are drawn with, where the build measures or judges by them."""
    resolved = made.resolved
    if resolved.recipe is None and (not _needs_basis(resolved) or resolved.cache.basis is not None):
        return None
    prompts, pictures = _asked(resolved)
    return Reference(
        facts=resolved.facts,
        transformer=_in_float32(made.transformer),
        weights_sha256=made.weights_digest,
        pipeline=made.pipeline,
        prompts=prompts,
        pictures=pictures,
    )


def _asked(resolved: Resolved) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    """What is drawn: prompts, and for a model that edits their pictures."""
    facts = resolved.facts
    if facts.references:
        return read_edits(default_edits(facts.name), resolved.plan.size)
    return read_prompts(default_prompts(facts.name)), ()


def _needs_basis(resolved: Resolved) -> bool:
    return resolved.plan.cache is not None and resolved.plan.cache.traits.needs_basis


def _basis_source(made: Ingredients) -> Basis | Reference | None:
    """The SVD basis that was given, checked, or what it will be measured with."""
    resolved = made.resolved
    if not _needs_basis(resolved):
        return None
    if resolved.cache.basis is None:
        return made.reference
    basis, facts = read_basis(resolved.cache.basis), resolved.facts
    check_basis(basis, model=facts.name, weights_sha256=made.weights_digest, hidden=facts.hidden)
    return basis


def _given_amax(made: Ingredients) -> Amax | None:
    """The amax that were given, checked; None where the build measures its own."""
    from fresco_trt.lower.calibrate.trajectories import in_full

    resolved = made.resolved
    if resolved.recipe is None or resolved.quant.amax is None:
        return None
    amax = read_amax(resolved.quant.amax)
    check_amax(
        amax,
        model=resolved.facts.name,
        weights_sha256=made.weights_digest,
        recipe=resolved.recipe,
        plan_sha256=in_full(resolved.plan).digest(),
    )
    return amax


def _pipeline(resolved: Resolved, scope: ExitStack) -> Path:
    """The prompt encoders and decoder; made up for random weights where none are bundled."""
    name, components = resolved.facts.name, resolved.family.components
    if resolved.weights != "random" or bundled_folder(name).is_dir():
        found = components.find(resolved.weights, name)
        components.check(found, resolved.facts)
        return found
    with temporary_room(_RANDOM_BYTES):
        folder = Path(scope.enter_context(tempfile.TemporaryDirectory(dir=process_folder())))
        return components.write_random(resolved.facts, folder)


def _in_float32(transformer: Module) -> Module:
    """The transformer, or a copy of it that computes in float32: what trajectories are drawn with.

    On a CPU bfloat16 is hundreds of times slower.
    """
    import torch

    if all(each.dtype == torch.float32 for each in transformer.parameters()):
        return transformer
    # diffusers' own ``to`` warns about every cast; this is the plain one.
    return torch.nn.Module.to(copy.deepcopy(transformer), torch.float32)
