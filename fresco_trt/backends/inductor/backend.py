"""Inductor engines: torch's own compiler, ahead of time, one block of each kind at a time.

An engine is the ``transformer/`` folder with the weights, which all stages share, and for each part
of the stage graph a file of compiled code in ``blocks/``, without weights: half a megabyte that
serves every layer of its kind, and every stage with as many tokens. How a graph is cut into parts
is the family's own knowledge.

A ``.pt2`` file holds a compiled shared library, which may do whatever its user may. Whether a
bundle is trusted so far is asked before anything here is called (``bundle/trust.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from importlib.util import find_spec
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
    check_precision,
    find_engine,
    no_targets,
    unavailable,
)
from fresco_trt.backends.inductor.attention import DEFAULT, read_choices
from fresco_trt.backends.inductor.build import (
    same_architecture,
    torch_release,
    weights_of,
)
from fresco_trt.backends.inductor.host import check_host, this_host, write_host
from fresco_trt.backends.inductor.log import compiler
from fresco_trt.backends.inductor.naming import (
    ATTENTION,
    BLOCKS,
    choose_attention,
    file_of,
    name_of,
)
from fresco_trt.backends.inductor.pool import Piece, compile_pieces
from fresco_trt.backends.inductor.runtime import missing_reader
from fresco_trt.backends.inductor.unpacking import unfit, unpacked
from fresco_trt.backends.torch_graph import TorchBackend, replayed
from fresco_trt.backends.transformer import (
    FOLDER,
    STORED,
    WEIGHTS,
    missing_packages,
    store_transformer,
    torch_device,
    torch_errors,
    torch_version,
)
from fresco_trt.errors import BuildError
from fresco_trt.files.atomic_file import writing
from fresco_trt.models.registry import family_named
from fresco_trt.plan.memory import SHARED, Library

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.backends.cuda_graph import Graph
    from fresco_trt.models.family import Part

HOST, CODE = "host.json", ".pt2"

# As the eager backend, and a compiler beside it; the code is that of flux-tiny's blocks. Neither
# was measured at FLUX's width.
MEMORY = Library(layouts=(SHARED,), host=900_000_000, copies=0, program=2_500_000, program_block=0)
"""What the library adds to a graph's own bytes."""

OLDEST = (2, 11)
"""torch from here on says what the processor is able to."""


def create(name: str) -> InductorBackend:
    """The backend; runners of one backend share the weights of a bundle."""
    return InductorBackend()


