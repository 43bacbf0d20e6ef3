"""What a plan's engines take before any is built: on disk, resident where they run, while building.

Beside :mod:`fresco_trt.plan.cost`, and like it numbers only. Bytes of weights are exact, parameters
times bytes. All else is an estimate: live tensors are those of the widest block, and what a library
adds stands in its backend's own file, with what it was measured on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

from fresco_trt.plan.caching import Action
from fresco_trt.plan.cost import WEIGHT_BYTES, activation_bytes
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.signature import DTYPES, GraphSignature

Owner = Literal["engine", "kind", "bundle"]

_TYPE_BYTES = dict.fromkeys(DTYPES, 1) | {
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
}
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """How many a graph has in ``whole``; ``quantized`` of them are stored as codes of one byte,
    with so many ``scales``.
    """

    whole: int
    quantized: int = 0
    scales: int = 0

    def bytes(self, rest: str) -> int:
        """Bytes of the weights; what is not a code, scales too, is stored in precision ``rest``."""
        return self.quantized + WEIGHT_BYTES[rest] * (self.whole - self.quantized + self.scales)


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphMemory:
    """What one graph takes, in bytes, whoever runs it.

    ``weights`` are its own; ``activations`` the live tensors of its widest block, with fused
    attention; ``scores`` one matrix of attention scores of all heads, where it is not fused;
    ``tensors`` its inputs and outputs. Graphs of one ``kind`` differ in their number of tokens
    only; ``blocks`` is how many they run.
    """

    name: str
    kind: str
    blocks: int
    weights: int
    activations: int
    scores: int
    tensors: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Who has weights of its own: every ``engine``, every ``kind`` of graph, or the ``bundle``.

    In every layout engines share the memory of their live tensors, of which the largest counts.
    """

    name: str
    weights: Owner


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """What an engine library adds to a graph's own bytes.

    ``host`` is a building process before any weights, ``copies`` how many of an engine's weights it
    holds beside the transformer; ``program`` an engine's code, ``program_block`` that of a block;
    ``scratch`` what is reserved over the live tensors, ``scores`` how many matrices of attention
    scores; shared weights up to ``relaid_up_to`` bytes are copied for each engine that runs.
    """

    layouts: tuple[Layout, ...]
    host: int
    copies: float
    program: int
    program_block: int
    scratch: float = 1.0
    scores: int = 0
    relaid_up_to: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineMemory:
    """Bytes of one engine: on ``disk`` and ``resident`` what is its own alone, ``build`` what the
    building machine's memory must hold at once.
    """

    name: str
    disk: int
    resident: int
    build: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutMemory:
    """Bytes of all engines in one layout; ``shared`` are weights that no engine has alone.

    ``disk`` and ``resident`` are for the whole bundle with every engine loaded, ``build`` of the
    engine that takes most: they are built one after another.
    """

    name: str
    engines: tuple[EngineMemory, ...]
    shared: int
    disk: int
    resident: int
    build: int

    def to_json(self) -> dict[str, object]:
        """The layout as ``fresco-trt build --dry-run --json`` prints it."""
        return {
            "name": self.name,
            "shared_bytes": self.shared,
            **_bytes_of(self),
            "engines": [{"name": each.name, **_bytes_of(each)} for each in self.engines],
        }


# --- what layouts there are --------------------------------------------------------------------

STATIC = Layout(name="static", weights="engine")
"""One plan for every stage, each with its own weights."""

PROFILES = Layout(name="profiles", weights="kind")
"""One plan for all graphs of a kind, with a profile for every stage."""

SHARED = Layout(name="shared", weights="bundle")
"""Engines without weights over one file of them."""


def reckoning(library: Library) -> str:
    """In a sentence, how the numbers of a library come about and which of them are estimates."""
    scratch = "" if library.scratch == 1.0 else f" x {library.scratch:g}"
    scores = f", {library.scores} matrices of attention scores" if library.scores else ""
    copies = f" and {library.copies:g} x an engine's weights" if library.copies else ""
    return (
        "weights are parameters x bytes, exact; the rest is estimated: code, for resident memory "
        f"inputs, outputs and the live tensors of the widest block{scratch}{scores}; to build, "
        f"{library.host / 1e9:.2f} GB, the transformer{copies}; encoders and decoder do not count"
    )


# --- graphs -----------------------------------------------------------------------------------


