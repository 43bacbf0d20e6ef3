"""What a profile leaves: its document, a trace and a timeline, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fresco_trt.files.atomic_file import check_writable, store_json
from fresco_trt.profile.spans import HOST, tenths
from fresco_trt.profile.timeline import timeline
from fresco_trt.profile.tracks import Track, chrome_trace
from fresco_trt.run.trace import BYPASS, DECODE, FULL, REPLAY, TEXT, TRANSITION

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT, TRACE, TIMELINE = "profile.json", "trace.json", "timeline.png"
_PARTS = (TEXT, FULL, BYPASS, REPLAY, TRANSITION, DECODE, HOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A document, and the tracks of one of its requests: the host's, then those of devices."""

    document: Mapping[str, Any]
    tracks: Sequence[Track]


def check_folder(out: Path) -> None:
    """Whether a profile can be written there, before one is taken. Raises as ``writing``."""
    for name in (DOCUMENT, TRACE, TIMELINE):
        check_writable(out / name)


def store(profile: Profile, out: Path) -> dict[str, Any]:
    """Write the files of a profile into a folder; the document, which then names them, and what was
    left out and why. Raises OutputNotWritable or DiskFull.
    """
    document, drawn = dict(profile.document), find_spec("matplotlib") is not None
    files = {"document": DOCUMENT, "trace": TRACE, **({"timeline": TIMELINE} if drawn else {})}
    document["files"] = {name: str(out / file) for name, file in files.items()}
    document["left_out"] = (
        []
        if drawn
        else [
            {
                "what": TIMELINE,
                "reason": "matplotlib is not installed: pip install fresco-trt[bench]",
            }
        ]
    )
    about = {name: document[name] for name in ("model", "backend") if document.get(name)}
    store_json(chrome_trace(profile.tracks, about), out / TRACE)
    if drawn:
        timeline(profile.tracks, shares_by_part(document["rows"]), _title(document), out / TIMELINE)
    store_json(document, out / DOCUMENT)
    return document


def shares_by_part(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of the rows of a document, the share of each part there is in tenths of a percent."""
    sums = {
        name: round(1e9 * sum(row["seconds"] for row in rows if row["part"] == name))
        for name in (*_PARTS, *sorted({row["part"] for row in rows} - set(_PARTS)))
    }
    found = {name: value for name, value in sums.items() if value}
    return dict(zip(found, tenths(list(found.values())), strict=True))


def _title(document: Mapping[str, Any]) -> str:
    length = document["request_seconds"]
    words = [
        *(str(document[name]) for name in ("model", "backend") if document.get(name)),
        *([] if length is None else [f"{1e3 * length['median']:.4g} ms a request"]),
        f"{100 * document['outside_engines']:.1f}% outside engines",
    ]
    return ", ".join(words)
