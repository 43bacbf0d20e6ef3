"""What a run keeps, so that a killed one goes on: every figure as soon as it is there.

A folder beside the plan. Its log is that of the bench; a run that was not finished is gone on with
if it was asked for the same, and refused if not: half of it would be of another model or target.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.results_log import PACKAGE, ResultsLog, sources_digest, unfinished
from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOG, DOCUMENT, REPORT, ENGINES = "log.jsonl", "tune.json", "report.html", "engines"


class State:
    """The folder of one run. ``header`` is what was asked for, by the names of the options; raises
    IncompatibleOptions where an unfinished run in the folder was asked for something else.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = folder
        check_same(folder / LOG, header)
        self._log = ResultsLog(folder / LOG, header)
        self.said = self._log.said

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was measured under a key, now or by the run that was killed; JSON values."""
        if key not in self._log.notes:
            self._log.add_note(key, measure())
        return self._log.notes[key]

    def get(self, key: str) -> Any:
        """What is kept under a key; None for nothing."""
        return self._log.notes.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Keep a value; on disk when this returns."""
        self._log.add_note(key, value)

    def engines(self, identity: str) -> Path:
        """The folder of engines of these weights and library; those of others are removed."""
        name = hashlib.sha256(identity.encode()).hexdigest()[:16]
        parent = self.folder / ENGINES
        for other in parent.glob("*"):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        return parent / name

    def complete(self) -> None:
        """Mark the run as done."""
        self._log.complete()


def check_same(log: Path, header: Mapping[str, Any]) -> None:
    """Raise IncompatibleOptions if an unfinished run's log was begun for something else."""
    begun = unfinished(log)
    differs = [
        f"{key} {_shown(begun.get(key))}, now {_shown(header.get(key))}"
        for key in sorted(begun.keys() | header.keys() if begun else ())
        if begun.get(key) != header.get(key)
    ]
    if differs:
        raise IncompatibleOptions(
            f"the unfinished run in {log.parent} was begun with {'; '.join(differs)}",
            expected="the same request, to go on with it",
            fix=f"ask for the same again, pass another --out, or remove {log.parent}",
        )


def _shown(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def weights_identity(*paths: Path) -> str:
    """What tells one set of weights from another on one machine: names, sizes and times of the
    safetensors in folders, and of files.
    """
    digest = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
        for file in files:
            found = file.stat()
            digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def package_identity() -> str:
    """What tells this version of the package's code from another."""
    return sources_digest(PACKAGE)
