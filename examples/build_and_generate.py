"""Build a bundle of the demo model once, and draw from it: a picture, and one a stage.

    python examples/build_and_generate.py [FOLDER]

Writes the bundle and the pictures into FOLDER, by default the folder that it is called in. Engines
of the "eager" backend are built in a second, which suits an example; leave ``backend`` out for
ONNX Runtime, and ``size`` for the model's own 256x256 pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import fresco_trt

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = "a bell on a plain blue background"


def main(folder: Path) -> None:
    """Build, open, draw."""
    bundle = fresco_trt.build(
        "flux-tiny",
        stages=2,
        preset="turbo",
        size=(128, 128),
        backend="eager",
        out=folder / "bundle",
    )

    def keep(stage: int, preview: Image) -> None:
        preview.save(folder / f"stage{stage}.png")

    with fresco_trt.FrescoPipeline.from_bundle(bundle) as pipe:
        result = pipe(PROMPT, seed=7, on_stage=keep)
    result.images[0].save(folder / "picture.png")
    print(f"{result.nfe} steps in {result.seconds.denoise:.2f} s: {folder / 'picture.png'}")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]))
