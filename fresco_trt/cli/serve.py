"""`fresco-trt serve`: prebuilt bundles behind OpenAI's images interface."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.cli import display
from fresco_trt.cli.options import Json, Trusted, VerifyKey
from fresco_trt.errors import BackendUnavailable
from fresco_trt.plan.sizes import format_size
from fresco_trt.serve.limits import (
    BODY_BYTES,
    LONGEST_PROMPT,
    MOST_IMAGES,
    MOST_WAITING,
    PATIENCE,
    SOURCE_BYTES,
    Limits,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.bundle import Bundle
    from fresco_trt.pipelines.several import WarmUp

NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def serve(
    engines: Annotated[
        list[Path],
        typer.Option(
            "--engines", help="Folder that 'fresco-trt build' wrote; may be given several times."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File of the keys that are let in, one a line.", show_default="anyone"),
    ] = None,
    queue: Annotated[
        int, typer.Option(help="Requests that wait at most; others get 429.")
    ] = MOST_WAITING,
    deadline: Annotated[
        float, typer.Option(help="Seconds that a request may take, its wait included.")
    ] = PATIENCE,
    drain: Annotated[
        float, typer.Option(help="Seconds to answer accepted requests in after a SIGTERM.")
    ] = PATIENCE,
    max_images: Annotated[int, typer.Option(help="Pictures a request, n.")] = MOST_IMAGES,
    max_prompt: Annotated[int, typer.Option(help="Characters a prompt.")] = LONGEST_PROMPT,
    max_body: Annotated[int, typer.Option(help="Bytes of a request's body.")] = BODY_BYTES,
    max_source: Annotated[
        int, typer.Option(help="Bytes of an edit's body, its picture among them.")
    ] = SOURCE_BYTES,
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Serve bundles over HTTP: OpenAI's images interface, metrics, and a page to try them."""
    _require_extra()
    limits = Limits(
        queue=queue,
        deadline=deadline,
        drain=drain,
        images=max_images,
        prompt=max_prompt,
        body=max_body,
        source=max_source,
    )
    from fresco_trt.pipelines.loading import opened, trust_of
    from fresco_trt.pipelines.several import FrescoPipelines
    from fresco_trt.serve.guard import read_keys
    from fresco_trt.serve.server import Server, is_local, listen, url_of

    keys = read_keys(api_key_file)
    trusted = trust_of(trust, verify_key)

    def read() -> list[Bundle]:
        return [opened(folder, trusted) for folder in engines]

    pipelines = FrescoPipelines(read(), trusted)
    with listen(host, port) as listening:
        url = url_of(listening)

        def warm(costs: Sequence[WarmUp]) -> None:
            with suppress(OSError):  # nobody reads; the server is there all the same
                display.show(_ready(url, costs), as_json, _in_words)
                sys.stdout.flush()  # what waits for this line reads a pipe

        server = Server(
            pipelines,
            listening,
            limits,
            keys=keys,
            warm=warm,
            reload=lambda: pipelines.replace_with(read()),
            reloaded=_reloaded,
        )
        display.note(f"listening on {url}, loading")
        if not keys and not is_local(listening):
            display.note("without --api-key-file, anyone who reaches this address can draw")
        with suppress(KeyboardInterrupt):  # a signal, raised again when all is answered
            server.run()
    display.note("stopped")


def _require_extra() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f"no Python package {', '.join(missing)}",
            expected="what the server runs on, which comes with the extra 'serve'",
            fix="pip install 'fresco-trt[serve]'",
        )


def _ready(url: str, costs: Sequence[WarmUp]) -> dict[str, Any]:
    return {
        "url": url,
        "seconds": sum(cost.total for cost in costs),
        "bundles": [_cost(cost) for cost in costs],
    }


def _cost(cost: WarmUp) -> dict[str, Any]:
    """As JSON: a bundle, what it took, and what of it each stage did."""
    bundle = asdict(cost)
    stages = [{**stage.pop("load"), **stage} for stage in bundle.pop("stages")]
    return {**bundle.pop("bucket"), **bundle, "stages": stages}


def _in_words(ready: dict[str, Any]) -> None:
    for each in ready["bundles"]:
        size, preset = format_size(each["size"]), each["preset"] or "a plan of its own"
        took = f"loaded in {each['load']:.2f} s, first picture in {each['first']:.2f} s"
        display.say(f"{each['model']} {size}, {preset}: {took}{_memory(each)}")
        for stage in each["stages"]:
            drawn = "" if stage["first"] is None else f", drawn in {stage['first']:.2f} s"
            took = f"loaded in {stage['seconds']:.2f} s{_memory(stage)}"
            display.say(f"  stage {stage['stage']}: {took}{drawn}")
    display.say(f"ready: {ready['url']}")


def _memory(cost: dict[str, Any]) -> str:
    """What is held since, of what somebody counts."""
    counted = ((cost["host_bytes"], "in memory"), (cost["device_bytes"], "on the GPU"))
    return "".join(f", {count / 1e6:.0f} MB {where}" for count, where in counted if count)


def _reloaded(outcome: Sequence[WarmUp] | Exception) -> None:
    """Said beside what was asked for: of `--json` there is one object."""
    with suppress(OSError):
        if isinstance(outcome, Exception):
            display.note(f"read again, and nothing is changed: {outcome}")
        elif not outcome:
            display.note("read again: no bundle is another one")
        for cost in () if isinstance(outcome, Exception) else outcome:
            display.note(f"in service: {cost.bucket}, warm in {cost.total:.2f} s")
