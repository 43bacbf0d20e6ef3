"""Eager engines: diffusers' own transformer, run by torch. The reference the others are held to.

An engine is the ``transformer/`` folder that all stages of a bundle share; the stage graph is put
around it again at load, from the engine's signature.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

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
    copy_once,
    find_engine,
    no_targets,
    unavailable,
    writing,
)
from fresco_trt.errors import BuildError, EngineFailed, OutOfDeviceMemory

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.plan.signature import GraphSignature

FOLDER = "transformer"


def create(name: str) -> EagerBackend:
    """The backend; runners of one backend share the transformer of a bundle."""
    return EagerBackend()


WEIGHTS = "diffusion_pytorch_model.safetensors"

_STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_CLASS_NAME = re.compile(r"([A-Z][A-Za-z]*)Transformer[23]DModel")


class EagerBackend:
    """Runs stage graphs with torch, on CUDA where there is a GPU."""

    name = "eager"

    def __init__(self) -> None:
        self._transformers: WeakValueDictionary[object, Module] = WeakValueDictionary()

    def build(self, graph: StageGraph, options: BuildOptions) -> EngineFiles:
        """Copy the transformer's folder, once for all stages."""
        self._require()
        check_precision(self.describe(), options.precision)
        no_targets(self.name, options)
        _check_source(graph.source, options.precision)
        target = options.folder / FOLDER
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
        names = [copy_once(graph.source / name, target) for name in ("config.json", WEIGHTS)]
        options.progress(f"copy {graph.name}", 1.0)
        return tuple(f"{FOLDER}/{name}" for name in names)

    def load(self, folder: Path, record: EngineFile) -> EngineRunner:
        """A runner that shares the transformer with this backend's other runners in scope."""
        self._require()
        source = find_engine(folder, record, WEIGHTS).parent
        return EngineRunner(record.signature, partial(self._open, source, record.signature))

    def describe(self) -> BackendFacts:
        """torch's version and device."""
        installed = find_spec("torch") is not None
        return BackendFacts(
            name=self.name,
            library="torch",
            version=metadata.version("torch") if installed else None,
            graph_format="module",
            targets=(),
            precisions=tuple(_STORED),
            device=_device() if installed else "cpu",
        )

    def check(self) -> tuple[Missing, ...]:
        """torch and diffusers."""
        return tuple(
            Missing(what=f"the Python package {package}", fix=f"pip install {package}")
            for package in ("torch", "diffusers")
            if find_spec(package) is None
        )

    def _require(self) -> None:
        for missing in self.check():
            raise unavailable(self.name, missing)

    @contextmanager
    def _open(self, source: Path, signature: GraphSignature) -> Iterator[Call]:
        import torch

        family = _family(source)
        device = _device()
        with _errors(f"loading {source.name}"):
            graph = family.graph_from_signature(self._transformer(family, source), signature)
        names = [spec.name for spec in signature.outputs]

        def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            with torch.no_grad(), _errors("running the eager graph"):
                ordered = [inputs[spec.name].to(device) for spec in signature.inputs]
                return dict(zip(names, graph(*ordered), strict=True))

        yield call

    def _transformer(self, family: Any, source: Path) -> Module:
        """The module of that folder, kept only as long as a runner in scope holds it."""
        state = (source / WEIGHTS).stat()
        key = (source.resolve(), state.st_ino, state.st_size, state.st_mtime_ns)
        module = self._transformers.get(key)
        if module is None:
            loaded: Module = family.transformer_from_folder(source)
            module = loaded.to(_device())
            self._transformers[key] = module
        return module


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _family(source: Path) -> Any:
    """The file of ``models/`` for a transformer: FluxTransformer2DModel is that of ``flux.py``."""
    name = str(json.loads((source / "config.json").read_text()).get("_class_name"))
    match = _CLASS_NAME.fullmatch(name)
    stem = re.sub(r"(?<!^)(?=[A-Z])", "_", match[1]).lower() if match else ""
    if not stem or find_spec(f"fresco_trt.models.{stem}") is None:
        raise EngineFailed(
            f"the transformer class {name}",
            expected="a class of a family in fresco_trt.models",
            fix="update fresco-trt, or build the bundle again with this version",
        )
    return import_module(f"fresco_trt.models.{stem}")


def _check_source(source: Path, precision: str) -> None:
    """Weights are run as they are stored, so they must be stored in what was asked for."""
    from safetensors import safe_open

    path = source / WEIGHTS
    if not path.is_file():
        raise BuildError(
            f"the transformer folder {source} holds no {WEIGHTS}",
            expected="a folder as lower.weights.write_source makes it",
            fix="write the transformer out again",
        )
    opened: Any = safe_open  # untyped
    with opened(path, framework="pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if stored != {_STORED[precision]}:
        raise BuildError(
            f"the weights are stored as {', '.join(sorted(stored))}",
            expected=f"{_STORED[precision]} for --precision {precision}",
            fix="pass the precision that the weights are in",
        )


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    """torch's errors as RunErrors."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(
            f"{doing}: {error}",
            expected="enough GPU memory for the weights and activations",
            fix="use a smaller --size, or close other programs on the GPU",
        ) from error
    except RuntimeError as error:
        raise EngineFailed(
            f"{doing}: {error}",
            expected="a graph that runs",
            fix="build the bundle again with 'fresco-trt build'",
        ) from error


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
