"""The demo model as a pipeline of diffusers, as a user loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fresco_trt

TURBO_STEPS = (4, 2, 2)
"""What turbo's three stages take with the fixture ``few_steps``: as few as leave a cache something
to skip.
"""


SHALLOW = "flux-tiny:num_layers=1,num_single_layers=1"
"""What the demo with one block of each kind is called."""


def new_pipe(folder: Path | None = None) -> Any:
    """Of a pipeline folder; by default the demo's own."""
    import diffusers

    untyped: Any = diffusers
    folder = folder or fresco_trt.pretrained("flux-tiny")
    pipe = untyped.FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
