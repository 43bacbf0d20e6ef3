"""The demo's presets and its best plans at every speed: `fresco-trt tune` at each, on one set of
engines and pictures.

    python -m bench.presets            stores bench/results/flux-tiny-tuned.json; hours
    python -m bench.presets --show     the stored presets as the facts spell them

A picture is judged as the bench judges it: by its closeness to the many steps, and by whether it
shows what its caption says. Scenes are none of the bench's, so that what was chosen on some is
measured on others. At each speed the best of all is stored, the best of each number of stages, and
the best of plain sampling with few steps. A killed run goes on where it was, and a run of some
speeds is gone on with by one of more.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.bench.plain import MODEL, judged_scenes
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.tune.contest import Contest
from fresco_trt.tune.cost import plan_seconds
from fresco_trt.tune.families import reference
from fresco_trt.tune.options import Options
from fresco_trt.tune.request import QUICK, Effort, resolve
from fresco_trt.tune.stored import beside_control, preset_from_json, row_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from PIL.Image import Image

    from fresco_trt.backends.base import Progress
    from fresco_trt.bench.scenes.scene import Scene
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.tune.halving import Standing

    Say = Callable[[str], None]

OUT = Path("bench/results") / f"{MODEL}-tuned.json"

SCENES_SEED = 4052
"""Where the tune's scenes come from; the bench's have another seed."""

NAMED: Mapping[str, float] = {"quality": 3.0, "balanced": 5.0, "fast": 8.0, "turbo": 12.0}
"""Speeds of the presets."""

SPEEDS = (3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 12.0, 16.0, 20.0, 25.0)
"""Speeds that are tuned, those of the presets among them."""

SHARED = Effort(
    rounds=((80, 1), (20, 4), (8, 10), (3, 24)), near=24, turns=5, sampled=120, beside=8
)
"""A third of what ``fresco-trt tune`` draws for its one speed: each of these has four contests."""

WEIGHT = 0.25
"""What a picture that shows all of its caption is worth more than one that does not, in SSIM. At 1
a few pictures on the verge, which the many steps draw wrong too, would decide alone.
"""


class DemoScorer:
    """How sure the demo's classifier is that a picture shows what its caption says, times
    :data:`WEIGHT`.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        from fresco_trt.bench.scenes.judge import load_judge

        self._judge = load_judge()
        self._scenes = {scene.caption: scene for scene in scenes}

    def __call__(self, picture: Image, prompt: str) -> float:
        import numpy as np

        from fresco_trt.bench.scenes.judge import confidences
        from fresco_trt.bench.scenes.pictures import scaled

        pixels = scaled(np.array(picture)[None])
        return WEIGHT * confidences(self._judge, pixels, [self._scenes[prompt]])[0]


def study(
    options: Options, speeds: Sequence[float], effort: Effort, progress: Progress, say: Say
) -> dict[str, Any]:
    """Tune at every speed and store what was found; the stored document."""
    from fresco_trt.bench.record import circumstances, store

    where = circumstances()
    request = resolve(options, effort, say)
    with ExitStack() as scope:
        contest = Contest.open(request, scope, progress, say)
        found = []
        for speed in speeds:
            say(f"{speed:g}x")
            found.append(_at(speed, contest))
        document = {
            **where,
            "model": options.model,
            "size": list(request.size),
            "backend": request.setup.backend.name,
            "metrics": list(request.judge.metrics),
            "prompts": len(set(request.setup.prompts)),
            "pictures": effort.rounds[-1][1],
            "reference": {
                "steps": request.facts.default_steps,
                "seconds": plan_seconds(reference(contest.ground), contest.seconds),
            },
            "step_seconds": contest.seconds,
            "speeds": found,
        }
        store(document, options.out)
        if set(SPEEDS) <= set(speeds):
            contest.state.complete()
    return document


def _at(speed: float, contest: Contest) -> dict[str, Any]:
    """The best at a speed, of all and of each number of stages."""
    field = contest.entrants_at(speed)
    gallery = contest.gallery(field)

    def row(standing: Standing) -> dict[str, Any]:
        found = row_of(standing, plan_seconds(standing.candidate.plan, contest.seconds) or 0.0)
        bounds = found.get("score_interval")
        found |= {"score": found["score"] / WEIGHT} if "score" in found else {}
        found |= {"score_interval": [each / WEIGHT for each in bounds]} if bounds else {}
        return found

    every = contest.hold(field, gallery, speed)
    judged = [each.candidate for each in every.everyone]
    found: dict[str, Any] = {
        "speed": speed,
        "reached": field.reached,
        "best": row(every.winner),
        "beside_control": beside_control(every.winner, every.control),
        "verdict": verdict(every),
        "control": None if every.control is None else row(every.control),
        "stages": {},
    }
    for count in sorted({len(each.plan.stages) for each in judged}):
        # A preset of one stage is plain sampling.
        own = [each for each in judged if len(each.plan.stages) == count]
        own = own if count > 1 else [each for each in own if each.is_control]
        if own:
            pool = replace(field, candidates=tuple(own))
            found["stages"][str(count)] = row(contest.hold(pool, gallery, speed).winner)
    return found


