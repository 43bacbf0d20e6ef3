"""The process that ``nsys profile`` starts: draws warmed requests within its capture range.

Under :mod:`fresco_trt.profile.nsys`, which gives the options as one JSON object.

    nsys profile ... python -m fresco_trt.profile.recorded OPTIONS
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import FrescoError
from fresco_trt.profile.job import draw, opened_pipeline, warm_up
from fresco_trt.profile.nvtx import nvtx_ranges
from fresco_trt.profile.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(given: str) -> int:
    """Draw as asked; the exit code, after an error was told on standard error."""
    try:
        options = options_of(json.loads(given))
        with opened_pipeline(options) as pipe:
            warm_up(pipe, options, _silent)
            with capture_range(), nvtx_ranges():
                draw(pipe, options, _silent)
    except FrescoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def options_of(given: dict[str, Any]) -> Options:
    """The options that :mod:`fresco_trt.profile.nsys` wrote."""
    paths = {name: Path(given[name]) for name in ("engines", "verify_key") if given[name]}
    return Options(**{**given, **paths})


@contextmanager
def capture_range() -> Iterator[None]:
    """What nsys records, which ends when the device is done."""
    import torch

    untyped: Any = torch.cuda
    runtime = untyped.cudart()
    torch.cuda.synchronize()
    runtime.cudaProfilerStart()
    try:
        yield
        torch.cuda.synchronize()
    finally:
        runtime.cudaProfilerStop()


def _silent(phase: str, fraction: float) -> None:
    """Nobody looks at the progress of a recording."""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
