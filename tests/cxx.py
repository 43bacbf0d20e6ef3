"""The C++ compiler for pieces, which does once what is the same for all of them.

Reading torch's headers is half of the compiler's work on a piece, and most of the rest is on what
every piece's file repeats: the functions that a program calls, and the regular expression by which
they read a device's name. What it makes of a kernel is the same to the byte, whether it read a
header itself or what it kept of it; flags that differ keep their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMPILER = "g++"

KERNEL, WRAPPER = ".kernel.cpp", ".wrapper.cpp"
"""How the names of a piece's two files end: what computes, and what calls that."""

HEADERS = {
    KERNEL: ("torch/csrc/inductor/cpp_prefix.h",),
    WRAPPER: ("torch/csrc/inductor/aoti_include/cpu.h",),
}
"""What these begin with, and each of them needs. Of a kept header's templates the compiler makes
anew for each file those that the header itself calls.
"""

LAST = '} // extern "C"\n'
"""The last line of what all wrappers begin with, which is about no model."""

TEMPLATES = """
#if _GLIBCXX_RELEASE >= 12 && _GLIBCXX_RELEASE <= 15
{0} template class std::__detail::_Compiler<std::regex_traits<char>>;
{0} template bool std::__detail::__regex_algo_impl(
    std::string::const_iterator, std::string::const_iterator, std::smatch&, const std::regex&,
    std::regex_constants::match_flag_type, std::__detail::_RegexExecutorPolicy, bool);
#endif
{0} template class torch::aot_inductor::AOTInductorModelBase<torch::aot_inductor::AOTInductorModel>;
"""
"""What all models are made of, which are one class in every file; and the regular expression's
parts, as GNU's library has named them since its 12th version. Where it is another, these are made
anew for each piece.
"""


def script(folder: Path) -> Path:
    """A compiler to name in ``CXX``; what is made once is kept in ``folder``."""
    path = folder / COMPILER
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I '{__file__}' '{folder}' \"$@\"\n")
    path.chmod(0o755)
    return path


def main() -> None:
    folder, *given = sys.argv[1:]
    end = next((end for end in HEADERS if given and given[0].endswith(end)), None)
    if end is None or "-c" not in given:
        os.execvp(COMPILER, [COMPILER, *given])
    flags, store = given[1 : given.index("-c")], Path(folder)
    header = kept(HEADERS[end], flags, store)
    source = Path(given[0])
    if end == WRAPPER and LAST in source.read_text():
        made = given[given.index("-o") + 1]
        wrapper(source, Path(made), flags, header, store)
    else:
        os.execvp(COMPILER, [COMPILER, "-include", str(header), *given])


def kept(headers: Sequence[str], flags: list[str], folder: Path) -> Path:
    """A file that includes ``headers``, beside what the compiler made of it with these flags."""
    text = "".join(f"#include <{name}>\n" for name in headers)
    path = folder / f"{_key(text, flags)}.h"
    with _locked(path):
        if not path.exists():
            partial = path.with_suffix(".partial.h")
            partial.write_text(text)
            made = path.with_suffix(".h.gch")
            _compile("-x", "c++-header", str(partial), *flags, "-o", str(made))
            partial.rename(path)
    return path


def wrapper(source: Path, made: Path, flags: list[str], header: Path, folder: Path) -> None:
    """Compile a wrapper's own part, and join what all have in common to it."""
    common, last, own = source.read_text().partition(LAST)
    rest, alone = source.with_suffix(".own.cpp"), source.with_suffix(".own.o")
    rest.write_text(TEMPLATES.format("extern") + own)
    _compile("-include", str(header), str(rest), *flags, "-c", "-o", str(alone))
    text = common + last + TEMPLATES.format("")
    path = folder / f"{_key(text, flags)}.o"
    with _locked(path):
        if not path.exists():
            shared, partial = path.with_suffix(".cpp"), path.with_suffix(".partial")
            shared.write_text(text)
            _compile("-include", str(header), str(shared), *flags, "-c", "-o", str(partial))
            partial.rename(path)
    _compile("-r", "-nostdlib", str(alone), str(path), "-o", str(made))


def _compile(*given: str) -> None:
    done = subprocess.run([COMPILER, *given], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _key(text: str, flags: list[str]) -> str:
    return hashlib.sha256(repr((text, flags)).encode()).hexdigest()


class _locked:
    """One process at a time, of all that make this file."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_suffix(".lock")

    def __enter__(self) -> None:
        self._lock = self._path.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._lock.close()


if __name__ == "__main__":
    main()
