"""Does an editing model edit? Whether edits are made, and the rest of the picture left alone.

    python -m bench.edit_fitness --engines DIR --scenes 100 --out bench/results/edit-fitness.json

One row for each bundle, all with the same edits and seeds. Two rows stand beside them: the sources
unedited, and true targets through the codec, which no edit of these engines can be better than.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from fresco_trt.bench.record import circumstances, store
from fresco_trt.bench.scenes.edits import KINDS, Edit
from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fresco_trt.bench.scenes.edit_judge import EditVerdict
    from fresco_trt.bench.scenes.judge import Judge
    from fresco_trt.pipelines.image import FrescoPipeline

    Pixels = npt.NDArray[np.uint8]
    Draw: TypeAlias = Callable[[Edit, int], Pixels]


def row(name: str, edits: Sequence[Edit], found: Sequence[EditVerdict]) -> dict[str, Any]:
    """The score of one way to edit, with 95% intervals, and the share made of each kind."""
    from fresco_trt.bench.scenes.edit_judge import edit_score

    score, ends = edit_score(found), ("", "_low", "_high")
    made: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for edit, verdict in zip(edits, found, strict=True):
        made[edit.kind].append(verdict.made)
    return {
        "name": name,
        **{f"score{end}": value for end, value in zip(ends, score.made, strict=True)},
        **{f"outside{end}": value for end, value in zip(ends, score.outside, strict=True)},
        **{kind: sum(right) / len(right) for kind, right in made.items() if right},
    }


def judged(judge: Judge, edits: Sequence[Edit], draw: Draw) -> list[EditVerdict]:
    """Verdicts on what ``draw`` makes of each edit, called with its place as the seed."""
    from fresco_trt.bench.scenes.edit_judge import edit_verdicts
    from fresco_trt.bench.scenes.pictures import scaled

    return [
        verdict
        for seed, edit in enumerate(edits)
        for verdict in edit_verdicts(judge, scaled(draw(edit, seed)[None]), [edit])
    ]


def edited(pipe: FrescoPipeline) -> Draw:
    """What a pipeline makes of an edit's source."""
    import numpy as np
    from PIL import Image

    from fresco_trt.bench.scenes.render import render

    def draw(edit: Edit, seed: int) -> Pixels:
        source = Image.fromarray(render(edit.source, *pipe.plan.size[:2]))
        return np.asarray(pipe(edit.instruction, image=source, seed=seed).images[0])

    return draw


def bounds(pipe: FrescoPipeline) -> dict[str, Draw]:
    """The worst and the best that an edit may be: nothing done, and all of it."""
    from fresco_trt.bench.scenes.render import render
    from fresco_trt.models.registry import family_named, model_facts

    size = pipe.plan.size[:2]
    components = family_named(model_facts(pipe.plan.model).family).components
    encode = components.encoder(pipe.bundle.pipeline_folder)
    decode = components.decoder(pipe.bundle.pipeline_folder)

    def coded(edit: Edit, seed: int) -> Pixels:
        pixels: Pixels = decode(encode(render(edit.target, *size)[None].copy()))[0]
        return pixels

    return {
        "unedited": lambda edit, seed: render(edit.source, *size),
        "true targets through the codec": coded,
    }


def main(
    engines: Annotated[list[Path], typer.Option(help="Bundles of a model that edits.")],
    scenes: Annotated[int, typer.Option(min=1, help="Edits that each bundle makes.")] = 100,
    out: Path = Path("bench/results/edit-fitness.json"),
) -> None:
    """Edit with every bundle and store the scores."""
    import fresco_trt
    from fresco_trt.bench.scenes.edit_judge import judged_edits
    from fresco_trt.bench.scenes.judge import load_judge
    from fresco_trt.models.registry import model_facts

    judge, edits = load_judge(), judged_edits(scenes)
    rows: list[dict[str, Any]] = []
    for folder in engines:
        with fresco_trt.FrescoPipeline.from_bundle(folder) as pipe:
            if not model_facts(pipe.plan.model).references:
                raise IncompatibleOptions(
                    f"--engines {folder} of {pipe.plan.model}",
                    expected="engines of a model that edits",
                    fix="build some of one, such as flux-kontext",
                )
            ways = {folder.name: edited(pipe)}
            if not rows:
                ways = bounds(pipe) | ways
            for name, draw in ways.items():
                rows.append(row(name, edits, judged(judge, edits, draw)))
                print(f"{name}: {rows[-1]['score']:.2f} made", flush=True)
            rows[-1] |= {"model": pipe.plan.model, "size": list(pipe.plan.size)}
            rows[-1] |= {"preset": pipe.plan.preset, "nfe": pipe.plan.nfe}
    store({**circumstances(), "scenes": scenes, "rows": rows}, out)
    print(f"stored {out}")


if __name__ == "__main__":
    typer.run(main)