# --- reading what was found ---------------------------------------------------------------------


def tuned_presets(document: Mapping[str, Any]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """The presets that a stored tune chose: name, number of stages and the stored row."""
    by_speed = {each["speed"]: each for each in document["speeds"]}
    for name, speed in NAMED.items():
        for count, row in by_speed.get(speed, {"stages": {}})["stages"].items():
            yield name, int(count), row


def unlike(document: Mapping[str, Any], facts: ModelFacts) -> list[str]:
    """What a model ships that is not what a stored tune chose, a line each."""
    found = []
    for name, count, row in tuned_presets(document):
        shipped, chosen = facts.presets[name].get(count), preset_from_json(row["preset"])
        if shipped is None or plan_from_preset(facts, shipped) != plan_from_preset(facts, chosen):
            found.append(f"{name} of {count} stages: {shipped}, tuned {chosen}")
    return found


def tuned_table(document: Mapping[str, Any]) -> str:
    """The best plan at every speed beside plain sampling with few steps, as Markdown."""
    metrics = document["metrics"]
    lines = [
        f"| at least | the best | steps | speed | {' | '.join(metrics)} "
        f"| control: steps | {' | '.join(metrics)} | worth more, in pairs |",
        f"|--:|---|--:|--:|{'--:|' * (2 * len(metrics) + 1)}---|",
        *(_tuned_row(each, metrics) for each in document["speeds"]),
    ]
    told = f"{document['pictures']} pictures each, {document['prompts']} prompts."
    return "\n".join([*lines, "", told])


def _tuned_row(entry: Mapping[str, Any], metrics: Sequence[str]) -> str:
    best, control, beside = entry["best"], entry["control"], entry["beside_control"]
    more = "the control is the best" if beside is None else f"{beside['mean']:+.3f}"
    if beside is not None and beside["low"] is not None:
        more += f" ({beside['low']:+.3f} to {beside['high']:+.3f})"
    cells = [f"{entry['speed']:g}x", best["family"], f"{best['full_steps']} of {best['steps']}"]
    cells += [f"{best['speed']:.1f}", *(f"{best[name]:.3f}" for name in metrics)]
    if control is None:
        cells += ["none so fast", *("" for _ in metrics)]
    else:
        cells += [str(control["steps"]), *(f"{control[name]:.3f}" for name in metrics)]
    return f"| {' | '.join((*cells, more))} |"


# --- the command ------------------------------------------------------------------------------


def main(
    speeds: Annotated[
        str | None,
        typer.Option(
            help="Speeds to tune, with commas between them.",
            show_default=", ".join(map(str, SPEEDS)),
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer candidates on fewer pictures.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the stored presets alone.")] = False,
    out: Annotated[Path, typer.Option(help="File.")] = OUT,
) -> None:
    """Tune the demo at every speed, and store the best plans."""
    import json

    from fresco_trt.cli import display

    if show:
        for name, count, row in tuned_presets(json.loads(out.read_text(encoding="utf-8"))):
            print(f"{name}, {count}: {preset_from_json(row['preset'])}")
        return
    effort = QUICK if quick else SHARED
    scenes = judged_scenes(effort.pictures, SCENES_SEED)
    options = Options(model=MODEL, speed=2.0, out=out, scorer=DemoScorer(scenes))
    options.state.mkdir(parents=True, exist_ok=True)
    prompts = options.state / "prompts.txt"
    prompts.write_text("".join(f"{scene.caption}\n" for scene in scenes), encoding="utf-8")
    options = replace(options, prompts=prompts)
    asked = SPEEDS if speeds is None else [float(each) for each in speeds.split(",")]
    with display.progress() as report:
        document = study(options, asked, effort, report, display.note)
    for each in document["speeds"]:
        best = each["best"]
        print(f"{each['speed']:g}x: {best['name']} {best['speed']:.2f}x, {each['verdict']}")
    print(f"differs from what ships: {len(unlike(document, model_facts(MODEL)))}")
    print(f"stored {out}")


if __name__ == "__main__":
    typer.run(main)
