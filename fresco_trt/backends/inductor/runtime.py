"""Which C++ runtime a compiled file runs on: the process's, or one that was linked into it.

A compiler may link the C++ runtime statically, of its own accord or because it has no other. Code
that is compiled that way brings a second runtime into the process, and two of them get in each
other's way: torch's own loader then dies of a signal (pytorch/TensorRT's pull request 4592 has the
same). So the shared one is named when linking, and every file is looked at before it is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from fresco_trt.backends.base import Missing

CXX_RUNTIME = "libstdc++.so.6"
"""The C++ runtime of torch's own libraries on Linux."""

_RUNTIMES = ("libstdc++.so", "libc++.so")


def link_settings() -> dict[str, Any]:
    """Inductor's settings that have code linked against the shared C++ runtime.

    ``-l:NAME`` stands ahead of the compiler's own ``-lstdc++``, and no archive has that name.
    """
    return {"aot_inductor.custom_op_libs": [f":{CXX_RUNTIME}"]} if sys.platform == "linux" else {}


def missing_reader() -> Iterator[Missing]:
    """The package that reads what a file needs, where it is needed and not installed."""
    if sys.platform == "linux" and find_spec("elftools") is None:
        yield Missing(what="the Python package pyelftools", fix="pip install pyelftools")


def shares_runtime(path: Path) -> bool:
    """Whether the code in the ``.pt2`` file ``path`` runs on the process's C++ runtime. True where
    libraries are not ELF files. Raises ValueError for a file that holds no such library.
    """
    return sys.platform != "linux" or any(name.startswith(_RUNTIMES) for name in needed(path))


def needed(path: Path) -> tuple[str, ...]:
    """The libraries that the ones in the ``.pt2`` file ``path`` need, as they name them (their
    NEEDED entries). Raises ValueError for a file that holds no ELF library.
    """
    from elftools.common.exceptions import ELFError

    try:
        with ZipFile(path) as package:
            names = [name for name in package.namelist() if name.endswith(".so")]
            if not names:
                raise ValueError(f"{path.name} holds no library")
            return tuple(each for name in names for each in _entries(package.read(name)))
    except (BadZipFile, ELFError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _entries(library: bytes) -> Iterator[str]:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile

    for segment in ELFFile(BytesIO(library)).iter_segments():
        if isinstance(segment, DynamicSegment):
            tags: Iterator[Any] = segment.iter_tags("DT_NEEDED")  # their names are not typed
            yield from (str(tag.needed) for tag in tags)
