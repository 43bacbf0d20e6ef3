"""The stored study of fitness as the Markdown that the documentation shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.bench.table import interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    Row = Mapping[str, Any]

COLUMNS = {
    "score": ("prompt score (95%)", 2),
    "lost": ("of it lost, in pairs (95%)", 3),
    "ssim": ("SSIM to 50 steps (95%)", 3),
    "distance": ("distance, the judge's features (95%)", 1),
    "imagenet_distance": ("distance, ImageNet features (95%)", 1),
}
"""Figures that rows may have: what they are called, and their digits."""


def fitness_table(document: Row) -> str:
    """One row a way to take plain steps; figures that the document has not are left out."""
    rows = document["rows"]
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [
        f"| {' | '.join(['plain steps', *(COLUMNS[key][0] for key in keys)])} |",
        f"|---|{'--:|' * len(keys)}",
    ]
    for row in rows:
        cells = [interval(row, key, COLUMNS[key][1]) for key in keys]
        lines.append(f"| {' | '.join([row['name'], *cells])} |")
    return "\n".join(lines)


def fitness_verdict(document: Row) -> str:
    """Whether the model is fit to judge by, and each target with what was measured."""
    if "targets" not in document:  # stored before there were any
        return (
            f"**Not fit to judge by**: {document['best_few_step']} is not worse than 50 steps "
            f"beyond the intervals ({document['scenes']} scenes)."
        )
    fit = "Fit" if document["fit"] else "Not fit"
    return (
        f"**{fit} to judge by** ({document['scenes']} scenes): "
        f"{'; '.join(map(_target, document['targets']))}."
    )


def _target(target: Row) -> str:
    steps = f"{target['steps']} steps{', tuned' if target['tuned'] else ''}"
    if target["lost"] is None:
        return f"{steps} have nothing to lose, where 50 steps score 0"
    lost, low, high = (f"{100 * target[f'lost{end}']:.1f}%" for end in ("", "_low", "_high"))
    word = "met" if target["met"] else "missed"
    wanted = f"at least {target['least']:.0%}: {word}"
    return f"{steps} lose {lost} of the score ({low} to {high}; {wanted})"


def fitness_command(document: Row) -> str:
    """The line below: how it was measured, and how often the judge is right."""
    machine = document["machine"]
    return (
        f"`{document['command']}` at {document['commit']}, {machine['cores']} cores of "
        f"{machine['processor']}. Of renders that the judge has not seen, it finds all that is "
        f"said of {100 * document['judge_accuracy']:.1f}%. In brackets: 95% intervals."
    )
