"""What `fresco-trt calibrate` shows of its measurements, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.cli.display import say, table

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN = 12
"""Rows of a table whose tail is in the file."""


def spectrum_table(summary: Mapping[str, Any]) -> None:
    """A measured spectrum at every doubling of the frequency, and the law fitted to all of it."""
    rows, fit = summary["spectrum"], summary["fit"]
    width, height = summary["size"]
    octaves = [row for row in rows if (row["frequency"] & (row["frequency"] - 1)) == 0]
    table(
        f"{summary['model']} {width}x{height}, {summary['pictures']['count']} pictures",
        ("cycles", "power", "standard error", "power law"),
        [
            (
                row["frequency"],
                f"{row['power']:.4g}",
                f"{row['error']:.2g}",
                f"{summary['amplitude'] * row['frequency'] ** -summary['beta']:.4g}",
            )
            for row in octaves
        ],
    )
    say(
        f"P(w) = {summary['amplitude']:g} * w^-{summary['beta']:g}, fitted from {fit['low']} to "
        f"{fit['high']} cycles: r2 {fit['r2']:.3f}, at worst {fit['factor']:.2f}x off\n"
        f"{summary['file']}"
    )


def basis_table(summary: Mapping[str, Any]) -> None:
    """The directions that were kept, and what each holds of the features' energy."""
    shares, held = summary["shares"], 0.0
    rows = []
    for number, share in enumerate(shares, start=1):
        held += share
        if number <= 8 or number == len(shares):
            rows.append((number, f"{share:.1%}", f"{held:.1%}"))
    table(
        f"{summary['model']}: an SVD basis of {summary['rank']} directions",
        ("direction", "energy", "up to it"),
        rows,
    )
    say(
        f"{summary['energy']:.0%} of the energy asked for, {summary['prompts']} prompts\n"
        f"{summary['file']}"
    )


def cache_schedule_table(summary: Mapping[str, Any]) -> None:
    """For each tolerance the actions to pass, and the largest error that was let through."""
    rows = [
        (
            f"{each['tolerance']:g}",
            "+".join(each["actions"]),
            f"{each['full_steps']} of {summary['steps']}",
            _worst_skip(each),
        )
        for each in summary["schedules"]
    ]
    title = (
        f"{summary['model']}, {summary['stages']} stages, {summary['preset']}: "
        f"steps that {summary['cache']['name']} may answer"
    )
    table(title, ("tolerance", "actions=", "full steps", "worst skipped"), rows)
    say(f"{summary['prompts']} prompts\n{summary['file']}")


def sea_schedule_table(summary: Mapping[str, Any]) -> None:
    """For each threshold the actions to pass, and the mean change that a step brings."""
    rows = [
        (
            f"{each['threshold']:g}",
            "+".join(each["actions"]),
            f"{each['full_steps']} of {summary['steps']}",
        )
        for each in summary["schedules"]
    ]
    title = f"{summary['model']}, {summary['stages']} stages, {summary['preset']}: steps to skip"
    table(title, ("threshold", "actions=", "full steps"), rows)
    changes = [
        change
        for stage in summary["schedules"][0]["changes"]
        for change in stage
        if change is not None
    ]
    span = f"{min(changes):.2g} to {max(changes):.2g} a step" if changes else "no step to skip"
    say(f"change: {span}, {summary['prompts']} prompts\n{summary['file']}")


def _worst_skip(each: Mapping[str, Any]) -> str:
    pairs = [
        (letter, error)
        for word, errors in zip(each["actions"], each["errors"], strict=True)
        for letter, error in zip(word, errors, strict=True)
    ]
    taken = [error for letter, error in pairs if letter == "B"]
    return f"{max(taken):.1%}" if taken else "none"


def amax_table(summary: Mapping[str, Any]) -> None:
    """The largest input of each layer in each stage, and those of attention, the widest first."""
    layers, operands = summary["inputs"], summary["attention"]
    widest = sorted((layers | operands).items(), key=lambda each: -max(each[1]))
    more = f", {len(operands)} operands of attention" if operands else ""
    stages = len(widest[0][1])
    table(
        f"{summary['model']}, {summary['recipe']}: {len(layers)} layers{more}",
        ("layer", *(f"stage {number}" for number in range(1, stages + 1))),
        [(layer, *(f"{value:.4g}" for value in values)) for layer, values in widest[:SHOWN]],
    )
    say(f"kept as they are: {', '.join(summary['kept'])}\n{_source(summary)}")


def sensitivity_table(summary: Mapping[str, Any]) -> None:
    """What each group of layers costs alone, and what would keep it."""
    groups = summary["groups"]
    table(
        f"{summary['model']}, {summary['recipe']}: velocity error with one group quantised",
        ("group", "layers", "error"),
        [(each["group"], each["layers"], f"{each['error']:.2%}") for each in groups[:SHOWN]],
    )
    say(
        f"all layers together: {summary['together']:.2%}; to leave the first group alone, build "
        f"with keep={groups[0]['pattern']} in --precision\n{_source(summary)}"
    )


def _source(summary: Mapping[str, Any]) -> str:
    return f"{summary['prompts']} prompts\n{summary['file']}"
