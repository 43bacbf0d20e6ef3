"""Charts as inline SVG: quality over speed, a plan's steps, a timeline. No script, no library.

Between the sections and their markup. Every mark has a title, which a pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fresco_trt.bench.figures import undominated
from fresco_trt.plan.stages import StagePlan
from fresco_trt.profile.timeline import COLOURS
from fresco_trt.report.html import Html, join, tag

# Okabe and Ito's, as those of the bench's methods.
STAGE_COLOURS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")
INK, GRID = "#57606a", "#eaeef2"

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_TICKS = (0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000)

Scale = Callable[[float], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point of :func:`pareto`; a line joins the best of its ``group``."""

    x: float
    y: float
    group: str
    colour: str
    hollow: bool
    ringed: bool
    title: str


def stage_colour(index: int) -> str:
    """The colour of a stage, counted from 0, wherever it is drawn."""
    return STAGE_COLOURS[index % len(STAGE_COLOURS)]


def legend(colours: Mapping[str, str]) -> Html:
    """What the colours of a chart stand for."""
    entries = (
        tag("span", _box(14, 14, tag("circle", cx=7, cy=7, r=5, fill=colour)), name)
        for name, colour in colours.items()
    )
    return tag("div", *entries, class_="legend")


# --- quality over speed -----------------------------------------------------------------------


def pareto(marks: Sequence[Mark], across: str, up: str) -> Html:
    """Marks over a logarithmic axis, and for each group the ones that no other beats in both."""
    lowest, highest = min(m.x for m in marks), max(m.x for m in marks)
    x = _logarithmic(lowest / 1.1, highest * 1.1)
    y, ticks = _linear([mark.y for mark in marks])
    parts = [
        *(_upright(x(tick), f"{tick:g}") for tick in _TICKS if lowest <= tick <= highest),
        *(_level(y(tick), f"{tick:g}") for tick in ticks),
        *_names(across, up),
        *(_front(own, x, y) for own in _groups(marks)),
        *(_marker(mark, x(mark.x), y(mark.y)) for mark in sorted(marks, key=lambda m: m.ringed)),
    ]
    return _box(_WIDTH, _HEIGHT, *parts, label=f"{up} over {across}, {len(marks)} points")


def _groups(marks: Iterable[Mark]) -> Iterable[list[Mark]]:
    found: dict[str, list[Mark]] = {}
    for mark in marks:
        if not mark.hollow:
            found.setdefault(mark.group, []).append(mark)
    return found.values()


def _front(own: Sequence[Mark], x: Scale, y: Scale) -> Html:
    best = undominated([(mark.x, mark.y) for mark in own])
    line = Html(" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in best))
    return tag("polyline", points=line, fill="none", stroke=own[0].colour, stroke_opacity=0.6)


def _marker(mark: Mark, x: float, y: float) -> Html:
    look = {"fill": "none" if mark.hollow else mark.colour, "stroke": mark.colour}
    dot = tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3 if mark.hollow else 4, **look)
    ring = tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=8, fill="none", stroke="#1b1f24")
    return tag("g", tag("title", mark.title), dot, ring if mark.ringed else "")


# --- a plan's steps ---------------------------------------------------------------------------


def steps(plan: StagePlan) -> Html:
    """Noise level over the steps, coloured by stage; behind it the tokens of each step as bars."""
    x = _between(0, plan.nfe, _LEFT, _WIDTH - _RIGHT)
    y = _between(0, 1, _HEIGHT - _BOTTOM, _TOP)
    most = max(plan.tokens)
    bars: list[Html] = []
    lines: list[Html] = []
    done = 0
    for index, (stage, tokens) in enumerate(zip(plan.stages, plan.tokens, strict=True)):
        colour = stage_colour(index)
        top = y(tokens / most)
        for step, action in enumerate(stage.actions):
            sigma, after = stage.sigmas[step : step + 2]
            said = f"stage {index + 1}, step {done + 1}: {action}, {tokens} tokens, "
            bars.append(
                tag(
                    "rect",
                    tag("title", f"{said}sigma {sigma:.4f} to {after:.4f}"),
                    x=f"{x(done) + 0.5:.1f}",
                    y=f"{top:.1f}",
                    width=f"{x(1) - x(0) - 1:.1f}",
                    height=f"{y(0) - top:.1f}",
                    fill=colour,
                    fill_opacity=0.3 if action == "full" else 0.08,
                    stroke=colour,
                )
            )
            done += 1
        places = range(done - stage.steps, done + 1)
        line = " ".join(
            f"{x(at):.1f},{y(s):.1f}" for at, s in zip(places, stage.sigmas, strict=True)
        )
        lines.append(tag("polyline", points=Html(line), fill="none", stroke=colour, stroke_width=2))
    grid = [
        *(_level(y(tick), f"{tick:g}") for tick in (0, 0.25, 0.5, 0.75, 1)),
        *(_upright(x(tick), str(tick)) for tick in _whole_ticks(plan.nfe)),
        *_names("steps; bars: tokens, pale where a cache answers", "sigma"),
    ]
    label = f"noise level and tokens of {plan.nfe} steps in {len(plan.stages)} stages"
    return _box(_WIDTH, _HEIGHT, *grid, *bars, *lines, label=label)


