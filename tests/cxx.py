"""The C++ compiler for pieces, which reads torch's headers once for all of them.

Reading them is a third of the compiler's work on a piece. What it makes of a file is the same to
the byte, whether it read a header itself or what it kept of it; flags that differ keep their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

COMPILER = "g++"

HEADERS = {
    ".wrapper.cpp": "torch/csrc/inductor/aoti_include/cpu.h",
    ".kernel.cpp": "torch/csrc/inductor/cpp_prefix.h",
}
"""What the two files of a piece begin with."""


def script(folder: Path) -> Path:
    """A compiler to name in ``CXX``; headers are kept in ``folder``."""
    path = folder / COMPILER
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I '{__file__}' '{folder}' \"$@\"\n")
    path.chmod(0o755)
    return path


def main() -> None:
    folder, *given = sys.argv[1:]
    header = next((HEADERS[end] for end in HEADERS if given and given[0].endswith(end)), None)
    if header is not None and "-c" in given:
        flags = given[1 : given.index("-c")]
        given = ["-include", str(kept(header, flags, Path(folder))), *given]
    os.execvp(COMPILER, [COMPILER, *given])


def kept(header: str, flags: list[str], folder: Path) -> Path:
    """A file that includes ``header``, beside what the compiler made of it with these flags."""
    key = hashlib.sha256(repr((header, flags)).encode()).hexdigest()
    path = folder / f"{key}.h"
    made, partial = path.with_suffix(".h.gch"), path.with_suffix(".partial")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            path.write_text(f"#include <{header}>\n")
            command = [COMPILER, "-x", "c++-header", str(path), *flags, "-o", str(partial)]
            subprocess.run(command, check=True)
            partial.rename(made)
    return path


if __name__ == "__main__":
    main()
