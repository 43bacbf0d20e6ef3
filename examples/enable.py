"""A diffusers pipeline as it is, then with a stage plan, then as it was.

python examples/enable.py
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import diffusers
import numpy as np

import fresco_trt

PROMPT = "a bell on a plain blue background"


def timed(pipe: Any, **arguments: Any) -> tuple[np.ndarray, float]:
    """A picture of 64x64 pixels, from one and the same noise, and the seconds it took."""
    import torch

    began = perf_counter()
    result = pipe(
        PROMPT,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
        **arguments,
    )
    return result.images[0], perf_counter() - began


def main() -> None:
    """Draw three times; the last picture is the first, bit for bit."""
    pipe = diffusers.FluxPipeline.from_pretrained(fresco_trt.pretrained("flux-tiny"))
    pipe.set_progress_bar_config(disable=True)
    plain, seconds = timed(pipe, num_inference_steps=8)
    print(f"diffusers, 8 steps: {seconds:.2f} s")

    fresco_trt.enable(pipe, stages=2, preset="turbo")
    _, seconds = timed(pipe)
    print(f"two stages, turbo: {seconds:.2f} s")

    fresco_trt.disable(pipe)
    again, _ = timed(pipe, num_inference_steps=8)
    print("as it was:", bool((again == plain).all()))


if __name__ == "__main__":
    main()
