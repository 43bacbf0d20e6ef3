"""A tune's document: what is stored of it, and a preset as JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.presets import Preset
from fresco_trt.tune.halving import Outcome, Standing, difference, figures_of

if TYPE_CHECKING:
    from collections.abc import Iterable


def preset_to_json(preset: Preset) -> dict[str, Any]:
    """A preset that edits nothing, as JSON values; what is at its default is left out."""
    if preset.edit is not None:
        raise ValueError("a preset of selective edits; expected one that draws")
    plain = asdict(Preset(steps=preset.steps, switch=preset.switch))
    found = {
        name: value
        for name, value in asdict(preset).items()
        if name in ("steps", "switch") or value != plain[name]
    }
    if "cache" in found:
        found["cache"] = str(preset.cache)
    return found


def preset_from_json(value: Mapping[str, Any]) -> Preset:
    """Inverse of :func:`preset_to_json`, from a file too, whose lists are tuples. Raises
    InvalidPlan and PlanError for what no preset has.
    """
    fields: dict[str, Any] = {name: _tuples(each) for name, each in value.items()}
    if "cache" in fields:
        fields["cache"] = CacheConfig.parse(fields["cache"])
    return Preset(**fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def row_of(standing: Standing, seconds: float) -> dict[str, Any]:
    """One candidate as it stands, with the seconds of a picture."""
    each = standing.candidate
    return {
        "name": each.name,
        "family": each.family,
        "stages": len(each.plan.stages),
        "steps": each.plan.nfe,
        "full_steps": each.plan.full_steps,
        "seconds": seconds,
        **figures_of(standing),
        "preset": preset_to_json(each.preset),
    }


def beside_control(standing: Standing, control: Standing | None) -> dict[str, Any] | None:
    """How much more a finalist's pictures are worth than the best control's, in pairs; None
    without a control, and for the control itself.
    """
    if control is None or standing is control:
        return None
    mean, low, high = difference(standing, control)
    known = len(standing.values) > 1
    return {"mean": mean, "low": low if known else None, "high": high if known else None}


def verdict(outcome: Outcome) -> str:
    """Whether the winner beat plain sampling with few steps, in words."""
    winner, control = outcome.winner, outcome.control
    if control is None:
        return "no plain sampling with few steps is as fast as asked"
    if winner is control:
        return f"the control wins: {control.candidate.name}"
    mean, low, _ = difference(winner, control)
    name = control.candidate.name
    if len(winner.values) < 2 or low <= 0.0:
        return f"by {mean:.3f} above the control, which may be chance ({name})"
    return f"above the control by {mean:.3f}, at least {low:.3f} ({name})"


def families_of(standings: Iterable[Standing]) -> dict[str, int]:
    """How many candidates of each family were judged."""
    found: dict[str, int] = {}
    for each in standings:
        found[each.candidate.family] = found.get(each.candidate.family, 0) + 1
    return found