def _whole_ticks(most: int) -> range:
    return range(0, most + 1, max(1, math.ceil(most / 10)))


# --- a request's time ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A stretch of :func:`timeline`: what a request spends at one place."""

    seconds: float
    stage: int | None
    part: str
    title: str


def part_colour(part: str) -> str:
    """The colour of a part of a request, wherever it is drawn."""
    return COLOURS.get(part, INK)


def timeline(bars: Sequence[Bar]) -> Html:
    """Places one after the other, as wide as they take long; above them the stages."""
    whole = sum(bar.seconds for bar in bars) or 1.0
    width, edge = 2 * _WIDTH, 8
    x = _between(0, whole, edge, width - edge)
    parts: list[Html] = []
    at = 0.0
    for bar in bars:
        end = at + bar.seconds
        place = {"x": f"{x(at):.2f}", "width": f"{x(end) - x(at):.2f}"}
        stage = INK if bar.stage is None else stage_colour(bar.stage - 1)
        opacity = 0.15 if bar.stage is None else 1
        shown = tag("title", bar.title)
        parts += [
            tag("rect", **place, y=8, height=14, fill=stage, fill_opacity=opacity),
            tag("rect", shown, **place, y=26, height=40, fill=part_colour(bar.part)),
        ]
        at = end
    ticks, unit = _times(whole)
    for tick in ticks:
        parts.append(
            tag("text", f"{tick / unit[1]:g}", x=f"{x(tick):.1f}", y=82, fill=INK, **_MIDDLE)
        )
    name = f"{unit[0]}; above: the stages"
    parts.append(tag("text", name, x=width / 2, y=98, fill=INK, **_MIDDLE))
    return _box(width, 104, *parts, label=f"where {1e3 * whole:.4g} ms of a request go")


_UNITS = (("seconds", 1.0), ("milliseconds", 1e-3), ("microseconds", 1e-6))
_MIDDLE = {"text_anchor": "middle"}


def _times(whole: float) -> tuple[list[float], tuple[str, float]]:
    """Round times up to the whole, and the unit that they are given in."""
    unit = next((each for each in _UNITS if whole >= each[1]), _UNITS[-1])
    step = _step(whole / 10)
    return [step * n for n in range(math.floor(whole / step) + 1)], unit


# --- axes -------------------------------------------------------------------------------------


def _between(low: float, high: float, first: float, last: float) -> Scale:
    extent = (high - low) or 1.0
    return lambda value: first + (value - low) / extent * (last - first)


def _logarithmic(low: float, high: float) -> Scale:
    scale = _between(math.log(low), math.log(high), _LEFT, _WIDTH - _RIGHT)
    return lambda value: scale(math.log(value))


def _linear(values: Sequence[float]) -> tuple[Scale, list[float]]:
    """A scale with some room around the values, and round numbers on it."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or max(abs(high), 1.0) * 0.08
    low, high = low - room, high + room
    step = _step((high - low) / 5)
    first = math.ceil(low / step)
    ticks = [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]
    return _between(low, high, _HEIGHT - _BOTTOM, _TOP), ticks


def _step(rough: float) -> float:
    """A round number that is not smaller."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in (1, 2, 5, 10, 20) if power * each >= rough)


def _upright(at: float, name: str) -> Html:
    low = _HEIGHT - _BOTTOM
    place = f"{at:.1f}"
    line = tag("line", x1=place, x2=place, y1=_TOP, y2=low, stroke=GRID)
    return join((line, tag("text", name, x=place, y=low + 14, fill=INK, text_anchor="middle")))


def _level(at: float, name: str) -> Html:
    place = f"{at:.1f}"
    line = tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place, stroke=GRID)
    name_of = tag("text", name, x=_LEFT - 6, y=f"{at + 4:.1f}", fill=INK, text_anchor="end")
    return join((line, name_of))


def _names(across: str, up: str) -> Iterator[Html]:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield tag("text", across, x=middle, y=_HEIGHT - 8, fill=INK, text_anchor="middle")
    high = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f"rotate(-90 12 {high})"
    yield tag("text", up, x=12, y=high, fill=INK, text_anchor="middle", transform=turned)


def _box(width: float, height: float, *parts: object, label: str | None = None) -> Html:
    role = "presentation" if label is None else "img"
    view = f"0 0 {width:g} {height:g}"
    return tag("svg", *parts, viewBox=view, role=role, aria_label=label)
