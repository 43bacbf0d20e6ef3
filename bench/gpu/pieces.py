"""Compiled pieces in one small archive, to be taken to another machine of the same kind.

Compiling takes longer than all else before the rounds, and what it gives is half a megabyte a
piece: the archive saves the time where machines are fresh every time.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor.host import check_host, this_host
from fresco_trt.backends.inductor.naming import BLOCKS
from fresco_trt.bench.results_log import sources_digest
from fresco_trt.errors import FrescoError
from fresco_trt.files.atomic_file import replacing

if TYPE_CHECKING:
    from bench.gpu.engines import Subject

ORIGIN = "origin.json"


def take_pieces(archive: Path, subject: Subject, engines: Path) -> str:
    """Put the pieces of ``archive`` into a folder of engines, unless they are of another subject,
    other code, or a machine whose pieces do not run here; what became of them, in words.
    """
    if not archive.is_file():
        return f"{archive} is not there yet: pieces are compiled"
    with tempfile.TemporaryDirectory(dir=engines) as temporary:
        place = Path(temporary)
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(place, filter="data")
            stored = json.loads((place / ORIGIN).read_text(encoding="utf-8"))
            check_host(place / BLOCKS / inductor.HOST, this_host(subject.device))
        except (OSError, tarfile.TarError, ValueError, FrescoError) as error:
            return f"{archive} is of no use, pieces are compiled: {error}"
        differs = [name for name, value in origin(subject).items() if stored.get(name) != value]
        if differs:
            return f"{archive} differs in {', '.join(differs)}: pieces are compiled"
        return f"{_moved(place / BLOCKS, engines / BLOCKS)} pieces of {archive}"


def keep_pieces(archive: Path, subject: Subject, engines: Path) -> None:
    """Write all pieces of a folder to ``archive``. Raises OutputNotWritable or DiskFull."""
    with replacing(archive) as partial, tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / ORIGIN
        path.write_text(json.dumps(origin(subject)), encoding="utf-8")
        with tarfile.open(partial, "w:gz") as packed:
            packed.add(path, ORIGIN)
            for piece in sorted((engines / BLOCKS).iterdir()):
                packed.add(piece, f"{BLOCKS}/{piece.name}")


def origin(subject: Subject) -> dict[str, Any]:
    """What pieces are of: a model at some depth, a precision, and the code that makes them."""
    package = Path(inductor.__file__).parents[2]
    facts = subject.facts
    return {
        "model": facts.name,
        "layers": [facts.double_blocks, facts.single_blocks],
        "precision": subject.precision,
        "recipe": subject.recipe,
        "sources": sources_digest(package / "backends" / "inductor", package / "models"),
    }


def _moved(source: Path, target: Path) -> int:
    """Move files that are not there; how many of the source's were pieces."""
    target.mkdir(exist_ok=True)
    pieces = 0
    for path in source.iterdir():
        pieces += path.suffix == ".pt2"
        if not (target / path.name).exists():
            shutil.move(path, target / path.name)
    return pieces
