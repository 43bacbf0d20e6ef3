"""What is left of a compilation that failed: its commands, and what the compiler was told.

A build leaves nothing in the folder that it was to write, so the log is in the cache folder.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import format_exception
from typing import Any

from fresco_trt.backends.inductor.runtime import CXX_RUNTIME
from fresco_trt.backends.transformer import torch_version
from fresco_trt.errors import BuildError, OutputNotWritable
from fresco_trt.files.cache_folder import cache_folder

FOLDER = "logs"
"""Of the cache folder."""

# What g++ and clang++ read, and the folders that libraries are found in.
_VARIABLES = (
    *("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "PATH", "LIBRARY_PATH"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "CPATH", "CPLUS_INCLUDE_PATH", "COMPILER_PATH"),
    *("GCC_EXEC_PREFIX", "CUDA_HOME", "CUDA_PATH"),
)

_ASKED = (
    ("--version",),
    *((f"-print-file-name={name}",) for name in (CXX_RUNTIME, "libstdc++.so", "libstdc++.a")),
    ("-print-search-dirs",),
)

_SECONDS = 20

_LOGGER = logging.getLogger(__name__)


def compiler() -> str:
    """The C++ compiler as torch chooses it, without importing the compiler's half of torch."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


@contextmanager
def logged(what: str) -> Iterator[None]:
    """A BuildError that passes through leaves a log, and says where."""
    with _commands() as commands:
        try:
            yield
        except BuildError as error:
            error.fix += f"; {kept(what, commands, error)}"
            raise


@contextmanager
def _commands() -> Iterator[list[str]]:
    """The compiler's command lines within the scope, the linker's among them.

    torch itself writes them down for its own debugging only, so its function is watched.
    """
    from torch._inductor import cpp_builder

    builder: Any = cpp_builder
    run = getattr(builder, "run_compile_cmd", None)
    said: list[str] = []
    if run is None:
        _tell(said, f"(torch {torch_version()} does not tell its commands)")
        yield said
        return

    def watched(command: str, *given: Any, **named: Any) -> None:
        _tell(said, f"$ {command}")
        run(command, *given, **named)

    builder.run_compile_cmd = watched
    try:
        yield said
    finally:
        builder.run_compile_cmd = run


def _tell(said: list[str], line: str) -> None:
    """To the program's own log as well: the process may not live to write this one."""
    said.append(line)
    _LOGGER.debug(line)


def kept(what: str, commands: list[str], error: BuildError) -> str:
    """Write the log: where it is; where it cannot be written, the last command, which links."""
    lines = (
        *format_exception(error),
        f"torch {torch_version()}, Python {sys.version}",
        *(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ),
        *(_answer(question) for question in _ASKED),
        *commands,
    )
    try:
        path = cache_folder() / FOLDER / f"{what}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    except (OSError, OutputNotWritable) as reason:
        last = commands[-1] if commands else "none"
        return f"no log was written ({reason}), the last command was: {last}"
    return f"the commands and what the compiler was told are in {path}"


def _answer(question: tuple[str, ...]) -> str:
    command = [compiler(), *question]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"$ {shlex.join(command)}\n{error}"
    return f"$ {shlex.join(command)}\n{(done.stdout + done.stderr).strip()}"