class InductorBackend(TorchBackend):
    """Compiles and runs stage graphs part by part."""

    name = "inductor"
    native_code: ClassVar[Mapping[str, str]] = {CODE: "compiled shared objects"}

    def prepare(self, graphs: Sequence[StageGraph], options: BuildOptions) -> None:
        """Compile the pieces of all graphs that are not there yet, side by side."""
        self._require(to_build=True)
        about = self.describe()
        check_precision(about, options.precision)
        no_targets(self.name, options, "are for the kind of machine that they are built on")
        for source in {graph.source for graph in graphs}:
            store_transformer(source, options.folder, options.precision, about.rest)
        self._write_host(options.folder)
        parts = [part for graph in graphs for part in _parts_of(graph)]
        choose_attention(parts, options)
        _compile_missing(parts, options)

    def build(self, graph: StageGraph, options: BuildOptions) -> EngineFiles:
        """Copy the weights, once, and compile what no earlier stage has compiled already."""
        self.prepare((graph,), options)
        options.progress(f"compile {graph.name}", 1.0)
        weights = (f"{FOLDER}/config.json", f"{FOLDER}/{WEIGHTS}")
        choices = read_choices(options.folder / ATTENTION)
        chosen = (ATTENTION,) if choices else ()
        code = (file_of(part, choices) for part in _parts_of(graph))
        return (*weights, f"{BLOCKS}/{HOST}", *chosen, *code)

    def load(self, folder: Path, record: EngineFile) -> EngineRunner:
        """A runner over the weights that this backend's other runners in scope use.

        The code is unpacked to a folder of this process's own, and loaded from there later. Raises
        EnvironmentMismatch or EngineFailed for code that does not run here, before any is loaded,
        DiskFull or OutputNotWritable where it cannot be unpacked.
        """
        self._require()
        check_host(find_engine(folder, record, HOST), this_host(torch_device()))
        libraries = {name: unpacked(folder / name) for name in record.files if name.endswith(CODE)}
        return self._runner(record, partial(self._open, folder, record, libraries))

    def describe(self) -> BackendFacts:
        """torch's version and device, and the kind of machine that this is."""
        usable = all(each.only_to_build for each in self.check())
        device = torch_device()
        return BackendFacts(
            name=self.name,
            library="torch",
            version=torch_version(),
            graph_format="module",
            targets=(),
            precisions=_precisions(device),
            device=device,
            rest="bf16" if device == "cuda" else "fp32",
            simulated=() if device == "cuda" else ("fp8",),
            machine=str(this_host(device)) if usable else None,
            sparse=True,
            memory=MEMORY,
        )

    def check(self) -> tuple[Missing, ...]:
        """torch, diffusers, pyelftools; to build, a C++ compiler, and for a GPU Triton."""
        return (*missing_packages(), *missing_reader(), *_too_old(), *_missing_compilers())

    def _require(self, *, to_build: bool = False) -> None:
        for missing in self.check():
            if to_build or not missing.only_to_build:
                raise unavailable(self.name, missing)

    def _write_host(self, folder: Path) -> None:
        path = folder / BLOCKS / HOST
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_host(path, this_host(torch_device()))

    @contextmanager
    def _open(
        self, folder: Path, record: EngineFile, libraries: Mapping[str, Path], captured: Graph
    ) -> Iterator[Call]:
        import torch

        source = find_engine(folder, record, WEIGHTS).parent
        family, device = family_named(record.family), torch_device()
        with ExitStack() as scope:
            with torch_errors(f"loading {record.name}"):
                transformer = self._transformers.of(family, source)
                graph = family.graphs.module(transformer, record.signature)
                cut = family.graphs.cut(graph, record.signature, fuse=True)
                choices = read_choices(folder / ATTENTION) if ATTENTION in record.files else {}
                layers = {
                    part.kind: _loaded(part, file_of(part, choices), libraries, scope)
                    for part in cut.parts
                }

            def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
                with torch.no_grad(), torch_errors("running the compiled blocks"):
                    # Compiled code relies on the strides it was compiled for.
                    held = {
                        name: value.detach().to(device).contiguous()
                        for name, value in inputs.items()
                    }
                    outputs: dict[str, Tensor] = cut.run(layers, held)
                    return outputs

            # Entered last: a graph is gone before the weights that it reads.
            yield scope.enter_context(replayed(call, record.signature, captured))


# --- building ---------------------------------------------------------------------------------


def _parts_of(graph: StageGraph) -> tuple[Part, ...]:
    graphs = family_named(graph.family).graphs
    return graphs.cut(graph.module, graph.signature, fuse=True).parts


def _compile_missing(parts: Sequence[Part], options: BuildOptions) -> None:
    """Every piece once, whichever parts it serves."""
    choices = read_choices(options.folder / ATTENTION)
    pieces = {
        path: _piece(part, path, choices)
        for part in parts
        if not (path := options.folder / file_of(part, choices)).exists()
    }
    left = list(pieces.values())
    done: list[str] = []

    def tell(name: str) -> None:
        done.append(name)
        options.progress(f"compile {name}", len(done) / len(left))

    if left:
        options.progress("compile", 0.0)
        compile_pieces(left, torch_device(), options.threads, tell)


def _piece(part: Part, path: Path, choices: Mapping[str, str]) -> Piece:
    if not same_architecture(part.layers):
        raise BuildError(
            f"the layers of {part.name} are of different shapes",
            expected="layers that differ in nothing but the values of their weights",
            fix="pass keep with patterns that fit every block or none, or another --backend",
        )
    return Piece(
        layer=part.layers[0],
        signature=part.signature,
        path=path,
        attention=choices.get(name_of(part, DEFAULT), DEFAULT),
    )


