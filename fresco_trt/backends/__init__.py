"""Engine libraries, one file each, found by name and imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fresco_trt.errors import UnknownBackend

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend

_MODULES = {
    "eager": "fresco_trt.backends.eager",
    "inductor": "fresco_trt.backends.inductor.backend",
    "onnxruntime": "fresco_trt.backends.onnxruntime",
    "tensorrt": "fresco_trt.backends.tensorrt.backend",
    "tensorrt-rtx": "fresco_trt.backends.tensorrt.backend",
}


def backend_names() -> tuple[str, ...]:
    """Every name that :func:`backend` knows."""
    return tuple(_MODULES)


def backend(name: str) -> Backend:
    """A new backend of that name; runners loaded from one backend share what they can.

    The engine library itself may be absent: that is said by the backend's ``check``, and raised by
    ``build`` and ``load``. Raises UnknownBackend, which lists the names.
    """
    if name not in _MODULES:
        raise UnknownBackend(
            f"the backend {name!r}",
            expected=f"one of {', '.join(_MODULES)}",
            fix="pass one of these with --backend",
        )
    created: Backend = import_module(_MODULES[name]).create(name)
    return created


__all__ = ["backend", "backend_names"]
