"""What `python -m bench.gpu` can be asked for, and what it shows and stores."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.gpu import BEGAN
from bench.gpu.engines import LIBRARIES, subject_of
from bench.gpu.job import MINUTES, measure
from bench.gpu.report import show
from bench.gpu.rounds import MOST_ROUNDS
from fresco_trt.errors import BackendUnavailable, FrescoError, IncompatibleOptions

if TYPE_CHECKING:
    from bench.gpu.engines import Subject

RESULTS = Path("bench/results"), Path("bench-out")
"""Where results go, and where those of a dry run."""


def main(
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A dry run at tiny dimensions, on any machine.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="Time for the whole run.")] = MINUTES,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds at most.")] = MOST_ROUNDS,
    layers: Annotated[
        str | None,
        typer.Option(help="Depth as DOUBLE,SINGLE blocks, for a card too small for all of them."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of our engines: fp8, or that of the plain pipeline, bf16 (CPU: fp32)."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help=f"Engine library of our plans: {' or '.join(LIBRARIES)}.")
    ] = "inductor",
    work: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps engines for another run."),
    ] = None,
    pieces: Annotated[
        Path | None,
        typer.Option(
            help="Archive (.tar.gz) of compiled pieces, used if it is there; written anew."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File.", show_default="gpu.json, gpu-fp8.json or gpu-tiny.json"),
    ] = None,
) -> None:
    """Measure time and memory on this machine's GPU and store the figures."""
    try:
        subject = subject_of(_device(tiny), tiny=tiny, layers=_layers(layers), precision=precision)
        _check_pieces(pieces, backend)
        out = out or _result(subject, tiny)
        with tempfile.TemporaryDirectory(prefix="fresco-trt-gpu-") as temporary:
            document = measure(
                subject,
                library=backend,
                work=_folder(work, subject, Path(temporary)),
                out=out,
                dry_run=tiny,
                minutes=minutes,
                rounds=rounds,
                pieces=pieces,
                began=BEGAN,
            )
    except FrescoError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    show(document)
    print(f"stored {out}")
    if document["failed"]:
        raise typer.Exit(1)


def _result(subject: Subject, tiny: bool) -> Path:
    parts = [
        "gpu",
        *(["tiny"] if tiny else []),
        *([] if subject.recipe is None else [subject.recipe]),
    ]
    return RESULTS[tiny] / f"{'-'.join(parts)}.json"


def _check_pieces(pieces: Path | None, backend: str) -> None:
    if pieces is not None and backend != "inductor":
        raise IncompatibleOptions(
            f"--pieces {pieces} with --backend {backend}",
            expected="a library that compiles pieces: inductor",
            fix="leave --pieces out",
        )


def _device(tiny: bool) -> str:
    from fresco_trt.backends.transformer import torch_device

    device = torch_device()
    if device == "cpu" and not tiny:
        raise BackendUnavailable(
            "no NVIDIA GPU that torch finds",
            expected="one, with its driver and a CUDA build of torch",
            fix="use a machine with one, or pass --tiny to try the benchmark out",
        )
    return device


def _layers(asked: str | None) -> tuple[int, int] | None:
    if asked is None:
        return None
    try:
        double, single = (int(part) for part in asked.split(","))
    except ValueError:
        raise IncompatibleOptions(
            f"--layers {asked}",
            expected="two whole numbers, double-stream and single-stream blocks",
            fix="pass for example --layers 4,8",
        ) from None
    return double, single


def _folder(work: Path | None, subject: Subject, temporary: Path) -> Path:
    """Where engines go: below ``work`` each subject has its own folder."""
    if work is None:
        return temporary
    facts = subject.facts
    depth = f"{facts.double_blocks}-{facts.single_blocks}"
    folder = work / f"{facts.name}-{depth}-{subject.rest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
