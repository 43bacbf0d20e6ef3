"""What was measured so far, scene by scene, so that a killed run loses one scene and no more.

A file of JSON lines: first what is being measured, then one line a scene, each written whole. The
same request run again goes on from there; any other starts anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.files.atomic_file import replacing, writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Line = dict[str, Any]

PACKAGE = Path(__file__).parents[1]


class ResultsLog:
    """The measurements of one request; ``said`` is what became of an older log file, in words.

    ``header`` names the request: a log with another header, or with a line that says it was
    completed, is replaced. ``scenes`` maps the numbers of measured scenes to their lines. Raises
    OutputNotWritable or DiskFull.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, dict(header)
        self.scenes: dict[int, Line] = {}
        self.notes: dict[str, Any] = {}
        self.said = self._resume()
        if not self.scenes and not self.notes:
            self._write(json.dumps(self.header) + "\n", "w")

    def add_scene(self, number: int, line: Mapping[str, Any]) -> None:
        """Keep the measurements of a scene; on disk when this returns."""
        self.scenes[number] = dict(line)
        self._write(json.dumps({"scene": number, **line}, allow_nan=False) + "\n", "a")

    def add_note(self, key: str, value: Any) -> None:
        """Keep something measured once in the run, such as a peak of memory."""
        self.notes[key] = value
        self._write(json.dumps({"note": key, "value": value}, allow_nan=False) + "\n", "a")

    def complete(self) -> None:
        """Mark the run as done: the next one, though it ask for the same, measures anew."""
        self._write('{"complete": true}\n', "a")

    def _write(self, text: str, mode: str) -> None:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode, encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())

    def _resume(self) -> str:
        if not self.path.is_file():
            return "measuring"
        lines = _lines(self.path)
        differs = _differences(lines[0] if lines else {}, self.header)
        if differs:
            return f"measuring anew: {', '.join(differs)} differ from the run of {self.path}"
        if _is_complete(lines):
            return f"measuring anew: the run of {self.path} was completed"
        self._take(lines[1:])
        return f"going on from {self.path}, which has {len(self.scenes)} scenes"

    def _take(self, lines: list[Line]) -> None:
        for line in lines:
            if "scene" in line:
                self.scenes[line.pop("scene")] = line
            elif "note" in line:
                self.notes[line["note"]] = line["value"]
        # Written again without the line that a killed run may have left half-finished.
        kept = [self.header]
        kept += [{"note": key, "value": value} for key, value in self.notes.items()]
        kept += [{"scene": number, **line} for number, line in self.scenes.items()]
        with replacing(self.path) as partial:
            partial.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")


def differences(path: Path, header: Mapping[str, Any]) -> list[str]:
    """The keys in which the unfinished request of a log file differs from another's header; none
    for a file that is not there, was completed, or holds no scene yet.
    """
    lines = _lines(path) if path.is_file() else []
    if _is_complete(lines) or not any("scene" in line for line in lines[1:]):
        return []
    return _differences(lines[0], header)


def unfinished(path: Path) -> Line:
    """The header of a log that something was measured into and that was not completed; empty for
    any other file, and for none.
    """
    lines = _lines(path) if path.is_file() else []
    return {} if len(lines) < 2 or _is_complete(lines) else lines[0]


def _is_complete(lines: Sequence[Line]) -> bool:
    return any("complete" in line for line in lines)


def _lines(path: Path) -> list[Line]:
    """The whole lines of a log, up to the first that is none."""
    found: list[Line] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        found.append(line)
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def sources_digest(*folders: Path) -> str:
    """SHA-256 over the code in some folders: a commit does not tell what was edited since."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def inputs_digest(*pipelines: Path, sources: Sequence[Path] = (PACKAGE,)) -> dict[str, str]:
    """What a request is measured on, for a header: the code and the pipeline folders' weights."""
    weights = " ".join(_weights_digest(pipeline) for pipeline in pipelines)
    return {"sources": sources_digest(*sources), "weights": weights}


def _weights_digest(pipeline: Path) -> str:
    """What tells one set of weights from another on one machine: names, sizes and times."""
    digest = hashlib.sha256()
    for path in sorted(pipeline.rglob("*.safetensors")):
        state = path.stat()
        digest.update(
            f"{path.relative_to(pipeline)} {state.st_size} {state.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()
