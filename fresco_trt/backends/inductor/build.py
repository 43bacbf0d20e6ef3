"""From one module to one file of compiled code, without weights: export, compile, pack.

The half of the inductor backend that needs a C++ compiler; running needs none.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from fresco_trt.backends.inductor.log import compiler, logged
from fresco_trt.backends.inductor.probe import constants_of
from fresco_trt.backends.inductor.runtime import CXX_RUNTIME, link_settings, needed, shares_runtime
from fresco_trt.backends.transformer import torch_version
from fresco_trt.errors import BuildError, FrescoError, OutOfDeviceMemory
from fresco_trt.files.atomic_file import writing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.plan.signature import GraphSignature

_SETTINGS = {
    # The weights stay in the transformer's file, where all layers and all stages find them.
    "aot_inductor.package_constants_in_so": False,
    # Headers compiled once save 2 s a piece, but torch keeps them, hundreds of megabytes, in a
    # folder of its own beside the one that it is given.
    "aot_inductor.precompile_headers": False,
    # A scale is a weight too, and as small as it is would become part of the code.
    "always_keep_tensor_constants": True,
    # As many threads as the machine that runs it is told to use, not the one that builds it.
    "cpp.dynamic_threads": True,
}

# Two thirds of a file would be tables of line numbers; before torch 2.13 there is no such setting.
_LINE_TABLES = "enable_line_tables"

_OTHER_COMPILER = (
    "set CXX to a compiler that links the shared C++ runtime, such as /usr/bin/g++, and take"
    " -static-libstdc++ out of its flags, specs and wrappers"
)

_LONGEST = 400
"""Characters of a compiler's message that are passed on."""


def torch_release() -> tuple[int, int] | None:
    """The installed torch's first two numbers, None without torch."""
    version = re.match(r"(\d+)\.(\d+)", torch_version() or "")
    return None if version is None else (int(version[1]), int(version[2]))


def loads_folders() -> bool:
    """Whether torch loads a package that is unpacked already, and asks for no names of sources."""
    release = torch_release()
    return release is not None and release >= (2, 13)


def weights_of(layer: Module) -> dict[str, Tensor]:
    """A layer's weights by name, as aliases of their own over the same memory."""
    return {name: value.detach() for name, value in _tensors(layer)}


def _tensors(layer: Module) -> Iterator[tuple[str, Tensor]]:
    yield from layer.named_parameters()
    yield from layer.named_buffers()


def compile_layer(
    layer: Module, signature: GraphSignature, path: Path, device: str, threads: int | None
) -> None:
    """Compile ``layer`` for the shapes of ``signature`` to ``path``, a ``.pt2`` file of code that
    every layer of the same architecture can be run with.

    Whatever happens, ``path`` is there complete or not at all, and nothing else is left. Raises
    BuildError, which names a log of the compiler's commands, OutOfDeviceMemory, OutputNotWritable
    or DiskFull.
    """
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".work-") as work:
        compiled = Path(work) / path.name
        with logged(path.stem), _errors(path.stem):
            _compile(layer, signature, compiled, device, threads)
            _check_runtime(compiled)  # first: what fails it is not to be loaded
            _check_constants(layer, compiled, device)
        packed = compiled.with_name(f"{path.name}.packed")
        _pack(compiled, packed)
        packed.replace(path)


