"""What searches found, as the Markdown that the page of results shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


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


def cache_schedule_table(document: Mapping[str, Any]) -> str:
    """Of every budget of a search of cache schedules the best plan, beside the best control."""
    lines = [
        "| at least | with a cache: steps | fewer FLOPs | score | SSIM "
        "| full steps alone | fewer FLOPs | score | SSIM |",
        "|--:|---|--:|--:|--:|---|--:|--:|--:|",
        *(_cache_schedule_row(entry) for entry in document["budgets"].values()),
    ]
    scenes = max(
        each["scenes"]
        for entry in document["budgets"].values()
        for each in (*entry["finalists"], *entry["controls"])
    )
    return "\n".join(
        [
            *lines,
            "",
            f"The best of {document['candidates']} random plans of one stage for each budget of "
            f"FLOPs, and of full steps alone at four shifts with both solvers; {scenes} scenes.",
        ]
    )


def _cache_schedule_row(entry: Mapping[str, Any]) -> str:
    best, control = entry["finalists"][0], entry["controls"][0]
    cells = (
        f"{entry['budget']:g}x",
        _steps_of(best["preset"]),
        f"{best['flops_ratio']:.1f}",
        f"{best['score']:.2f}",
        f"{best['ssim']:.3f}",
        _steps_of(control["preset"]),
        f"{control['flops_ratio']:.1f}",
        f"{control['score']:.2f}",
        f"{control['ssim']:.3f}",
    )
    return f"| {' | '.join(cells)} |"


def _steps_of(preset: Mapping[str, Any]) -> str:
    """The steps of a stored one-stage preset, what answers those it skips, shift and solver."""
    (steps,), (shift,), cache = preset["steps"], preset["shift"], preset["cache"]
    how = f"mu {math.log(shift):.1f}, {preset['solver']}"
    if cache["actions"] is None:
        return f"{steps}, {how}"
    order = f" of order {cache['order']}" if cache["order"] else ""
    return f"{cache['actions'][0]}, {cache['name']}{order}, {how}"
