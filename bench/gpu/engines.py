"""What is measured, and the engines over its weights: built once, opened one by one.

No bundle is written: it would hold the weights, and be hashed. The engines are what a bundle holds,
built by the same backend, in one folder over one transformer in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench.gpu.device import clock_of
from bench.gpu.weights import HeldTransformers
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.comparing import output_error
from fresco_trt.backends.eager import EagerBackend, module_runner
from fresco_trt.backends.inductor.backend import InductorBackend
from fresco_trt.backends.preparing import prepare
from fresco_trt.backends.transformer import FOLDER, WEIGHTS, SharedTransformers
from fresco_trt.bench.engines import Engine, Kind, signatures_of
from fresco_trt.errors import IncompatibleOptions, OutOfDeviceMemory, UnsupportedPrecision
from fresco_trt.files.atomic_file import replacing
from fresco_trt.files.share import usable_cores
from fresco_trt.models.flux.config import transformer_config
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_TINY
from fresco_trt.models.flux.family import FLUX
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.plan.config import QuantConfig
from fresco_trt.plan.cost import WEIGHT_BYTES, activation_bytes
from fresco_trt.plan.recipes import find_recipe
from fresco_trt.plan.sizes import stage_grids

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.backends.base import EngineRunner
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan

LIBRARIES: Mapping[str, Callable[[SharedTransformers], InductorBackend | EagerBackend]] = {
    "inductor": InductorBackend,
    "eager": EagerBackend,
}
"""Engine libraries over torch, which share one transformer with the plain pipeline."""

_PLAIN = {"cuda": "bf16", "cpu": "fp32"}
"""What the plain pipeline is run in, and our engines unless they are asked for otherwise."""

LIST = "engines.json"
WARMING = 2
"""Calls of an engine before it is measured: a plain one, and one that captures it."""

CALLS = 3
"""Calls of an engine that its time is taken from, after those."""


# --- the subject ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured: a model's dimensions, the picture's (width, height), where, and the
    precision of our engines: "bf16", on a CPU "fp32", or "fp8", such weights quantised by the
    ``recipe``. The plain pipeline's is always that of :attr:`rest`.
    """

    facts: ModelFacts
    size: Size
    device: str
    precision: str
    recipe: str | None = None

    @property
    def rest(self) -> str:
        """The precision of what has no FP8 modules."""
        return _PLAIN[self.device]

    @property
    def has_fp8_modules(self) -> bool:
        """Whether the engines have FP8 modules in place of linear layers."""
        return self.recipe is not None

    @property
    def dtype(self) -> torch.dtype:
        """torch's type of the weights outside FP8 modules."""
        import torch

        return torch.bfloat16 if self.rest == "bf16" else torch.float32

    @property
    def bytes_of_weights(self) -> int:
        """Of the plain pipeline's, and of the engines' where they have others."""
        precisions = {self.rest, self.precision}
        return sum(self.facts.parameters * WEIGHT_BYTES[each] for each in precisions)

    @property
    def tokens(self) -> int:
        """Image tokens of the full grid."""
        return stage_grids(self.facts, self.size, 1)[-1].tokens


def subject_of(
    device: str,
    *,
    tiny: bool,
    layers: tuple[int, int] | None,
    precision: str | None = None,
) -> Subject:
    """FLUX.1-dev at 1024x1024, or the demo model's dimensions at 64x64 and one block of each kind.

    ``layers`` replaces the (double, single) depth, for a card that the whole does not fit on;
    ``precision`` that of our engines (None: the plain pipeline's). Raises IncompatibleOptions for a
    depth below one of each, UnsupportedPrecision for a precision that is neither that nor "fp8".
    """
    quant = QuantConfig.of(precision or _PLAIN[device])
    if quant != QuantConfig(precision=quant.precision, recipe=quant.recipe) or (
        quant.precision not in (_PLAIN[device], "fp8")
    ):
        raise UnsupportedPrecision(
            f"--precision {precision} on {device}",
            expected=f"one of {_PLAIN[device]}, fp8; of these alone a recipe",
            fix="pass one of these, or leave --precision out",
        )
    recipe = find_recipe(quant.precision, quant.recipe)
    facts, size = (FLUX_TINY, (64, 64)) if tiny else (FLUX_DEV, FLUX_DEV.default_size)
    depth = layers or ((1, 1) if tiny else (facts.double_blocks, facts.single_blocks))
    if min(depth) < 1:
        raise IncompatibleOptions(
            f"--layers {depth[0]},{depth[1]}",
            expected="at least one double-stream and one single-stream block",
            fix=f"pass from 1,1 to {FLUX_DEV.double_blocks},{FLUX_DEV.single_blocks}",
        )
    # Tiny dimensions, but the layers that are quantised are those of the model a GPU measures.
    kept = FLUX_DEV.high_precision
    facts = replace(facts, double_blocks=depth[0], single_blocks=depth[1], high_precision=kept)
    return Subject(
        facts=replace(facts, parameters=parameters_of(facts)),
        size=size,
        device=device,
        precision=quant.precision,
        recipe=None if recipe is None else recipe.name,
    )


