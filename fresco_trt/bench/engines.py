"""Static engines for any number of plans: one for each number of tokens, built once, shared.

A stage's graph depends on its numbers of tokens and nothing else, positions being inputs; so the
plans of a whole bench, mixed stages and one-stage controls included, need about a dozen engines.
Phase-aligned attention also asks how many tokens are coarse, and a cache that the full graph gives
its feature, besides the bypass.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from fresco_trt.backends.base import BuildOptions, Progress, StageGraph, silent
from fresco_trt.backends.preparing import prepare
from fresco_trt.bench.instrument import Draw, Drawn
from fresco_trt.files.atomic_file import writing
from fresco_trt.models.registry import family_of
from fresco_trt.plan.cost import plan_cost
from fresco_trt.run.request import engine_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.backends.base import Backend, Runner
    from fresco_trt.lower.quantize.qdq import Quantizer
    from fresco_trt.plan.caching import CacheSite
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import Action, StagePlan
    from fresco_trt.run.denoise import Denoiser

LIST = "engines.json"


class Kind(NamedTuple):
    """What an engine is built for: image tokens; how many of them were expanded where attention is
    phase-aligned, else 0; whether it is the plain full graph, that with its feature as an output,
    or the bypass; where the latter two take their feature; and the text tokens, 0 for the model's
    own.
    """

    tokens: int
    refined: int = 0
    graph: Literal["full", "feature", "bypass"] = "full"
    site: CacheSite = "final"
    text: int = 0

    @property
    def key(self) -> str:
        """A name, also of files."""
        aligned = f"-aligned{self.refined}" if self.refined else ""
        graph = "" if self.graph == "full" else f"-{self.graph}"
        site = "" if self.site == "final" else f"-{self.site}"
        return f"{self.tokens}{aligned}{graph}{site}" + (f"-text{self.text}" if self.text else "")


def kinds_of(plan: StagePlan) -> dict[str, Kind]:
    """What each engine of a plan is, by the name that the sampler calls it."""
    return {engine_name(index, action): _kind(plan, index, action) for index, action in plan.graphs}


def _kind(plan: StagePlan, index: int, action: Action) -> Kind:
    tokens, refined = plan.tokens[index], plan.aligned[index]
    text = plan.stages[index].text_tokens or 0
    if plan.velocity_grid is not None and action == "bypass":
        return Kind(plan.velocity_grid.tokens, text=text)
    has_feature = plan.cache is not None and plan.velocity_grid is None
    if plan.cache is None or not has_feature or "bypass" not in plan.stages[index].actions:
        return Kind(tokens, refined, text=text)
    if action == "bypass":
        # At the end no text is left: only the first block of a trunk sees it.
        text = text if plan.cache.site == "trunk" else 0
        return Kind(tokens, graph="bypass", site=plan.cache.site, text=text)
    return Kind(tokens, refined, "feature", plan.cache.site, text)


def signatures_of(facts: ModelFacts, plans: Iterable[StagePlan]) -> dict[Kind, GraphSignature]:
    """Every engine that some plans need, and its signature."""
    graphs = family_of(facts).graphs
    return {
        _kind(plan, index, action): graphs.signature(
            facts, plan, index, action, text_tokens=facts.text_tokens
        )
        for plan in plans
        for index, action in plan.graphs
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A built engine, as a backend's ``load`` asks for it."""

    name: str
    family: str
    files: tuple[str, ...]
    signature: GraphSignature


