"""`fresco-trt profile`: where the time of requests goes, on the host or by Nsight Systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fresco_trt.cli import display, profile_tables
from fresco_trt.cli.options import Json, Seed, Trusted, VerifyKey
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.profile.options import OUT, PROMPT, REQUESTS, STEPS, WARM_UP, Options


def profile(
    engines: Annotated[
        Path | None,
        typer.Option("--engines", help="Draw with this folder that 'fresco-trt build' wrote."),
    ] = None,
    from_nsys: Annotated[
        Path | None,
        typer.Option("--from-nsys", help="Or read this SQLite export of Nsight Systems."),
    ] = None,
    nsys: Annotated[
        bool, typer.Option("--nsys", help="Draw under Nsight Systems, and read its export.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for what is found.")] = OUT,
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw.")] = PROMPT,
    seed: Seed = 0,
    requests: Annotated[
        int, typer.Option("--requests", help=f"Requests to record, after {WARM_UP} that warm up.")
    ] = REQUESTS,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="steps: every step has a time. stages: as a GPU replays them, each in one launch.",
        ),
    ] = STEPS,
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Show where the time of a request goes, by stage, step and part, and outside of engines."""
    from fresco_trt.profile.files import check_folder, store
    from fresco_trt.profile.job import run
    from fresco_trt.profile.nsight import read_export
    from fresco_trt.profile.nsys import record

    options = Options(
        engines=engines or Path(),
        prompt=prompt,
        seed=seed,
        requests=requests,
        by=by,
        trust_native_code=trust,
        verify_key=verify_key,
    )
    check_source(engines, from_nsys, nsys, options)
    check_folder(out)
    with display.progress() as report:
        if nsys:
            from_nsys = record(options, out)
        found = run(options, report) if from_nsys is None else read_export(from_nsys, report)
        document = store(found, out)
    display.show(document, as_json, profile_tables.profile_tables)


def check_source(
    engines: Path | None, from_nsys: Path | None, nsys: bool, options: Options
) -> None:
    """Raise IncompatibleOptions unless there is one thing to profile, and every option says
    something of it.
    """
    if engines is not None and from_nsys is None:
        return
    if engines is None and from_nsys is not None and not nsys:
        if options != Options(engines=options.engines):
            raise IncompatibleOptions(
                "an export beside options of requests that are drawn",
                expected="--from-nsys with --out and --json alone",
                fix="leave the others out: what an export holds is drawn already",
            )
        return
    given = [
        name
        for name, value in (("--engines", engines), ("--from-nsys", from_nsys), ("--nsys", nsys))
        if value
    ]
    raise IncompatibleOptions(
        f"a profile of {' and '.join(given) or 'nothing'}",
        expected="--engines, with --nsys or without, or --from-nsys alone",
        fix="pass --engines with a folder that 'fresco-trt build' wrote",
    )