def parameters_of(facts: ModelFacts) -> int:
    """Parameters of the transformer at this depth; no memory is touched."""
    return sum(parameter.numel() for parameter in _shell(transformer_config(facts)).parameters())


def _shell(config: Mapping[str, Any]) -> Any:
    """A transformer without memory for its weights."""
    import diffusers
    import torch

    untyped: Any = diffusers
    with torch.device("meta"):
        return untyped.FluxTransformer2DModel(**config)


def check_fits(subject: Subject, bytes_free: int) -> None:
    """Raise OutOfDeviceMemory for a card that weights and activations do not fit on."""
    activations = activation_bytes(subject.facts, subject.tokens, subject.rest)
    needed = subject.bytes_of_weights + activations
    if needed > bytes_free:
        raise OutOfDeviceMemory(
            f"{needed / 1e9:.1f} GB of weights and activations, {bytes_free / 1e9:.1f} GB free",
            expected="a card that they fit on",
            fix="pass --layers with fewer blocks: steps of the same shape, and fewer of them",
        )


def twin(transformer: Any) -> Any:
    """Another module over the same weights, which may be compiled without touching the first."""
    other = _shell({name: value for name, value in transformer.config.items() if name[0] != "_"})
    other.load_state_dict(transformer.state_dict(), strict=True, assign=True)
    return other.eval().requires_grad_(False)


# --- engines ----------------------------------------------------------------------------------


