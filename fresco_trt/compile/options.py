"""What ``torch.compile(model, backend="fresco_trt", options={...})`` takes, and what it means.

First step of a compilation: from the caller's dictionary to a value with nothing unknown in it,
and from that to the engine library and the folder of the cache.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.backends import backend, backend_names
from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend

TORCH_TENSORRT = "torch-tensorrt"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """The options of a compilation.

    ``backend`` is the engine library, None for the one that suits the graph's device; ``cache`` the
    folder of the engine cache, None for the default one; with ``strict`` a graph that no engine can
    run is an error, where otherwise torch runs it.
    """

    backend: str | None = None
    cache: Path | None = None
    strict: bool = False


def read_options(given: Mapping[str, object] | None, mode: str | None = None) -> CompileOptions:
    """The options in ``given``. Raises IncompatibleOptions for an unknown or a wrong one."""
    if mode is not None:
        raise IncompatibleOptions(
            f"mode={mode!r} with backend='fresco_trt'",
            expected="no mode: modes are the inductor backend's",
            fix="leave mode out, and pass options={...} if any",
        )
    found = dict(given or {})
    for name in found:
        _check_name(name)
    return CompileOptions(
        backend=_library_name(found.get("backend")),
        cache=_folder(found.get("cache")),
        strict=_truth(found.get("strict", False)),
    )


# --- the engine library -----------------------------------------------------------------------


def library_names() -> tuple[str, ...]:
    """The engine libraries that can build a captured graph: those that take ONNX, and one more."""
    takes_onnx = [
        name for name in backend_names() if backend(name).describe().graph_format == "onnx"
    ]
    return (*takes_onnx, TORCH_TENSORRT)


def chosen_library(asked: str | None, device: str) -> str:
    """The library that was asked for; else torch-tensorrt for a graph on a GPU where it can be
    imported, and ONNX Runtime everywhere else.
    """
    if asked is not None:
        return asked
    suits = device == "cuda" and importable("torch_tensorrt")
    return TORCH_TENSORRT if suits else "onnxruntime"


def library(name: str) -> Backend:
    """The engine library of that name, which :func:`library_names` has."""
    if name == TORCH_TENSORRT:
        from fresco_trt.compile.torch_tensorrt import TorchTensorRT

        return TorchTensorRT()
    return backend(name)


def importable(module: str) -> bool:
    """Whether a module is installed, or was put in place already."""
    return module in sys.modules or find_spec(module) is not None


# --- one option each --------------------------------------------------------------------------


def _check_name(name: str) -> None:
    known = [field.name for field in fields(CompileOptions)]
    if name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1)
    raise _refused(
        f"the option {name!r}",
        f"one of {', '.join(known)}",
        f"did you mean {close[0]}?" if close else "leave it out",
    )


def _library_name(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value in library_names()):
        return value
    raise _refused(
        f"backend={value!r}", f"one of {', '.join(library_names())}", "pass one of these"
    )


def _folder(value: object) -> Path | None:
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and path and "\0" not in path:
            return Path(path)
    raise _refused(f"cache={value!r}", "the path of a folder", "pass one, or leave it out")


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _refused(f"strict={value!r}", "True or False", "pass one of these")


def _refused(given: str, expected: str, fix: str) -> IncompatibleOptions:
    return IncompatibleOptions(
        f"{given} of torch.compile(backend='fresco_trt')", expected=expected, fix=fix
    )
