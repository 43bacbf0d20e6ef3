"""What the search before `fresco-trt tune` found, of which the demo's presets are, read back.

Random plans of two and of three stages for each budget of FLOPs, halved by what they drew; stored
as bench/results/flux-tiny-<K>stage-presets.json. :mod:`bench.presets` chooses presets now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fresco_trt.plan.config import NONE, CacheConfig
from fresco_trt.plan.presets import Preset

BUDGETS: Mapping[str, float] = {"quality": 3.0, "balanced": 5.0, "fast": 8.0, "turbo": 12.0}
"""Times fewer FLOPs than the plain pipeline's default steps, by preset."""

SLACK = 1.15
"""A candidate could cost this many times less than its budget, and no less than that."""


def presets_table(documents: Sequence[dict[str, Any]]) -> str:
    """Of every budget of stored searches the preset that was taken, beside the best finalist with
    a cache."""
    lines = [
        "| preset | stages | fewer FLOPs | score | SSIM "
        "| the best with a cache: fewer FLOPs, score, SSIM |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for document in documents:
        for budget, entry in document["budgets"].items():
            plain, cached = (_finalist(entry, cached=each) for each in (False, True))
            figures = ("", "", "") if plain is None else _figures_of(plain)
            both = "none among the last" if cached is None else ", ".join(_figures_of(cached))
            cells = (budget, str(document["stages"]), *figures, both)
            lines.append(f"| {' | '.join(cells)} |")
    scenes = max(
        each["scenes"]
        for document in documents
        for entry in document["budgets"].values()
        for each in entry["finalists"]
    )
    return "\n".join([*lines, "", f"{scenes} scenes each, none of them in another table."])


def _finalist(entry: Mapping[str, Any], *, cached: bool) -> dict[str, Any] | None:
    """The best with a cache, or without; finalists stand best first."""
    fitting: Iterator[dict[str, Any]] = (
        each for each in entry["finalists"] if (each["preset"]["cache"]["name"] != "none") == cached
    )
    return next(fitting, None)


def _figures_of(finalist: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        f"{finalist['flops_ratio']:.1f}",
        f"{finalist['score']:.2f}",
        f"{finalist['ssim']:.2f}",
    )


def found_preset(document: Mapping[str, Any], budget: str) -> Preset:
    """The preset that a stored search of stages chose for a budget, see :func:`found`."""
    return preset_of({**found(document, budget)["preset"], "cache": asdict(CacheConfig())})


def found(document: Mapping[str, Any], budget: str) -> dict[str, Any]:
    """The best finalist without a cache, of a stored search of stages, for a budget.

    A preset says how stages go; whether steps are skipped is asked for with ``--cache``, on any of
    them. Cached candidates show what that is worth at the same budget.
    """
    finalists: list[dict[str, Any]] = document["budgets"][budget]["finalists"]
    return next(each for each in finalists if each["preset"]["cache"]["name"] == NONE)


def preset_of(entry: Mapping[str, Any]) -> Preset:
    """A preset as it was stored."""
    fields = {key: _tuples(value) for key, value in entry.items() if key != "cache"}
    cache = {key: _tuples(value) for key, value in entry["cache"].items()}
    return Preset(**fields, cache=CacheConfig(**cache))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
