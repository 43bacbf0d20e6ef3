"""The demo model as a pipeline of diffusers, as a user loads it."""

from __future__ import annotations

from typing import Any

import fresco_trt


def new_pipe() -> Any:
    import diffusers

    untyped: Any = diffusers
    folder = fresco_trt.pretrained("flux-tiny")
    pipe = untyped.FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
