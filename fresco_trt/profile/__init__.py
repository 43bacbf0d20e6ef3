"""Where the time of requests goes: spans and their sums, NVTX ranges, exports of Nsight Systems.

Right of the double arrow in the data path, around a pipeline that draws. What opens the spans is
:mod:`fresco_trt.run.trace`; ``fresco-trt profile`` is the command over this folder.
"""

from fresco_trt.profile.nvtx import nvtx_ranges

__all__ = ["nvtx_ranges"]
