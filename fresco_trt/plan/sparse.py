"""Block-sparse attention as numbers: how many blocks of keys a block of queries attends to.

Beside the plan's types. A stage's image tokens stand in blocks along a curve that fills space and
time; each block of queries sees all of the text and a fixed share of the blocks of the image: which
ones is the engine's to say, how many is known here (Jenga, arXiv 2505.16864, by a count alone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.reading import REMAKE, number

SPARSE = "sparse_attention"
"""The key of a plan, and of a preset, that holds the share."""

BLOCK = 128
"""Tokens of a block."""

_ROUNDING = 1e-9  # 0.3 of 10 blocks are 3 in whole numbers, and a little more in binary ones


def blocks_of(tokens: int) -> int:
    """Blocks that so many tokens take; the last one may not be full."""
    return -(-tokens // BLOCK)


def blocks_kept(tokens: int, share: float) -> int:
    """Blocks of ``tokens`` image tokens that each block of queries sees: ``share`` of them, rounded
    up.
    """
    return max(1, math.ceil(share * blocks_of(tokens) - _ROUNDING))


def tokens_unseen(tokens: int, share: float | None) -> int:
    """Image tokens that an image token at least does not attend to; None: it sees all of them."""
    return 0 if share is None else max(0, tokens - BLOCK * blocks_kept(tokens, share))


def share_problem(share: float | None) -> tuple[str, str] | None:
    """What was given and what is expected, for a share that none is; None: dense attention."""
    if share is None or 0.0 < share <= 1.0:
        return None
    return f"{SPARSE}={share:g}", "a share over 0 and at most 1 of the blocks of keys"


def check_share(share: float | None) -> None:
    """Raise InvalidPlan for a plan's share that none is."""
    if (problem := share_problem(share)) is not None:
        given, expected = problem
        raise InvalidPlan(given, expected=expected, fix=REMAKE)


def share_from_json(plan: Mapping[str, object]) -> float | None:
    """The share in a plan's JSON. Raises InvalidPlan for what is no number."""
    return number(plan[SPARSE], f"plan {SPARSE}") if SPARSE in plan else None
