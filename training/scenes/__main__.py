"""Commands of the next demo's data."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated

import typer

from fresco_trt.errors import FrescoError
from training.scenes.captions import captioned
from training.scenes.drawings import StoredDrawings, fetch_archives, store_drawings
from training.scenes.objects import OBJECTS
from training.scenes.scene import APART, random_scene
from training.scenes.sheet import sheet_of
from training.scenes.speed import render_rates

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Stored = Annotated[Path, typer.Option("--drawings", help="File that the command drawings wrote.")]


@app.command()
def drawings(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("training-out/drawings.zip"),
    archives: Annotated[
        Path | None, typer.Option(help="Folder of the packages' archives; fetched where missing.")
    ] = None,
) -> None:
    """Fetch the drawings of every object in every style, once, into one file."""
    archives = archives or out.parent / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    fetch_archives(archives)
    store_drawings(archives, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def sheet(
    stored: Stored = Path("training-out/drawings.zip"),
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("training-out/scenes.png"),
    count: Annotated[int, typer.Option(min=1)] = 36,
    side: Annotated[int, typer.Option(min=16, help="Pixels a side of a picture.")] = 256,
    seed: int = 0,
    apart: Annotated[
        str | None, typer.Option(help=f"Scenes with pairs kept apart: {', '.join(APART)}.")
    ] = None,
) -> None:
    """Draw scenes with their captions on one sheet; those with pairs kept apart name everything."""
    if apart not in (None, *APART):
        raise typer.BadParameter(f"{apart}; expected one of {', '.join(APART)}")
    rng = random.Random(seed)
    detail = None if apart is None else 1.0
    scenes = [captioned(random_scene(rng, apart=apart), rng, detail=detail) for _ in range(count)]
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet_of(scenes, StoredDrawings(stored), side).save(out)
    print(out)


@app.command()
def speed(
    stored: Stored = Path("training-out/drawings.zip"),
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that draw; 0 measures a core's own time.")
    ] = 0,
    count: Annotated[int, typer.Option(min=1, help="Pictures in a batch.")] = 64,
    batches: Annotated[int, typer.Option(min=1, help="Batches of each size.")] = 4,
) -> None:
    """Draw pictures of each size, and say how many a second there are.

    A thousand small ones for each process, which read nearly all drawings, come first and do not
    count.
    """
    for side, rate in render_rates(StoredDrawings(stored), workers, count, batches):
        print(f"{side}x{side}: {rate:.0f} a second{'' if workers else ' of a core'}")


@app.command()
def judge(
    work: Annotated[
        Path, typer.Option(help="Folder of the checkpoint and of what is kept.")
    ] = Path("training-out/judge"),
    stored: Stored = Path("training-out/drawings.zip"),
    minutes: Annotated[float, typer.Option(help="Time budget, all resumed parts together.")] = 10,
    objects: Annotated[
        int, typer.Option(min=8, max=len(OBJECTS), help="Only so many objects, for a trial.")
    ] = len(OBJECTS),
    side: Annotated[int, typer.Option(help="Pixels a side of what it looks at.")] = 128,
    batch: Annotated[int, typer.Option(min=2)] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw scenes.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: int = 0,
) -> None:
    """Train the judge of facts; it goes on where it was killed, and is kept only if it is good."""
    from training.scenes.judge_training import JudgeOptions, train_judge

    if side < 32 or side % 16:
        raise typer.BadParameter(f"--side {side}; expected a multiple of 16 from 32 on")
    options = JudgeOptions(
        objects=objects,
        side=side,
        batch=batch,
        minutes=minutes,
        workers=workers,
        device=device,
        seed=seed,
    )
    train_judge(options, StoredDrawings(stored), work)


if __name__ == "__main__":
    try:
        app()
    except FrescoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
