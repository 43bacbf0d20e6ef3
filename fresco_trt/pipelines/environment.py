"""Whether this machine and this version can draw with a bundle, asked before any engine is loaded.

The last step of opening a bundle, after its bytes are known to be the builder's: what they say must
also make sense together, since a bundle may come from another version, or from anywhere. What only
the engine library can tell (its plans' version, the GPU) it tells when it loads.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from fresco_trt.bundle.identity import check_key
from fresco_trt.errors import EnvironmentMismatch, FrescoError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fresco_trt.bundle.manifest import Manifest
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature


def check_environment(manifest: Manifest) -> None:
    """Raise EnvironmentMismatch unless this version can draw with a bundle that says this, and
    ManifestInvalid for what was not built together.

    It must know the model, the backend and its precision, and the plan; the text must fit the
    model; and there must be exactly the engines of the plan, each with its signature.
    """
    for problem, expected in _problems(manifest):
        raise EnvironmentMismatch(
            problem,
            expected=expected,
            fix="build the bundle again with this version, or update fresco-trt",
        )
    check_key(manifest)


def _problems(manifest: Manifest) -> Iterator[tuple[str, str]]:
    from fresco_trt.backends import backend, backend_names
    from fresco_trt.models.registry import model_facts

    name, library = manifest.model.name, manifest.backend.name
    try:
        facts = model_facts(name)
    except PlanError as error:
        yield f"a bundle of the model {name!r}", error.expected
        return
    if library not in backend_names():
        yield f"engines of the backend {library!r}", f"one of {', '.join(backend_names())}"
        return
    precisions = backend(library).describe().precisions
    if manifest.precision not in precisions:
        yield f"{library} engines in {manifest.precision}", f"one of {', '.join(precisions)}"
    if manifest.text_tokens > facts.text_tokens:
        given = f"engines for {manifest.text_tokens} text tokens"
        yield given, f"at most {facts.text_tokens} for {name}"
    yield from _model_problems(manifest, facts)
    yield from _plan_problems(manifest, facts)
    yield from _engine_problems(manifest, facts)


def _model_problems(manifest: Manifest, facts: ModelFacts) -> Iterator[tuple[str, str]]:
    from fresco_trt.models.registry import family_of
    from fresco_trt.plan.depth import parse_blocks

    family, blocks = family_of(facts), manifest.built.options.get("blocks")
    try:
        made = facts
        if blocks is not None:
            made = family.weights.with_blocks(facts, parse_blocks(str(blocks)))
    except FrescoError:
        yield f"engines of the blocks {blocks!r}"[:100], "null, or numbers like 1,1"
        return
    config = family.weights.config(made)
    if manifest.model.config != config:
        differ = [name for name in config if manifest.model.config.get(name) != config[name]]
        given = f"a model with other {', '.join(differ) or 'keys'} than {facts.name}"
        yield given[:200], "the configuration of the model that it names"
    folder, parts = manifest.pipeline.folder, manifest.pipeline.parts
    for name in family.components.names:
        place = f"{folder}/{name}"
        listed = any(f"{file.path}/".startswith(f"{place}/") for file in manifest.files)
        if not listed or (parts and name not in parts):
            yield f"a pipeline folder without {name}", f"{place} in the bundle, and in its parts"
            return


def _plan_problems(manifest: Manifest, facts: ModelFacts) -> Iterator[tuple[str, str]]:
    from fresco_trt.bundle.svd_basis import BASIS_FILE
    from fresco_trt.plan.stored import plan_problems
    from fresco_trt.run.request import check_transitions

    plan = manifest.plan
    problems = list(plan_problems(plan, facts))
    if problems:
        yield from problems
        return
    listed = {file.path for file in manifest.files}
    if plan.cache is not None and plan.cache.traits.needs_basis and BASIS_FILE not in listed:
        yield f"the cache {plan.cache.name} without its SVD basis", f"{BASIS_FILE} in the bundle"
    basis = next((file.sha256 for file in manifest.files if file.path == BASIS_FILE), None)
    if manifest.calibration != basis:
        yield f"a calibration that is not {BASIS_FILE}", "its SHA-256, or null where there is none"
    try:
        check_transitions(plan)
    except ValueError as error:
        yield f"a transition that cannot be applied: {error}", "one that this version knows"


def _engine_problems(manifest: Manifest, facts: ModelFacts) -> Iterator[tuple[str, str]]:
    from fresco_trt.models.registry import family_of
    from fresco_trt.plan.batches import batch_problem
    from fresco_trt.run.sampler import engine_name

    graphs, plan = family_of(facts).graphs, manifest.plan
    batch = manifest.backend.target.batch
    problem = batch_problem(plan, batch)
    if problem is not None:
        yield problem
        return
    wanted = {
        engine_name(index, action): graphs.signature(
            facts, plan, index, action, text_tokens=manifest.text_tokens, batch=batch
        )
        for index, action in plan.graphs
    }
    for record in manifest.engines:
        if record.family != facts.family:
            given = f"the engine {record.name} of the family {record.family!r}"
            yield given, f"{facts.family!r}, that of {facts.name}"
            return
    found = {record.name: record.signature for record in manifest.engines}
    if found.keys() != wanted.keys():
        yield f"the engines {', '.join(sorted(found))}", f"{', '.join(sorted(wanted))}, as planned"
        return
    for name, signature in wanted.items():
        if found[name] != signature:
            told, own = _different(found[name], signature), _different(signature, found[name])
            yield f"{name} with {told or 'less'}", own or "no more than the stage takes"


def _different(one: GraphSignature, other: GraphSignature) -> str:
    """The tensors that the one has and the other has not, or in another place."""
    pairs = zip_longest((*one.inputs, *one.outputs), (*other.inputs, *other.outputs))
    return ", ".join(str(mine) for mine, theirs in pairs if mine is not None and mine != theirs)
