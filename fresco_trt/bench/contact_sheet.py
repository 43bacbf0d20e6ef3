"""A sheet of pictures to look at: the plain pipeline above, three stages below, the same seeds.

python -m fresco_trt.bench.contact_sheet --out bench/results/contact-sheet.jpg
"""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fresco_trt.bench.plain import MODEL, Plain, draw, judged_scenes, load_pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

COLUMNS, TILE, CAPTION, MARGIN = 8, 144, 44, 140
PLAIN_STEPS = 28


def sheet(scenes: Sequence[tuple[str, Sequence[Image]]], labels: Sequence[str] = ()) -> Image:
    """Tiles of (caption, its pictures from top to bottom), eight scenes to a band.

    ``labels`` say what each line of pictures is, in a margin on the left.
    """
    from PIL import Image, ImageDraw

    lines, margin = len(scenes[0][1]), MARGIN if labels else 0
    band = lines * TILE + CAPTION
    bands = -(-len(scenes) // COLUMNS)
    canvas = Image.new("RGB", (margin + COLUMNS * TILE, bands * band), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (caption, pictures) in enumerate(scenes):
        left, top = margin + index % COLUMNS * TILE, index // COLUMNS * band
        pen.text((left + 3, top + 2), textwrap.fill(caption, 22), fill="black", font_size=11)
        for line, picture in enumerate(pictures):
            place = (left, top + CAPTION + line * TILE)
            canvas.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), place)
    for index, label in enumerate([*labels] * bands):
        top = index // lines * band + CAPTION + index % lines * TILE
        pen.text((3, top + 4), textwrap.fill(label, 22), fill="black", font_size=11)
    return canvas


def main(
    count: Annotated[int, typer.Option(help="Prompts.")] = 16,
    preset: str = "balanced",
    out: Path = Path("bench/results/contact-sheet.jpg"),
) -> None:
    """Draw the sheet with the bundled model."""
    from PIL.Image import fromarray

    from fresco_trt.lower.build import BuildRequest, run
    from fresco_trt.pipelines.image import FrescoPipeline

    plain, rows = load_pipeline(), []
    with tempfile.TemporaryDirectory() as folder:
        run(BuildRequest(model=MODEL, stages=3, preset=preset, out=Path(folder) / "bundle"))
        with FrescoPipeline.from_bundle(Path(folder) / "bundle") as pipe:
            for seed, scene in enumerate(judged_scenes(count)):
                pictures, _ = draw(plain, [scene], [seed], Plain(steps=PLAIN_STEPS))
                pixels = ((pictures[0] / 2 + 0.5) * 255).round().byte().permute(1, 2, 0)
                lower = pipe(scene.caption, seed=seed).images[0]
                rows.append((scene.caption, (fromarray(pixels.numpy(), "RGB"), lower)))
                print(f"{seed + 1}/{count} {scene.caption}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(out, quality=88)
    print(f"stored {out}")


if __name__ == "__main__":
    typer.run(main)
