"""Eager engines: diffusers' own transformer, run by torch. The reference the others are held to.

An engine is the ``transformer/`` folder that all stages of a bundle share; the stage graph is put
around it again at load, from the engine's signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fresco_trt.backends.base import (
    BackendFacts,
    BuildOptions,
    Call,
    EngineFile,
    EngineFiles,
    EngineRunner,
    Missing,
    StageGraph,
    check_precision,
    find_engine,
    no_targets,
    unavailable,
)
from fresco_trt.backends.torch_graph import TorchBackend, replayed
from fresco_trt.backends.transformer import (
    STORED,
    WEIGHTS,
    missing_packages,
    store_transformer,
    torch_device,
    torch_errors,
    torch_version,
)
from fresco_trt.models.registry import family_named
from fresco_trt.plan.memory import SHARED, Library

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.backends.cuda_graph import Graph
    from fresco_trt.plan.signature import GraphSignature


# 1.57 GB for 1.09 GB of weights as wide as FLUX.1-dev's.
MEMORY = Library(layouts=(SHARED,), host=550_000_000, copies=0, program=0, program_block=0)
"""What torch adds to a graph's own bytes."""


def create(name: str) -> EagerBackend:
    """The backend; runners of one backend share the transformer of a bundle."""
    return EagerBackend()


class EagerBackend(TorchBackend):
    """Runs stage graphs with torch, kernel by kernel or replayed."""

    name = "eager"
    native_code: ClassVar[Mapping[str, str]] = {}

    def build(self, graph: StageGraph, options: BuildOptions) -> EngineFiles:
        """Copy the transformer's folder, once for all stages."""
        self._require()
        check_precision(self.describe(), options.precision)
        no_targets(self.name, options)
        files = store_transformer(graph.source, options.folder, options.precision)
        options.progress(f"copy {graph.name}", 1.0)
        return files

    def load(self, folder: Path, record: EngineFile) -> EngineRunner:
        """A runner that shares the transformer with this backend's other runners in scope."""
        self._require()
        source = find_engine(folder, record, WEIGHTS).parent
        return self._runner(record, partial(self._open, source, record))

    def describe(self) -> BackendFacts:
        """torch's version and device."""
        return BackendFacts(
            name=self.name,
            library="torch",
            version=torch_version(),
            graph_format="module",
            targets=(),
            precisions=tuple(STORED),
            device=torch_device(),
            # On a GPU they share a stream and the memory of their graphs.
            contexts=torch_device() == "cpu",
            sparse=True,
            memory=MEMORY,
        )

    def check(self) -> tuple[Missing, ...]:
        """torch and diffusers."""
        return missing_packages()

    def _require(self) -> None:
        for missing in self.check():
            raise unavailable(self.name, missing)

    @contextmanager
    def _open(self, source: Path, record: EngineFile, captured: Graph) -> Iterator[Call]:
        import torch

        family, signature = family_named(record.family), record.signature
        device = torch_device()
        with torch_errors(f"loading {source.name}"):
            transformer = self._transformers.of(family, source)
            graph = family.graphs.module(transformer, signature)
        names = [spec.name for spec in signature.outputs]

        def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            with torch.no_grad(), torch_errors("running the eager graph"):
                ordered = [inputs[spec.name].to(device) for spec in signature.inputs]
                return dict(zip(names, graph(*ordered), strict=True))

        with replayed(call, signature, captured) as session:
            yield session


def module_runner(
    module: Module, signature: GraphSignature, *, device: str = "cpu"
) -> EngineRunner:
    """A runner that calls a module, which is on ``device``, with the inputs of ``signature`` in
    order.
    """
    import torch

    names = [spec.name for spec in signature.outputs]

    def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with torch.no_grad():
            outputs = module(*(inputs[spec.name].to(device) for spec in signature.inputs))
        return dict(zip(names, outputs, strict=True))

    return EngineRunner(signature, lambda: nullcontext(call))
