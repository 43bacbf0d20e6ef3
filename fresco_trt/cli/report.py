"""`fresco-trt report`: one HTML page about a bundle, to be sent or kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fresco_trt.cli import display
from fresco_trt.cli.options import Engines, Json, Trusted, VerifyKey


def report(
    engines: Engines,
    bench: Annotated[
        Path | None, typer.Option(help="A result of 'fresco-trt bench', JSON.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A profile.json of 'fresco-trt profile'.")
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option("--picture", help="A PNG, JPEG or WebP to show; may be given several times."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="What to draw for the page; may be given several times."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the drawn pictures.", show_default="0")
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Make one HTML page of a bundle: plan, engines, pictures and measurements."""
    from fresco_trt.pipelines.loading import trust_of
    from fresco_trt.report import ReportRequest, make_report

    request = ReportRequest(
        engines=engines,
        out=out,
        bench=bench,
        profile=profile,
        pictures=tuple(picture or ()),
        prompts=tuple(prompt or ()),
        seed=seed,
        trust=trust_of(trust, verify_key),
    )
    with display.progress() as told:
        summary = make_report(request, told)
    display.show(summary, as_json, _say)


def _say(summary: dict[str, Any]) -> None:
    sections = ", ".join(summary["sections"])
    display.say(f"{summary['report']}: {summary['bytes'] / 1e3:.0f} kB, {sections}")