def _compile(
    layer: Module, signature: GraphSignature, path: Path, device: str, threads: int | None
) -> None:
    import torch
    from torch._inductor import aoti_compile_and_package

    settings = _settings(threads, device)
    module = layer if device == "cpu" else copy.deepcopy(layer).to(device)
    examples = tuple(
        torch.ones(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
        for spec in signature.inputs
    )
    with torch.no_grad(), _quiet(), _work_in(path.parent / "caches", device):
        program = torch.export.export(module, examples, strict=False)
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def _settings(threads: int | None, device: str) -> dict[str, Any]:
    """Inductor's settings, of those that the installed torch has."""
    from torch._inductor import config

    settings: dict[str, Any] = {**_SETTINGS, **link_settings()}
    if hasattr(config.aot_inductor, _LINE_TABLES):
        settings[f"aot_inductor.{_LINE_TABLES}"] = False
    if device != "cpu":
        # The host only launches kernels; which vectors it has is a minute of trial compilations.
        settings["cpp.vec_isa_ok"] = False
    if threads is not None:
        settings["compile_threads"] = threads
    return settings


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the compiler warn of their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def _work_in(folder: Path, device: str) -> Iterator[None]:
    """Everything that the compilers write on their way goes into ``folder``, and with it."""
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    folder.mkdir()
    tempfile.gettempdir()  # Python's own choice is made before, and kept
    settings = {"TRITON_CACHE_DIR": str(folder / "triton")}
    if device == "cpu":
        # For the C++ compiler, which leaves its files when it is interrupted. Not for a GPU:
        # Triton's workers stay, with the folder that they were started with.
        settings["TMPDIR"] = str(folder)
    with _environment(settings), temporary_cache_dir(str(folder)):
        yield


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check_runtime(path: Path) -> None:
    """Code with a C++ runtime of its own would end the process that loads it."""
    if not shares_runtime(path):
        raise BuildError(
            f"{compiler()} linked a static C++ runtime into {path.stem}, which needs"
            f" {', '.join(needed(path))} and no {CXX_RUNTIME}",
            expected="code that runs on the shared C++ runtime, as torch itself does",
            fix=_OTHER_COMPILER,
        )


def _check_constants(layer: Module, path: Path, device: str) -> None:
    """A weight that became part of the code would be that of every layer."""
    found = constants_of(path, device)
    wanted = weights_of(layer).keys()
    if found != wanted:
        raise BuildError(
            f"{path.stem} was compiled with {', '.join(sorted(found ^ wanted))} folded in or added",
            expected="code that takes every weight of a layer, and nothing else",
            fix="report this model and the version of torch, or pass another --backend",
        )


def _pack(compiled: Path, packed: Path) -> None:
    """Leave out the C++ sources: they name folders of this machine, and loading needs none.

    Their names stay where torch finds a file's description by them, which is before torch 2.13.
    """
    with ZipFile(compiled) as source, ZipFile(packed, "w") as target:
        for entry in source.infolist():
            is_source = entry.filename.endswith(".cpp")
            if not is_source or not loads_folders():
                target.writestr(entry, b"" if is_source else source.read(entry))


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Whatever the exporter or the compiler raises, as a LowerError."""
    import torch

    try:
        yield
    except FrescoError:
        raise
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(
            f"compiling {what}: {error}",
            expected="enough GPU memory for one block and its activations",
            fix="use a smaller --size, or close other programs on the GPU",
        ) from error
    except Exception as error:  # a lowering or a kernel's code may raise anything
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if CXX_RUNTIME in _complaints(error):
            raise BuildError(
                f"{compiler()} finds no {CXX_RUNTIME} to link {what} against",
                expected="a compiler with the shared C++ runtime, which torch itself runs on",
                fix=_OTHER_COMPILER,
            ) from error
        said = " ".join(str(error).split())[:_LONGEST]
        raise BuildError(
            f"torch cannot compile {what}: {type(error).__name__}: {said}",
            expected="a block that torch's inductor and the C++ compiler take",
            fix="update torch and the compiler, or pass another --backend",
        ) from error


def _complaints(error: Exception) -> str:
    """What a linker says it cannot find; its command, in the same message, names it in any case."""
    return " ".join(re.findall(r"(?:cannot|unable to) find (?:library )?(\S+)", str(error)))


def same_architecture(layers: tuple[Module, ...]) -> bool:
    """Whether one compiled layer can serve them all."""
    return len({str(shapes_of(layer)) for layer in layers}) == 1


def shapes_of(layer: Module) -> Mapping[str, str]:
    """Type and shape of every weight by name: what compiled code relies on."""
    return {name: f"{value.dtype}{list(value.shape)}" for name, value in _tensors(layer)}
