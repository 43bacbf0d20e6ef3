"""A sheet of pictures to look at: the plain pipeline above, three stages below, the same seeds.

python -m bench.contact_sheet --out bench/results/contact-sheet.jpg
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fresco_trt.bench.plain import MODEL, Plain, draw, judged_scenes, load_pipeline
from fresco_trt.bench.sheet import sheet

PLAIN_STEPS = 28


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
