"""Train the next demo model, in one command and within whatever minutes there are.

It can be killed at any time and run again: it goes on from its folder, which loses a minute at
most. Run once more with more minutes, it trains on.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fresco_trt.bench.record import circumstances
from fresco_trt.errors import FrescoError, IncompatibleOptions
from fresco_trt.files.atomic_file import store_json
from training.scenes.drawings import StoredDrawings

if TYPE_CHECKING:
    from training.demo.run import Options

# Torch is imported by the functions that need it: processes that draw import this file as well.

SCALE = {"cpu": 1, "cuda": 24}
"""How many times larger batches are than the shapes' own."""


def main(
    minutes: Annotated[float, typer.Option(help="Time budget, all resumed parts together.")] = 12,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = Path(
        "training-out/demo"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    drawings: Annotated[
        Path, typer.Option(help="File that `python -m training.scenes drawings` wrote.")
    ] = Path("training-out/drawings.zip"),
    store: Annotated[
        Path | None,
        typer.Option(help="Folder for the trained models, as the package has them."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that draw scenes; 0 draws between the steps.",
            show_default="0; with cuda, one for each core but one",
        ),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(min=1, help="Batches this many times larger.", show_default="1; cuda: 24"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, scenes and noise.")] = 0,
    samples: Annotated[
        bool,
        typer.Option(
            "--samples",
            help="Only measure how many samples a second are drawn and trained on, and write "
            "speed.json into --out.",
        ),
    ] = False,
) -> None:
    """Train the next demo model; with the minutes used up, only store what a checkpoint holds."""
    from training.demo.checkpoint import alone
    from training.demo.run import DemoRun, Options
    from training.demo.storing import MOST_BYTES, check_store, store_demo

    _check(minutes, device)
    cores = os.cpu_count() or 1
    options = Options(
        minutes=minutes,
        device=device,
        scale=scale or SCALE[device],
        workers=(max(1, cores - 1) if device == "cuda" else 0) if workers is None else workers,
        seed=seed,
    )
    scenes = StoredDrawings(drawings)
    if samples:
        _measure(options, scenes, out)
        return
    if store is not None:
        check_store(store)
    with alone(out):
        run = DemoRun(options, scenes, out, report=_say)
        run.train()
    _say(f"{out}: {json.dumps(dict(run.ledger.steps))} steps")
    if store is not None:
        for name, size in store_demo(run.teacher, run.student, run.vae, store).items():
            _say(f"{store / name}: {size / 1e6:.1f} MB of {MOST_BYTES[name] / 1e6:.0f}")


def _check(minutes: float, device: str) -> None:
    if not (math.isfinite(minutes) and minutes > 0):
        raise IncompatibleOptions(
            f"--minutes {minutes}", expected="a number above 0", fix="pass --minutes 12"
        )
    if device not in SCALE:
        raise IncompatibleOptions(
            f"--device {device}", expected=f"one of {', '.join(SCALE)}", fix="pass --device cuda"
        )
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise IncompatibleOptions(
            "--device cuda", expected="a GPU that torch sees", fix="pass --device cpu"
        )


def _measure(options: Options, scenes: StoredDrawings, out: Path) -> None:
    from training.demo.speed import measured

    rows = []
    for row in measured(options, scenes):
        rows.append(row)
        _say(", ".join(f"{name} {value}" for name, value in row.items()))
    store_json({**circumstances(), "rows": rows}, out / "speed.json")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        typer.run(main)
    except FrescoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
