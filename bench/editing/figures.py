"""The two pictures beside a stored document: quality over speed, and edits to look at.

    python -m bench.editing.figures bench/results/editing.json

draws the first of them again.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bench import plots
from bench.editing.points import COLOURS, GROUPS, PEERS
from bench.plots import check_plots as check_plots
from fresco_trt.files.atomic_file import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from bench.editing.engines import Draw, Engines, Made, Prepared
    from fresco_trt.bench.scenes.edits import Edit

    Row = Mapping[str, Any]

QUALITIES = {"score": "edits made", "outside": "PSNR outside of the edit, dB"}

SHOWN = 8
"""Edits on the sheet: every kind, and the first one twice."""

AT_LEAST = 5.0
"""The speed-up from which rows are chosen for the sheet."""


# --- the plot ---------------------------------------------------------------------------------


def pareto(document: Mapping[str, Any], path: Path) -> None:
    """Draw edits made, and what is left alone, over the measured speed-up, as a PNG.

    Raises ImportError without matplotlib.
    """
    width, height = document["size"]
    plot = plots.Plot(
        title=f"{document['model']} {width}x{height}, {document['backend']} engines, "
        f"{document['scenes']} edits; bars are 95% intervals",
        colours={group: COLOURS[group] for group in GROUPS},
        qualities=QUALITIES,
        speed="speed-up over the plain edit, measured",
    )
    plots.pareto(document["rows"], plot, path)


# --- the sheet --------------------------------------------------------------------------------


def contact_sheet(
    engines: Engines,
    draws: Mapping[str, Draw],
    rows: Sequence[Row],
    edits: Sequence[Edit],
    path: Path,
) -> None:
    """The first edits, one a column: source, draft, mask and result of a selective edit, and what
    the plain edit, a few-step control and a peer made of it, with the seeds that were measured.
    """
    from fresco_trt.bench.sheet import sheet

    shown = representatives(rows)
    labels = ["source"]
    for row in shown:
        extra = ["draft", "mask: red is found, white is true"] if row["group"] == "specedit" else []
        labels += [*extra, f"{row['name']}, {row['speedup']:.1f}x"]
    columns = []
    for number, edit in enumerate(edits[:SHOWN]):
        prepared = engines.prepared(edit)
        pictures = [prepared.source]
        for row in shown:
            pictures += _pictures(engines, draws, row, prepared, number)
        columns.append((edit.instruction, pictures))
    with replacing(path) as partial:
        sheet(columns, labels).save(partial, format="JPEG", quality=90)


def representatives(rows: Sequence[Row]) -> list[Row]:
    """The rows to show: of each of these groups the one that makes most edits among those at least
    :data:`AT_LEAST` times faster, or its fastest, and the plain edit; the same of each recipe that
    engines were quantised by.
    """
    shown = []
    recipes = dict.fromkeys(row.get("quant") for row in rows)
    for group, recipe in product(("specedit", "plain", "few-step", *PEERS[:2]), recipes):
        own = [row for row in rows if (row["group"], row.get("quant")) == (group, recipe)]
        fast = [row for row in own if row["speedup"] >= AT_LEAST]
        if fast:
            shown.append(max(fast, key=lambda row: (row["score"], row["outside"])))
        elif own:
            shown.append(max(own, key=lambda row: row["speedup"]))
    return shown


def _pictures(
    engines: Engines, draws: Mapping[str, Draw], row: Row, prepared: Prepared, seed: int
) -> list[Image]:
    """What a row made of an edit; of a selective edit its draft and mask before it."""
    from PIL.Image import fromarray

    if row["group"] != "specedit":
        return [fromarray(draws[row["name"]](prepared, seed).pixels)]
    drafts: list[Image] = []
    made = engines.previewed(row["name"], lambda _, image: drafts.append(image))(prepared, seed)
    return [drafts[0], _masks(made, prepared.edit), fromarray(made.pixels)]


def _masks(made: Made, edit: Edit) -> Image:
    """The mask that was found in red, the true one in white, pink where they agree."""
    import numpy as np
    from PIL.Image import fromarray

    from fresco_trt.bench.scenes.edits import changed

    if made.mask is None:
        raise ValueError("an edit without a mask; expected one of a selective plan")
    height, width = made.mask.shape
    true = changed(edit, width, height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[true] = (255, 255, 255)
    pixels[made.mask] = (200, 40, 40)
    pixels[made.mask & true] = (255, 170, 170)
    return fromarray(pixels)


def main(result: Path) -> None:
    """Draw the plot of a stored result, beside it."""
    path = plots.beside(result, "pareto.png")
    pareto(json.loads(result.read_text(encoding="utf-8")), path)
    print(f"stored {path}")


if __name__ == "__main__":
    typer.run(main)
