"""What a build would do, said without weights: engines, what they take, how long they took before.

Beside the build: it stands on the same resolved request, so that the two refuse the same things.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.backends.missing import in_words, missing_to_build, missing_to_run
from fresco_trt.errors import OutOfDeviceMemory
from fresco_trt.files.canonical_json import MANIFEST_NAME
from fresco_trt.lower.earlier import earlier_builds
from fresco_trt.lower.request import resolve
from fresco_trt.plan.cost import plan_summary
from fresco_trt.plan.depth import format_blocks
from fresco_trt.plan.memory import graph_memory, held_to_build, layout_memory, reckoning

if TYPE_CHECKING:
    from pathlib import Path

    from fresco_trt.backends.base import Backend
    from fresco_trt.backends.choosing import Gpu
    from fresco_trt.lower.request import BuildRequest, Resolved
    from fresco_trt.plan.memory import GraphMemory, Library, Parameters
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import Action


def describe(request: BuildRequest) -> dict[str, Any]:
    """The plan's summary, its engines, and for each layout that the backend has what they take.

    All bytes are those of :mod:`fresco_trt.plan.memory`; ``estimates`` says how they are reckoned.
    Both are empty for a backend that nothing is known of. ``earlier`` of an engine is its last
    build in a bundle beside this one, or None. Raises what :func:`resolve` raises.
    """
    resolved = resolve(request)
    library = resolved.backend.describe().memory
    return {
        "out": str(resolved.out),
        "backend": resolved.backend.name,
        "precision": resolved.quant.precision,
        "targets": list(resolved.target.gpus),
        "layout": resolved.target.layout,
        "stream_weights": resolved.target.stream_weights,
        "batch": resolved.target.batch,
        "blocks": None if resolved.blocks is None else format_blocks(resolved.blocks),
        **_feasibility(resolved.backend),
        "reuse": _reuse(resolved.out),
        "plan": plan_summary(resolved.facts, resolved.plan, request.steps),
        "engines": _engines(resolved),
        "layouts": _of_library(resolved),
        "estimates": "" if library is None else reckoning(library),
    }


def _engines(resolved: Resolved) -> list[dict[str, Any]]:
    earlier, rest = earlier_builds(resolved), resolved.rest
    described = []
    for (index, action), (name, signature) in zip(
        resolved.plan.graphs, _signatures(resolved).items(), strict=True
    ):
        before = earlier.get(signature)
        described.append(
            {
                "name": name,
                "tokens": signature.output("velocity").shape[1],
                "text_tokens": _text_tokens(signature),
                "latents": _latents(resolved, index, action),
                "weight_bytes": _parameters(resolved, action).bytes(rest),
                "earlier": None if before is None else before.to_json(),
                "signature": signature.to_json(),
            }
        )
    return described


def _signatures(resolved: Resolved) -> dict[str, GraphSignature]:
    """Of every engine by its name, in the plan's order."""
    from fresco_trt.run.sampler import engine_name

    return {
        engine_name(index, action): resolved.signature(index, action)
        for index, action in resolved.plan.graphs
    }


def _latents(resolved: Resolved, index: int, action: Action) -> str:
    """The grid that an engine runs on; a coarse velocity's is its own."""
    small = resolved.plan.velocity_grid if action == "bypass" else None
    grid = small or resolved.plan.stages[index].grid
    return f"{grid.width}x{grid.height}"


def _run(resolved: Resolved, action: Action) -> Action:
    """What of the network runs: all of it for a coarse velocity."""
    return "full" if resolved.plan.velocity_grid is not None else action


def _text_tokens(signature: GraphSignature) -> int:
    """How many text tokens an engine takes; a bypass at the end takes none."""
    return next((spec.shape[1] for spec in signature.inputs if spec.name == "text"), 0)


# --- memory -----------------------------------------------------------------------------------


def check_gpu(resolved: Resolved, gpu: Gpu | None) -> None:
    """Raise OutOfDeviceMemory for engines for the ``gpu`` of this machine that it has no room for.

    Those for named GPUs, or with part of their weights on the host, may run all the same.
    """
    about, target = resolved.backend.describe(), resolved.target
    if gpu is None or about.device != "cuda" or target.gpus or target.stream_weights:
        return
    layouts = {each["name"]: each["resident_bytes"] for each in _of_library(resolved)}
    resident = layouts.get(target.layout, min(layouts.values(), default=0))
    if resident > gpu.bytes:
        raise OutOfDeviceMemory(
            f"about {resident / 1e9:.1f} GB of engines for a GPU of {gpu.bytes / 1e9:.1f} GB",
            expected=f"engines that the {gpu.name} has room for",
            fix="pass a smaller --size, or --precision fp8",
        )


def _of_library(resolved: Resolved) -> list[dict[str, Any]]:
    """The layouts that the library has, and what they take; none where nothing is known of it."""
    library = resolved.backend.describe().memory
    return [] if library is None else _layouts(resolved, library)


def _layouts(resolved: Resolved, library: Library) -> list[dict[str, Any]]:
    held = held_to_build(_parameters(resolved, "full"), resolved.rest)
    graphs = _graphs(resolved)
    return [layout_memory(library, each, graphs, held).to_json() for each in library.layouts]


def _graphs(resolved: Resolved) -> list[GraphMemory]:
    rest = resolved.rest
    named = zip(resolved.plan.graphs, _signatures(resolved).items(), strict=True)
    return [
        graph_memory(
            resolved.facts,
            name,
            signature,
            _parameters(resolved, action),
            rest,
            action=_run(resolved, action),
        )
        for (_, action), (name, signature) in named
    ]


def _parameters(resolved: Resolved, action: Action) -> Parameters:
    cache = resolved.plan.cache
    return resolved.family.weights.parameters(
        resolved.facts,
        _run(resolved, action),
        "final" if cache is None else cache.site,
        recipe=resolved.recipe,
        kept=resolved.kept,
    )


# --- what is there ----------------------------------------------------------------------------


def _feasibility(library: Backend) -> dict[str, Any]:
    """Whether this machine can build, and what it lacks to build or, failing that, to run."""
    to_build, to_run = missing_to_build(library), missing_to_run(library)
    if to_build:
        state = f"cannot be built here; missing: {in_words(to_build)}"
    elif to_run:
        state = f"ready to build; missing to run it here: {in_words(to_run)}"
    else:
        state = "ready to build"
    return {"builds": not to_build, "runs": not to_run, "state": state}


def _reuse(out: Path) -> str:
    if not (out / MANIFEST_NAME).is_file():
        return "nothing there to reuse"
    return "a bundle is there; whether its key is the same is known once the weights are read"
