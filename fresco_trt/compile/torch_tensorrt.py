"""torch-tensorrt as an engine library for captured graphs: torch's own program, in and out.

Only a compilation uses it: it takes any graph, where the libraries of ``backends/`` take ONNX. The
file is torch-tensorrt's own format, an exported program with its engines inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fresco_trt.backends.base import (
    BackendFacts,
    BuildOptions,
    Call,
    EngineFile,
    EngineFiles,
    EngineRunner,
    Missing,
    StageGraph,
    find_engine,
    unavailable,
)
from fresco_trt.compile.options import TORCH_TENSORRT, importable
from fresco_trt.errors import BuildError, EngineFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.plan.signature import GraphSignature

SUFFIX = ".ep"
DEVICE = "cuda"
"""Where its engines run; there are none elsewhere."""


class TorchTensorRT:
    """Compiles a program with ``torch_tensorrt.dynamo.compile``, whose own fallback keeps the
    operators that TensorRT lacks in torch.
    """

    name = TORCH_TENSORRT
    native_code: ClassVar[Mapping[str, str]] = {SUFFIX: "torch-tensorrt programs"}

    def build(self, graph: StageGraph, options: BuildOptions) -> EngineFiles:
        """Compile and save the graph. Raises BackendUnavailable or BuildError."""
        from fresco_trt.lower.export import program_of

        library = self._library()
        name = f"{graph.name}{SUFFIX}"
        inputs = _examples(graph.signature, self.describe().device)
        try:
            compiled = library.dynamo.compile(program_of(graph), arg_inputs=inputs)
            library.save(compiled, str(options.folder / name), arg_inputs=inputs)
        except OSError:  # the disk's, which the store names
            raise
        except Exception as error:  # the library raises whatever its converters did
            raise BuildError(
                f"torch-tensorrt refuses {graph.name}: {type(error).__name__}: {error}",
                expected="a graph that it can compile",
                fix="update torch-tensorrt, or pass options={'backend': 'onnxruntime'}",
            ) from error
        return (name,)

    def load(self, folder: Path, record: EngineFile) -> EngineRunner:
        """A runner over the saved program."""
        path = find_engine(folder, record, SUFFIX)
        return EngineRunner(record.signature, partial(self._open, path, record.signature))

    def describe(self) -> BackendFacts:
        """Version and device."""
        installed = importable("torch_tensorrt")
        return BackendFacts(
            name=self.name,
            library="torch_tensorrt",
            version=str(import_module("torch_tensorrt").__version__) if installed else None,
            graph_format="module",
            targets=(),
            precisions=("fp32", "bf16", "fp16"),
            device=DEVICE,
        )

    def check(self) -> tuple[Missing, ...]:
        """The library itself."""
        if importable("torch_tensorrt"):
            return ()
        fix = "pip install 'fresco-trt[torch-tensorrt]'"
        return (Missing(what="the Python package torch-tensorrt", fix=fix),)

    def _library(self) -> Any:
        for missing in self.check():
            raise unavailable(self.name, missing)
        return import_module("torch_tensorrt")

    @contextmanager
    def _open(self, path: Path, signature: GraphSignature) -> Iterator[Call]:
        import torch

        loaded = self._library().load(str(path))
        is_program = isinstance(loaded, torch.export.ExportedProgram)
        module = loaded.module() if is_program else loaded
        names = [spec.name for spec in signature.outputs]

        def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            try:
                with torch.no_grad():
                    outputs = module(*(inputs[spec.name] for spec in signature.inputs))
            except RuntimeError as error:
                raise EngineFailed(
                    f"running the engine: {error}",
                    expected="an engine that runs",
                    fix="remove it from the engine cache, and compile again",
                ) from error
            return dict(zip(names, outputs, strict=True))

        yield call


def _examples(signature: GraphSignature, device: str) -> list[torch.Tensor]:
    import torch

    return [
        torch.ones(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
        for spec in signature.inputs
    ]