class EnginePool:
    """Engines of one model in one folder, by their kind.

    ``folder`` may hold engines that another process built. An engine is loaded when a plan first
    asks for it and freed by ``scope``.
    """

    def __init__(self, facts: ModelFacts, library: Backend, folder: Path, scope: ExitStack) -> None:
        self._facts, self._library, self._folder, self._scope = facts, library, folder, scope
        self._runners: dict[Kind, Runner] = {}

    @property
    def device(self) -> str:
        """Where the engines' outputs live."""
        return self._library.describe().device

    def has(self, kinds: Iterable[Kind]) -> bool:
        """Whether the folder has engines of all of these kinds."""
        return self._files().keys() >= {kind.key for kind in kinds}

    def build(
        self,
        signatures: Mapping[Kind, GraphSignature],
        transformer: Module,
        progress: Progress = silent,
        quantizer: Quantizer | None = None,
        *,
        precision: str = "fp32",
    ) -> None:
        """Build engines of these kinds, over one file of weights, in the ``precision`` that those
        of the transformer have, or quantised where asked.

        Once a folder, with every kind: graphs that came later would lie over weights of another
        layout. Raises what the backend's ``build`` raises, ExportError, and ValueError for a folder
        that has engines already.
        """
        wanted, have = sorted(signatures), self._files()
        if have:
            given = ", ".join(kind.key for kind in wanted)
            raise ValueError(f"engines for {given} tokens in a folder with some for {list(have)}")
        self._folder.mkdir(parents=True, exist_ok=True)
        ordered = {kind: signatures[kind] for kind in wanted}
        if quantizer is not None:
            precision = quantizer.recipe.precision
        options = BuildOptions(folder=self._folder, precision=precision, progress=progress)
        files = self._built(ordered, transformer, options, quantizer)
        stored = {kind.key: list(names) for kind, names in zip(wanted, files, strict=True)}
        with writing(self._folder):
            (self._folder / LIST).write_text(json.dumps(stored) + "\n", encoding="utf-8")

    def runners(self, plan: StagePlan) -> dict[str, Runner]:
        """Entered runners for a plan's stages, by the names that the sampler calls them."""
        signatures = signatures_of(self._facts, [plan])
        return {name: self._runner(kind, signatures[kind]) for name, kind in kinds_of(plan).items()}

    def _runner(self, kind: Kind, signature: GraphSignature) -> Runner:
        if kind not in self._runners:
            files = self._files()[kind.key]
            family = self._facts.family
            engine = Engine(name=_name(kind), family=family, files=files, signature=signature)
            runner = self._library.load(self._folder, engine)
            self._runners[kind] = self._scope.enter_context(runner)
        return self._runners[kind]

    def _files(self) -> dict[str, tuple[str, ...]]:
        path = self._folder / LIST
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {key: tuple(names) for key, names in stored.items()}

    def _built(
        self,
        signatures: Mapping[Kind, GraphSignature],
        transformer: Module,
        options: BuildOptions,
        quantizer: Quantizer | None,
    ) -> list[tuple[str, ...]]:
        from fresco_trt.lower.export import export_stages
        from fresco_trt.lower.weights import write_source

        family, progress = family_of(self._facts), options.progress
        with TemporaryDirectory(dir=self._folder, prefix=".work-") as work:
            source = Path(work) / "transformer"
            graphs: tuple[StageGraph, ...] = tuple(
                StageGraph(
                    name=_name(kind),
                    family=self._facts.family,
                    signature=signature,
                    module=family.graphs.module(transformer, signature),
                    onnx=None,
                    weights=None,
                    source=source,
                )
                for kind, signature in signatures.items()
            )
            if self._library.describe().graph_format == "onnx":
                graphs = export_stages(graphs, Path(work), progress=progress, quantizer=quantizer)
            else:
                write_source(transformer, source)
            prepare(self._library, graphs, options)
            return [self._library.build(graph, options) for graph in graphs]


def plan_method(denoiser: Denoiser, prompt_tokens: int | None = None) -> Draw:
    """What draws by a denoiser's plan on its entered runners: the sampler's loop, timed as a
    request's is. A plan that cuts the text needs the number of ``prompt_tokens`` that no prompt
    drawn has more of.

    The seconds hold the drawing of the noise, every step and every transition.
    """
    from fresco_trt.run.request import Conditioning

    flops = plan_cost(denoiser.facts, denoiser.plan).flops

    def draw(inputs: Mapping[str, Tensor], seed: int) -> Drawn:
        began, inside = perf_counter(), 0.0
        given = Conditioning(inputs=inputs, prompt_tokens=prompt_tokens)
        for step in denoiser.steps(given, seed):
            inside += step.engine_seconds
        # Where engines run asynchronously, this copy is what waits for them.
        latents = denoiser.latents(step).cpu()
        seconds = perf_counter() - began
        return Drawn(latents=latents, seconds=seconds, engine_seconds=inside, flops=flops)

    return draw


def _name(kind: Kind) -> str:
    return f"tokens{kind.key}.engine"
