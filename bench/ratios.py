"""What a point costs beside the plain sampler, from the scores of the same cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Scores = Mapping[str, Any]
    """Of one case by one point; "flops" and "engine_seconds" None where nobody counted."""


def flops_ratio(scores: Sequence[Scores], plain: Sequence[Scores]) -> float | None:
    """FLOPs of the plain sampler over a point's."""
    counted = [each["flops"] for each in scores]
    whole: float = sum(each["flops"] for each in plain)
    return None if None in counted else whole / sum(counted)


def host_share(scores: Sequence[Scores]) -> float | None:
    """Share of a point's seconds that is outside its engines."""
    inside = [each["engine_seconds"] for each in scores]
    whole: float = sum(each["seconds"] for each in scores)
    return None if None in inside else 1 - sum(inside) / whole


def rounded(value: Any) -> Any:
    """Five digits of a number, or of each in a dict."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