def _precisions(device: str) -> tuple[str, ...]:
    """FP8 products came with Ada; a CPU has none and multiplies what the codes stand for."""
    if device == "cpu":
        return ("fp32", "fp8")
    import torch

    return (*STORED, *(("fp8",) if torch.cuda.get_device_capability() >= (8, 9) else ()))


def _too_old() -> Iterator[Missing]:
    version = torch_release()
    if version is not None and version < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        yield Missing(what=f"torch {wanted} or newer", fix=f'pip install "torch>={wanted}"')


def _missing_compilers() -> Iterator[Missing]:
    if shutil.which(compiler()) is None:
        what = f"the C++ compiler {compiler()}, to build"
        fix = "install g++ (Debian, Ubuntu: apt-get install g++), or set CXX to another compiler"
        yield Missing(what=what, fix=fix, only_to_build=True)
    if torch_device() == "cuda" and find_spec("triton") is None:
        what = "the Python package triton, to build for a GPU"
        yield Missing(what=what, fix="pip install triton", only_to_build=True)


# --- running ----------------------------------------------------------------------------------


class CompiledLayer:
    """Compiled code over the weights of one layer, bound once.

    One container for each layer, all over one unpacked library, rather than one whose weights are
    changed before each call: measured with 57 layers of 14 weights, opening them takes 0.12 ms and
    binding them 0.01 ms each, once, and next to no memory; binding at each call would take as long
    for each layer at each step, and torch never frees the handles that it makes of the weights,
    420 bytes each time.
    """

    def __init__(self, library: Path, weights: Mapping[str, Tensor]) -> None:
        from torch import _C

        # Single-threaded: the runner's callers take turns, and no event is waited for on a GPU.
        self._container = _C._aoti.AOTIModelPackageLoader(str(library), "model", True, 1, -1)
        self._weights = {name: _alias(value) for name, value in weights.items()}
        if set(self._container.get_constant_fqns()) != self._weights.keys():
            raise unfit(f"the code in {library.name} takes other weights than the layer has")
        # user_managed: the code reads the tensors where they are, instead of a copy of its own.
        self._container.load_constants(
            self._weights, use_inactive=False, check_full_update=True, user_managed=True
        )

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, which are the caller's; ``inputs`` are contiguous and on the device."""
        return self._container.boxed_run(list(inputs))

    def close(self) -> None:
        """Let go of the weights. torch's handles outlive the container, and the tensors with them:
        they are emptied, and kept for the weights of the next layer.
        """
        del self._container
        for alias in self._weights.values():
            alias.set_(_nothing(alias.device))
            _EMPTIED.setdefault((alias.dtype, alias.device), []).append(alias)
        self._weights.clear()


_EMPTIED: dict[object, list[Tensor]] = {}
"""Tensors that torch holds for ever and nobody uses, by dtype and device."""


@cache
def _nothing(device: torch.device) -> Any:
    """A storage of no bytes, one for all tensors that are emptied."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device=device).untyped_storage()


def _alias(weight: Tensor) -> Tensor:
    """A tensor of its own over the memory of ``weight``: one that was emptied, if there is one."""
    try:
        alias = _EMPTIED[weight.dtype, weight.device].pop()
    except LookupError:  # there was none, or another thread took it
        return weight.detach()
    place = weight.untyped_storage(), weight.storage_offset(), weight.shape, weight.stride()
    return alias.set_(*place)


def _loaded(
    part: Part, name: str, libraries: Mapping[str, Path], scope: ExitStack
) -> tuple[CompiledLayer, ...]:
    """Every layer of a part over its own weights, until ``scope`` ends."""
    if name not in libraries:
        raise unfit(f"the engine has no {name}")
    return tuple(_layer(libraries[name], layer, scope) for layer in part.layers)


def _layer(library: Path, layer: Module, scope: ExitStack) -> CompiledLayer:
    compiled = CompiledLayer(library, weights_of(layer))
    scope.callback(compiled.close)
    return compiled
