"""The demo model as a pipeline of diffusers, as a user loads it."""

from __future__ import annotations

from typing import Any

import fresco_trt

TURBO_STEPS = (4, 2, 2)
"""What turbo's three stages take with the fixture ``few_steps``: as few as leave a cache something
to skip.
"""


def new_pipe() -> Any:
    import diffusers

    untyped: Any = diffusers
    folder = fresco_trt.pretrained("flux-tiny")
    pipe = untyped.FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
