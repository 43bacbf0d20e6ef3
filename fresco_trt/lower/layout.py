"""How the graphs of a plan become engines: one for each stage, or one for all stages together.

Between a resolved request and the export. In the layout "static" every engine is built from a graph
of its own; in "profiles" the full graphs are one, open in its token count, and so are the bypass
graphs: an engine library that takes several shapes then stores the weights once, with a profile of
one static shape for each stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.errors import IncompatibleOptions, UnsupportedSize
from fresco_trt.files import peak_memory
from fresco_trt.plan.batches import batch_problem
from fresco_trt.plan.config import LAYOUTS, PROFILES, STATIC
from fresco_trt.plan.cost import WEIGHT_BYTES, longest
from fresco_trt.plan.sparse import SPARSE

if TYPE_CHECKING:
    from fresco_trt.backends.base import BackendFacts
    from fresco_trt.lower.request import Resolved
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import Action, StagePlan


def check_attention(
    facts: ModelFacts, plan: StagePlan, about: BackendFacts, precision: str
) -> None:
    """Raise as :func:`check_sparse` and :func:`check_scores`."""
    check_sparse(plan, about)
    check_scores(facts, plan, about, precision)


def check_scores(facts: ModelFacts, plan: StagePlan, about: BackendFacts, precision: str) -> None:
    """Raise UnsupportedSize where a library that does not fuse attention would need more memory for
    one matrix of its scores, of all heads, than this machine has.
    """
    machine = peak_memory.physical_memory()
    if about.memory is None or not about.memory.scores or machine is None:
        return
    length = longest(facts, plan)
    needed = facts.heads * length**2 * WEIGHT_BYTES[precision]
    if needed > machine:
        raise UnsupportedSize(
            f"attention over {length:,} tokens in {about.name}: {needed / 1e9:,.0f} GB for one "
            "matrix of its scores",
            expected=f"at most the {machine / 1e9:,.1f} GB of memory that this machine has",
            fix="pass a smaller --size, or --backend inductor, whose attention is fused",
        )


def check_sparse(plan: StagePlan, about: BackendFacts) -> None:
    """Raise IncompatibleOptions for sparse attention of a library that has no kernel for it."""
    if plan.sparse_attention is None or about.sparse:
        return
    raise IncompatibleOptions(
        f"{SPARSE}={plan.sparse_attention:g} with the backend {about.name}",
        expected="inductor or eager: no other has attention over chosen blocks of keys",
        fix=f"pass --backend inductor, or leave {SPARSE} out of --preset or the plan",
    )


def check_layout(layout: str, plan: StagePlan, about: BackendFacts) -> None:
    """Raise IncompatibleOptions for a layout that the backend does not know, or the plan defies."""
    if layout not in LAYOUTS:
        raise _refused(f"layout={layout} in --target", f"one of {', '.join(LAYOUTS)}")
    if layout not in about.layouts:
        given = f"layout={layout} in --target, with the backend {about.name}"
        raise _refused(given, "tensorrt or tensorrt-rtx, whose engines take several shapes")
    if layout == PROFILES and len(set(plan.tokens)) == 1:
        given = f"layout={layout} in --target, with one token count, {plan.tokens[0]}"
        raise _refused(given, "two stages or more: one has nothing to share")
    if layout == PROFILES and any(plan.aligned):
        given = f"layout={layout} in --target, with phase-aligned attention"
        raise _refused(given, "stages that differ in their token count alone")
    if layout == PROFILES and plan.cuts_text:
        given = f"layout={layout} in --target, with text_tokens of stages"
        raise _refused(given, "stages that differ in their image tokens alone")


def check_batch(batch: int, plan: StagePlan) -> None:
    """Raise IncompatibleOptions for a number of pictures that no engine takes at once."""
    problem = batch_problem(plan, batch)
    if problem is not None:
        given, expected = problem
        raise IncompatibleOptions(
            f"{given} in --target",
            expected=expected,
            fix="leave batch out: pictures are then drawn one after another",
        )


def check_streaming(layout: str, plan: StagePlan, about: BackendFacts) -> None:
    """Raise IncompatibleOptions where weights cannot be streamed, or would be room in vain.

    A streamed plan takes what memory the device has left: of several, each would take the next's.
    """
    if not about.streams:
        given = f"stream_weights=true in --target, with the backend {about.name}"
        expected = "tensorrt or tensorrt-rtx, whose engines run with weights on the host"
        fix = "leave stream_weights out"
    elif layout == STATIC and len(plan.stages) > 1:
        given = (
            f"stream_weights=true in --target, with {len(plan.stages)} plans, one for each stage"
        )
        expected = "one plan: it takes all the memory there is for its weights"
        fix = f"write layout={PROFILES} too, or pass --stages 1"
    else:
        return
    raise IncompatibleOptions(given, expected=expected, fix=fix)


def graph_of(layout: str, engine: str) -> str:
    """Name of the graph that an engine is built from: its own, or the action that stages share."""
    return engine if layout == STATIC else engine.rpartition(".")[2]


def graph_signatures(resolved: Resolved) -> dict[str, tuple[GraphSignature, ...]]:
    """By graph name, the signatures that each graph is to serve, none twice, in stage order."""
    from fresco_trt.run.sampler import engine_name

    found: dict[str, dict[GraphSignature, None]] = {}
    for index, action in resolved.plan.graphs:
        name = graph_of(resolved.target.layout, engine_name(index, action))
        found.setdefault(name, {})[_signature(resolved, index, action)] = None
    return {name: tuple(signatures) for name, signatures in found.items()}


def _signature(resolved: Resolved, stage: int, action: Action) -> GraphSignature:
    """As the graph has it: a shared one gives its feature at every stage, if any stage needs it."""
    if resolved.target.layout == STATIC:
        return resolved.signature(stage, action)
    plan, text = resolved.plan, resolved.facts.text_tokens
    feature = plan.velocity_grid is None and any(action == "bypass" for _, action in plan.graphs)
    return resolved.family.graphs.signature(
        resolved.facts,
        plan,
        stage,
        action,
        text_tokens=text,
        feature=feature,
        batch=resolved.target.batch,
    )


def _refused(given: str, expected: str) -> IncompatibleOptions:
    return IncompatibleOptions(given, expected=expected, fix="leave layout out")
