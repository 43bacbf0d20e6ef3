"""Bundles with native code that nobody should run, or that cannot be run, with right digests.

Each maker takes an honest bundle of eager engines, which costs a second, and makes an inductor one
of it: the same plan and weights, and a file of compiled code for each part of each engine.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor.host import this_host, write_host
from fresco_trt.backends.inductor.naming import file_of
from fresco_trt.models.registry import family_named
from fresco_trt.plan.signature import GraphSignature
from tests.hostile.digests import make_right, manifest_of, replaced

LIBRARY = "model/data/aotinductor/model/wrapper.so"
METADATA = LIBRARY.replace(".so", "_metadata.json")

_SOURCE = """
#include <cstdio>
#include <string>
extern int here;
int here;
int *table[9000] = {&here};
int *last[1] = {&here};
__attribute__((constructor)) static void ran() {
  if (FILE *mark = std::fopen(std::string("%s").c_str(), "w")) std::fclose(mark);
}
"""

_ANY = "@" * 1000
"""Stands for a path, and has room for it."""


# --- makers: an honest bundle of eager engines is changed in place ----------------------------


def constructor(folder: Path) -> None:
    """Code that runs when it is loaded, and says so by the file :func:`mark_of`."""
    as_inductor(folder, archive({LIBRARY: shared_object(mark_of(folder))}))


def cut_library(folder: Path) -> None:
    """A library without its last kilobytes: mapped, writing its addresses there is a bus error."""
    library = bytearray(shared_object(mark_of(folder)))
    struct.pack_into("<Q", library, 0x28, 0)  # no section headers, which would lie behind the cut
    struct.pack_into("<HH", library, 0x3C, 0, 0)
    as_inductor(folder, archive({LIBRARY: bytes(library[:20_000])}))


def leaving_names(folder: Path) -> None:
    """A member whose name leads out of the folder that it is unpacked to."""
    library = shared_object(mark_of(folder))
    as_inductor(folder, archive({LIBRARY: library, "model/../../escaped": b"x"}))


def linked_member(folder: Path) -> None:
    """A member that is a symbolic link, for the next one to be written through."""
    library = shared_object(mark_of(folder))
    data = archive({LIBRARY: library, "model/data/link": b"/etc"}, link="model/data/link")
    as_inductor(folder, data)


def compressed_member(folder: Path) -> None:
    """Three kilobytes that unpack to three megabytes, as they might to thousands."""
    library = shared_object(mark_of(folder))
    data = archive({LIBRARY: library, "model/zeros": bytes(3_000_000)}, compression=ZIP_DEFLATED)
    as_inductor(folder, data)


def many_members(folder: Path) -> None:
    """A directory of thousands of names."""
    library = shared_object(mark_of(folder))
    as_inductor(folder, archive({LIBRARY: library, **{f"model/{n}": b"" for n in range(3000)}}))


def untold_members(folder: Path) -> None:
    """A directory that is longer than its own count of members says."""
    library = shared_object(mark_of(folder))
    data = bytearray(archive({LIBRARY: library, **{f"model/{n}": b"" for n in range(3000)}}))
    struct.pack_into("<HH", data, len(data) - 14, 2, 2)
    as_inductor(folder, bytes(data))


def no_archive(folder: Path) -> None:
    """Bytes that are no archive at all."""
    as_inductor(folder, b"code")


MAKERS = (
    constructor,
    cut_library,
    leaving_names,
    linked_member,
    compressed_member,
    many_members,
    untold_members,
    no_archive,
)


# --- what they are made of --------------------------------------------------------------------


def mark_of(folder: Path) -> Path:
    """The file that the code of a changed bundle makes when it runs."""
    return folder.with_name(f"{folder.name}.ran")


def as_inductor(folder: Path, package: bytes) -> None:
    """The bundle with inductor engines in the place of its eager ones, ``package`` as the code of
    every part.
    """
    manifest = manifest_of(folder)
    parts: set[str] = set()
    for engine in manifest["engines"]:
        names = _code_of(folder, engine["family"], engine["signature"])
        engine["files"] = [*engine["files"], f"{inductor.BLOCKS}/{inductor.HOST}", *names]
        parts |= set(names)
    for name in parts:
        replaced(folder / name, package)
    write_host(folder / inductor.BLOCKS / inductor.HOST, this_host("cpu"))
    manifest["backend"] |= {"name": "inductor"}
    make_right(folder, manifest)


def archive(members: dict[str, bytes], *, link: str = "", compression: int = 0) -> bytes:
    """A ``.pt2``-like file; ``link`` names the member that is a symbolic link."""
    data = io.BytesIO()
    with ZipFile(data, "w", compression) as package:
        for name, content in {**members, METADATA: b'{"AOTI_DEVICE_KEY": "cpu"}'}.items():
            entry = ZipInfo(name)
            entry.compress_type = compression
            entry.external_attr = (stat.S_IFLNK if name == link else stat.S_IFREG | 0o644) << 16
            package.writestr(entry, content)
    return data.getvalue()


def shared_object(mark: Path) -> bytes:
    """A library of the shared C++ runtime whose constructor makes the file ``mark``."""
    path = os.fsencode(mark)
    if len(path) >= len(_ANY):
        raise ValueError(f"a path of {len(path)} bytes; expected less than {len(_ANY)}")
    return _compiled().replace(_ANY.encode(), path.ljust(len(_ANY), b"\0"))


@cache
def _compiled() -> bytes:
    """That library, of the file ``_ANY``: compiling takes longer than most tests of it."""
    with TemporaryDirectory() as work:
        source, library = Path(work) / "ran.cpp", Path(work) / "ran.so"
        source.write_text(_SOURCE % _ANY)
        command = f"g++ -O0 -shared -fPIC -Wl,--no-as-needed {source} -o {library}"
        subprocess.run(command.split(), check=True)
        return library.read_bytes()


def _code_of(folder: Path, family: str, signature: dict[str, Any]) -> list[str]:
    """The names of the files that an engine of this transformer is loaded from."""
    graphs, asked = family_named(family).graphs, GraphSignature.from_json(signature)
    graph = graphs.module(_transformer(folder, family), asked)
    return [file_of(part, {}) for part in graphs.cut(graph, asked, fuse=True).parts]


def _transformer(folder: Path, family: str) -> Any:
    return family_named(family).weights.stored(folder / "transformer", "cpu")
