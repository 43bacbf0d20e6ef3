"""What any run of the bench leaves, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def check_files(document: dict[str, Any], out: Path, table: str) -> None:
    """Whatever was measured: the document is the file, and its table and pictures are beside it."""
    stem = next(out.glob("*.json")).stem
    assert json.loads((out / f"{stem}.json").read_text()) == document
    assert {"machine", "command", "commit", "rows"} <= document.keys()
    left = {path.name for path in out.iterdir()}
    plot = {f"{stem}-pareto.png"} - {each["what"] for each in document["left_out"]}
    assert left == {f"{stem}{end}" for end in (".json", ".jsonl", ".md", "-pictures.png")} | plot
    assert (out / f"{stem}.md").read_text() == f"{table}\n"
    with Image.open(out / f"{stem}-pictures.png") as drawn:
        drawn.load()
