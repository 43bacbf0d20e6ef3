"""The edits that the editing demo is calibrated with: source pictures and instructions of scenes.

Run as ``python -m training.calibration_edits``, which writes
``calibration/flux-tiny-kontext-edits``. No edit is one that the bench scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from fresco_trt.bench.scenes.edit_judge import judged_edits
from fresco_trt.bench.scenes.render import render
from fresco_trt.lower.calibrate.edits import METADATA

COUNT, SEED, SIDE = 16, 31, 128
OUT = Path("calibration/flux-tiny-kontext-edits")


def write_edits(folder: Path) -> None:
    """Write the pictures and their ``metadata.jsonl`` into a folder, over what is there."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, edit in enumerate(judged_edits(COUNT, seed=SEED), 1):
        name = f"{number:02}-{edit.kind}.png"
        Image.fromarray(render(edit.source, SIDE)).save(folder / name, optimize=True)
        lines.append(json.dumps({"file_name": name, "prompt": edit.instruction}))
    text = "".join(f"{line}\n" for line in lines)
    (folder / METADATA).write_text(text, encoding="utf-8")


def main(out: Path = OUT) -> None:
    """Write the edits."""
    write_edits(out)


if __name__ == "__main__":
    typer.run(main)
