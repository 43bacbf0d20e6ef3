"""How many blocks of each kind are built, where that is fewer than the model has.

Beside the facts, for latency and memory on a machine that could not hold the whole model.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from fresco_trt.errors import PlanError

Blocks: TypeAlias = tuple[int, ...]
"""One count a kind: of FLUX, double-stream and single-stream blocks."""

_BLOCKS = re.compile(r"[0-9]{1,3}(,[0-9]{1,3}){0,7}")


def parse_blocks(text: str) -> Blocks:
    """``"1,2"`` as (1, 2): one whole number a kind of block. Raises PlanError for anything else."""
    if _BLOCKS.fullmatch(text.strip()) is None:
        raise PlanError(
            f"--blocks {text[:40]}",
            expected="whole numbers, one a kind of block: of FLUX double-stream and single-stream",
            fix="write it like --blocks 1,1",
        )
    return tuple(int(count) for count in text.split(","))


def format_blocks(blocks: Blocks) -> str:
    """Inverse of :func:`parse_blocks`."""
    return ",".join(map(str, blocks))