class Workshop:
    """The engines of one subject in one folder, over one transformer in memory that the plain
    pipeline uses too; those in FP8, over a copy with FP8 modules, are in a folder of their own
    below it. Kept by its files: a folder of an earlier run has what that run built.
    """

    def __init__(self, subject: Subject, library: str, folder: Path) -> None:
        if library not in LIBRARIES:
            raise IncompatibleOptions(
                f"--backend {library}",
                expected=f"one of {', '.join(LIBRARIES)}, which run over the plain model's weights",
                fix="leave --backend out",
            )
        self._subject, self.folder = subject, folder
        self.engines = folder if subject.recipe is None else folder / subject.recipe
        self._shared = HeldTransformers()
        self.backend = LIBRARIES[library](self._shared)
        self._scope = ExitStack()
        self._runners: dict[Kind, EngineRunner] = {}

    def hold(self, network: Module) -> None:
        """The engines are those of this network from now on."""
        self._shared.hold(self.engines / FOLDER, network)

    def prepare(self, engines: Mapping[Kind, GraphSignature], network: Module) -> dict[str, Any]:
        """Compile what the engines that are not there share, side by side; seconds, new files."""
        before, began = len(self._code()), perf_counter()
        graphs = [
            self._graph(kind, signature, network)
            for kind, signature in engines.items()
            if not self.has(kind)
        ]
        prepare(self.backend, graphs, self._options())
        return {
            "seconds": perf_counter() - began,
            "compiled": len(self._code()) - before,
            "cores": usable_cores(),
        }

    def build(self, kind: Kind, signature: GraphSignature, network: Module) -> dict[str, Any]:
        """Build one engine, unless it is there; seconds (None: it was) and new files."""
        if kind.key in self._files():
            return {"engine": kind.key, "tokens": kind.tokens, "seconds": None, "compiled": 0}
        graph = self._graph(kind, signature, network)
        before, began = len(self._code()), perf_counter()
        files = self.backend.build(graph, self._options())
        seconds = perf_counter() - began
        self._list({**self._files(), kind.key: list(files)})
        compiled = len(self._code()) - before
        return {
            "engine": kind.key,
            "tokens": kind.tokens,
            "seconds": seconds,
            "compiled": compiled,
        }

    def has(self, kind: Kind) -> bool:
        """Whether the folder has this engine."""
        return kind.key in self._files()

    def runner(self, kind: Kind, signature: GraphSignature) -> EngineRunner:
        """The entered runner of a built engine; opened at its first use, until :meth:`close`."""
        if kind not in self._runners:
            files = tuple(self._files()[kind.key])
            engine = Engine(name=kind.key, family=FLUX.name, files=files, signature=signature)
            runner = self.backend.load(self.engines, engine)
            self._runners[kind] = self._scope.enter_context(runner)
        return self._runners[kind]

    def bytes_of(self, kinds: Iterable[Kind]) -> dict[str, int]:
        """Bytes on disk of some engines: of the weights, and of everything beside them."""
        listed = self._files()
        names = {name for kind in kinds for name in listed[kind.key]}
        sizes = {name: (self.engines / name).stat().st_size for name in names}
        weights = sizes.pop(f"{FOLDER}/{WEIGHTS}")
        return {"weights": weights, "code": sum(sizes.values())}

    def close(self) -> None:
        """Free the engines."""
        self._runners.clear()
        self._scope.close()

    def _graph(self, kind: Kind, signature: GraphSignature, network: Module) -> StageGraph:
        return StageGraph(
            name=kind.key,
            family=FLUX.name,
            signature=signature,
            module=graph_from_signature(network, signature),
            onnx=None,
            weights=None,
            source=self.engines / FOLDER,
        )

    def _options(self) -> BuildOptions:
        return BuildOptions(folder=self.engines, precision=self._subject.precision)

    def _code(self) -> list[Path]:
        return list(self.engines.rglob("*.pt2"))

    def _files(self) -> dict[str, Sequence[str]]:
        path = self.engines / LIST
        found: dict[str, Sequence[str]] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    def _list(self, files: Mapping[str, Sequence[str]]) -> None:
        with replacing(self.engines / LIST) as partial:
            partial.write_text(json.dumps(files) + "\n", encoding="utf-8")


def engines_of(facts: ModelFacts, plans: Iterable[StagePlan]) -> dict[Kind, GraphSignature]:
    """Every engine that some plans need, those of most tokens first, plain full graphs foremost."""
    found = signatures_of(facts, plans)
    order = ("full", "feature", "bypass")
    return dict(
        sorted(found.items(), key=lambda item: (-item[0].tokens, order.index(item[0].graph)))
    )


# --- one engine -------------------------------------------------------------------------------


def examine(runner: EngineRunner, network: Module, device: str) -> dict[str, Any]:
    """One warm engine against the eager graph on the same random inputs, and how long it takes.

    ``relative`` is the largest error of any output over that output's largest value (null if not
    finite), ``seconds`` the least of a few calls, ``cuda_graph`` whether those replayed a graph.
    """
    signature = runner.signature
    graph = graph_from_signature(network, signature)
    inputs, others = (example_inputs(signature, device, seed=seed) for seed in range(2))
    for _ in range(WARMING):
        runner(others)
    with module_runner(graph, signature, device=device) as eager:
        wanted = eager(inputs)
        got = runner(inputs)
        errors = [output_error("", name, got[name], wanted[name]).to_json() for name in wanted]
    relative = [error["relative"] for error in errors]
    clock, seconds = clock_of(device), []
    for _ in range(CALLS):
        start = clock.mark()
        runner(inputs)
        seconds.append(clock.seconds(start, clock.mark()))
    return {
        "relative": None if None in relative else max(relative),
        "seconds": min(seconds),
        "cuda_graph": runner.replays(),
    }


def example_inputs(signature: GraphSignature, device: str, *, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a graph, on the device: normal, sigma and guidance of usual size."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    usual = {"timestep": 0.5, "guidance": 3.5}
    return {
        spec.name: torch.full(spec.shape, usual[spec.name], device=device)
        if spec.name in usual
        else torch.randn(spec.shape, generator=generator).to(device)
        for spec in signature.inputs
    }
