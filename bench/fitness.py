"""Is the demo model fit to judge acceleration methods? Two questions, answered with figures.

(a) Does the plain pipeline at 50 steps draw what captions say (prompt score at least 0.80)?
(b) Are few plain steps worse than 50, even at the best time shift? If not, nothing can beat simply
    taking fewer steps on this model, and it is no yardstick.

    python -m bench.fitness --scenes 200 --out bench/results/demo-fitness.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.bench.plain import Plain, draw, judged_scenes, load_pipeline
from fresco_trt.bench.record import circumstances, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from fresco_trt.bench.scenes.judge import Judge, Verdict
    from fresco_trt.bench.scenes.scene import Scene

FEW_STEPS = 7
SHIFTS = (None, 0.4, 0.8, 1.6, 2.2)
"""Log-shifts tried for the few-step control; None is the model's default."""


def measure(
    pipe: Any, judge: Judge, scenes: Sequence[Scene], point: Plain, batch: int
) -> dict[str, Any]:
    """Draw every scene at one operating point; verdicts and features of the pictures."""
    import torch

    from fresco_trt.bench.scenes.judge import verdicts

    found: list[Verdict] = []
    features: list[torch.Tensor] = []
    for first in range(0, len(scenes), batch):
        part = scenes[first : first + batch]
        pictures, _ = draw(pipe, part, range(first, first + len(part)), point)
        found += verdicts(judge, pictures, part)
        with torch.no_grad():
            features.append(judge.pooled(pictures))
        print(
            f"{point.name}: {len(found)}/{len(scenes)}, {sum(v.right for v in found)} right",
            flush=True,
        )
    return {"point": point, "verdicts": found, "features": torch.cat(features)}


def row(measured: dict[str, Any], real: torch.Tensor) -> dict[str, Any]:
    """Scores of an operating point with 95% intervals, and its distance to real renders."""
    from fresco_trt.bench.quality import distance_interval, wilson_interval

    found: list[Verdict] = measured["verdicts"]
    total, right = len(found), sum(v.right for v in found)
    low, high = wilson_interval(right, total)
    distance, nearest, furthest = distance_interval(measured["features"], real)
    return {
        "name": measured["point"].name,
        "steps": measured["point"].steps,
        "mu": measured["point"].mu,
        "score": right / total,
        "score_low": low,
        "score_high": high,
        "objects": sum(v.objects for v in found) / total,
        "colour": sum(v.colour for v in found) / total,
        "pattern": sum(v.pattern for v in found) / total,
        "distance": distance,
        "distance_low": nearest,
        "distance_high": furthest,
    }


def main(
    scenes: Annotated[int, typer.Option(help="Scenes to draw at every operating point.")] = 200,
    batch: int = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda, where the pictures are drawn.")] = "cpu",
    weights: Annotated[
        Path | None, typer.Option(help="Pipeline folder.", show_default="the bundled one")
    ] = None,
    out: Path = Path("bench/results/demo-fitness.json"),
) -> None:
    """Answer both questions and store the figures."""
    import torch

    from fresco_trt.bench.scenes.judge import held_out_accuracy, load_judge
    from fresco_trt.bench.scenes.pictures import pictures_of

    judge, pipe, chosen = load_judge(), load_pipeline(weights, device), judged_scenes(scenes)
    fresh = judged_scenes(1000, seed=77)
    with torch.no_grad():
        parts = [judge.pooled(pictures_of(fresh[i : i + 50], 256)) for i in range(0, 1000, 50)]
    real = torch.cat(parts)
    points = [Plain(steps=50), *(Plain(steps=FEW_STEPS, mu=mu) for mu in SHIFTS)]
    rows = [row(measure(pipe, judge, chosen, point, batch), real) for point in points]
    best = min(rows[1:], key=lambda r: (-r["score"], r["distance"]))
    document = {
        **circumstances(),
        "scenes": scenes,
        "judge_accuracy": held_out_accuracy(judge, 1000),
        "rows": rows,
        "plain_score_reached": rows[0]["score"] >= 0.80,
        "few_steps_worse": best["score_high"] < rows[0]["score_low"]
        or best["distance_low"] > rows[0]["distance_high"],
        "best_few_step": best["name"],
    }
    store(document, out)
    print(f"stored {out}")


if __name__ == "__main__":
    typer.run(main)