def graph_memory(
    facts: ModelFacts,
    name: str,
    signature: GraphSignature,
    parameters: Parameters,
    rest: str,
    *,
    action: Action = "full",
) -> GraphMemory:
    """What the graph of ``signature`` takes with its tensors in precision ``rest``, all pictures
    of its batch together.
    """
    batch, tokens = signature.output("velocity").shape[:2]
    names = [spec.name for spec in (*signature.inputs, *signature.outputs)]
    text = next((spec.shape[1] for spec in signature.inputs if spec.name == "text"), None)
    runs_blocks = text is not None
    if text is not None:
        behind = signature.input("latents").shape[1] - tokens
        alive = activation_bytes(facts, tokens, rest, references=behind, text_tokens=text)
        scores = facts.heads * (tokens + behind + text) ** 2 * WEIGHT_BYTES[rest]
    else:
        alive, scores = bypass_activation_bytes(facts, tokens, rest), 0
    all_blocks = facts.blocks if action == "full" else 1
    return GraphMemory(
        name=name,
        kind=" ".join((action, *names)),
        blocks=all_blocks if runs_blocks else 0,
        weights=parameters.bytes(rest),
        activations=batch * alive,
        scores=batch * scores,
        tensors=tensor_bytes(signature),
    )


def bypass_activation_bytes(facts: ModelFacts, tokens: int, precision: str) -> int:
    """Estimate of what is alive after the last block: the feature, its norm, that modulated, and
    the velocity.
    """
    return tokens * (3 * facts.hidden + facts.in_channels) * WEIGHT_BYTES[precision]


def tensor_bytes(signature: GraphSignature) -> int:
    """Bytes of all inputs and outputs, exact."""
    specs = (*signature.inputs, *signature.outputs)
    return sum(prod(spec.shape) * _TYPE_BYTES[spec.dtype] for spec in specs)


def held_to_build(transformer: Parameters, rest: str) -> tuple[int, int]:
    """Bytes that a build holds all the time, and those it also holds while it judges.

    The transformer as it is stored. What is quantised is also drawn with, in float32, before and
    after: by a copy, unless ``rest`` is float32 already, and by one more of the rounded layers.
    """
    stored = WEIGHT_BYTES[rest] * transformer.whole
    if not transformer.quantized:
        return stored, 0
    copied = 0 if WEIGHT_BYTES[rest] == _FLOAT32 else _FLOAT32 * transformer.whole
    return stored + copied, _FLOAT32 * transformer.quantized


# --- layouts ----------------------------------------------------------------------------------


def layout_memory(
    library: Library, layout: Layout, graphs: Sequence[GraphMemory], held: tuple[int, int]
) -> LayoutMemory:
    """Every engine of ``graphs`` in one layout, and all together; ``held`` is that of the build
    (:func:`held_to_build`).
    """
    shared = _shared(layout, graphs)
    engines = tuple(_engine(library, layout, graph, shared, held) for graph in graphs)
    scratch = [_scratch(library, graph) for graph in graphs]
    spared = sum(scratch) - max(scratch)  # one engine runs at a time, and they share it
    return LayoutMemory(
        name=layout.name,
        engines=engines,
        shared=shared,
        disk=shared + sum(each.disk for each in engines),
        resident=shared + sum(each.resident for each in engines) - spared,
        build=max(each.build for each in engines),
    )


def _shared(layout: Layout, graphs: Iterable[GraphMemory]) -> int:
    """Weights that no engine has alone: a bypass's are among those of the full graphs."""
    if layout.weights == "engine":
        return 0
    kinds: dict[str, int] = {}
    for graph in graphs:
        kinds[graph.kind] = max(graph.weights, kinds.get(graph.kind, 0))
    return sum(kinds.values()) if layout.weights == "kind" else max(kinds.values())


def _engine(
    library: Library, layout: Layout, graph: GraphMemory, shared: int, held: tuple[int, int]
) -> EngineMemory:
    program = library.program + library.program_block * graph.blocks
    own = graph.weights if layout.weights == "engine" else 0
    relaid = graph.weights if 0 < shared <= library.relaid_up_to else 0
    always, judging = held
    return EngineMemory(
        name=graph.name,
        disk=own + program,
        resident=own + relaid + program + _scratch(library, graph) + graph.tensors,
        build=library.host + always + max(ceil(library.copies * graph.weights), judging),
    )


def _scratch(library: Library, graph: GraphMemory) -> int:
    return ceil(library.scratch * graph.activations) + library.scores * graph.scores


def _bytes_of(memory: EngineMemory | LayoutMemory) -> dict[str, int]:
    return {
        "build_bytes": memory.build,
        "disk_bytes": memory.disk,
        "resident_bytes": memory.resident,
    }
