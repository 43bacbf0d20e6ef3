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

from fresco_trt.backends.base import Missing
from fresco_trt.backends.inductor.archive import opened

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
    with opened(path) as package:
        names = [name for name in package.namelist() if name.endswith(".so")]
        if not names:
            raise ValueError("it holds no library")
        return tuple(each for name in names for each in _entries(name, package.read(name)))


def _entries(name: str, library: bytes) -> tuple[str, ...]:
    """The NEEDED entries of a whole library. Raises ValueError for a cut or foreign one."""
    try:
        return tuple(_read_entries(library))
    except Exception as error:  # the reader raises whatever the bytes lead it to
        raise ValueError(f"{name} is no whole ELF library: {error}") from error


def _read_entries(library: bytes) -> Iterator[str]:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile

    file = ELFFile(BytesIO(library))
    _check_whole(file, len(library))
    for segment in file.iter_segments():
        if isinstance(segment, DynamicSegment):
            tags: Iterator[Any] = segment.iter_tags("DT_NEEDED")  # their names are not typed
            yield from (str(tag.needed) for tag in tags)


def _check_whole(file: Any, size: int) -> None:
    """Mapped, what headers place behind the end of a file is a bus error when it is touched."""
    header = file.header
    ends = [
        header["e_phoff"] + header["e_phnum"] * header["e_phentsize"],
        header["e_shoff"] + header["e_shnum"] * header["e_shentsize"],
        *(each["p_offset"] + each["p_filesz"] for each in file.iter_segments()),
        *(
            each["sh_offset"] + each["sh_size"]
            for each in file.iter_sections()
            if each["sh_type"] != "SHT_NOBITS"
        ),
    ]
    if max(ends) > size:
        raise ValueError(f"it ends at {size} bytes, and its headers at {max(ends)}")
