"""The HTTP interface: paths, and what each of them answers.

Every error has OpenAI's form and goes through one place, which counts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic, time
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from fresco_trt import __version__
from fresco_trt.serve import openapi, replies
from fresco_trt.serve.body import (
    Generation,
    Wanted,
    check_kind,
    edit_of,
    malformed,
    wanted_of,
)
from fresco_trt.serve.drawing import DrawingQueue, Drawn, Preview, QueueMaker
from fresco_trt.serve.guard import Guard
from fresco_trt.serve.metrics import ServerMeters
from fresco_trt.serve.multipart import form_of
from fresco_trt.serve.openapi import STATUS, Model, Models, Status
from fresco_trt.serve.page import PAGE_HEADERS, page
from fresco_trt.serve.pictures import Encoded, KeptPictures, encoded
from fresco_trt.serve.refusal import Refusal, invalid, refusal_of
from fresco_trt.serve.sources import SourceReader, sent_of
from fresco_trt.serve.waiting import Waiting

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from fresco_trt.pipelines.several import FrescoPipelines
    from fresco_trt.serve.limits import Limits

_STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


@dataclass(kw_only=True, eq=False)
class Service:
    """What the paths share: bundles, the queue, limits, keys, and what is counted and kept."""

    pipelines: FrescoPipelines
    limits: Limits
    keys: tuple[bytes, ...] = ()
    warm: Callable[[Exception | None], None] = lambda error: None
    """Called by the drawing thread when the engines are warm, or could not be."""
    queue_of: QueueMaker = DrawingQueue
    """What makes the queue, of the pipelines, the meters and how many may wait."""
    meters: ServerMeters = field(default_factory=ServerMeters)
    created: int = field(default_factory=lambda: int(time()))

    def __post_init__(self) -> None:
        self.queue = self.queue_of(self.pipelines, self.meters, waiting=self.limits.queue)
        self.meters.watch(self.queue)
        self.sources = SourceReader(self.limits.queue)
        self.kept = KeptPictures(
            most_bytes=self.limits.kept_bytes, seconds=self.limits.kept_seconds
        )


def app_of(service: Service) -> ASGIApp:
    """The application of a service; its lifespan is that of the drawing thread."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.queue.start(service.warm)
        yield
        await asyncio.to_thread(service.queue.close, 30.0)

    # Its own pages of documentation would fetch scripts from elsewhere.
    app = FastAPI(
        title="fresco-trt",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to wherever the client says that it is
    )
    openapi.describe(app)
    _errors(app, service)
    _probes(app, service)
    _models(app, service)
    _images(app, service)
    return Guard(app, keys=service.keys, limits=service.limits, refused=service.meters.refused)


# --- paths ------------------------------------------------------------------------------------


def _probes(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return Response(page(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    @app.get("/health", response_model=Status)
    async def health() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready", response_model=Status, responses=STATUS)
    async def ready() -> Response:
        """Whether it draws: 503 until every bundle is loaded and warm."""
        state = service.queue.state
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4")


def _models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=Models, responses=openapi.errors(401))
    async def models() -> Response:
        """What is built."""
        return JSONResponse(replies.models_reply(service.pipelines, service.created))

    @app.get("/v1/models/{name}", response_model=Model, responses=openapi.errors(401, 404))
    async def model(name: str) -> Response:
        """One model."""
        buckets = service.pipelines.buckets
        if name not in {bucket.model for bucket in buckets}:
            raise Refusal(404, "model_not_found", "no such model here", param="model")
        return JSONResponse(replies.model_reply(name, buckets, service.created))


def _images(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images/generations", responses=openapi.images("generation"))
    async def generations(asked: Generation, request: Request) -> Response:
        """Draw a picture, or several, from a prompt."""
        began = monotonic()
        wanted = wanted_of(asked, service.pipelines, service.limits)
        if asked.stream:
            return await _streamed(service, request, wanted, began)
        return await _answered(service, request, wanted, began)

    @app.post("/v1/images/edits", responses=openapi.images("edit"))
    async def edits(request: Request) -> Response:
        """Draw a picture, or several, from another one and a prompt that says what to change."""
        began = monotonic()
        check_kind(True, service.pipelines)
        form = form_of(request.headers.get("content-type", ""), await request.body())
        asked, sent = edit_of(form.fields), sent_of(form.pictures)
        wanted = wanted_of(asked, service.pipelines, service.limits)
        wanted = await service.sources.read(wanted, sent)
        if asked.stream:
            return await _streamed(service, request, wanted, began)
        return await _answered(service, request, wanted, began)

    @app.get("/pictures/{name}", include_in_schema=False)
    async def picture(name: str) -> Response:
        kept = service.kept.get(name)
        if kept is None:
            raise Refusal(404, "picture_not_found", "no such picture, or no more")
        headers = {"cache-control": "private", "x-content-type-options": "nosniff"}
        return Response(kept.data, media_type=kept.media_type, headers=headers)


# --- pictures ---------------------------------------------------------------------------------


async def _answered(service: Service, request: Request, wanted: Wanted, began: float) -> Response:
    drawn: list[Drawn] = []
    data: list[dict[str, str]] = []
    async with Waiting(service.queue, request, wanted, service.limits.deadline) as waiting:
        for _ in wanted.seeds:
            drawn.append(await waiting.drawn())
            picture = await _encoded(wanted, drawn[-1])
            if wanted.by_url:
                url = request.url_for("picture", name=service.kept.keep(picture))
                data.append({"url": str(url)})
            else:
                data.append({"b64_json": picture.b64})
    service.meters.answered(wanted.bucket.model, monotonic() - began)
    reply = replies.images_reply(wanted, drawn, data, wanted.tokens)
    return JSONResponse(reply, headers=_place(waiting))


async def _streamed(service: Service, request: Request, wanted: Wanted, began: float) -> Response:
    """A stream begins with its first event, so that what fails before has a status of its own."""
    waiting = Waiting(service.queue, request, wanted, service.limits.deadline)
    waiting.begin()
    try:
        first = await waiting.next()
    except BaseException:
        waiting.close()
        raise
    events = _events(service, waiting, wanted, first, began)
    headers = _STREAM_HEADERS | _place(waiting)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def _place(waiting: Waiting) -> dict[str, str]:
    """The place in the queue that a request came to: 1 where it was drawn at once."""
    return {"x-queue-position": str(waiting.place)}


async def _events(
    service: Service, waiting: Waiting, wanted: Wanted, event: Preview | Drawn, began: float
) -> AsyncIterator[bytes]:
    try:
        while isinstance(event, Preview):
            yield replies.partial_event(wanted, event, await _encoded(wanted, event), wanted.stages)
            event = await waiting.next()
        picture = await _encoded(wanted, event)
        service.meters.answered(wanted.bucket.model, monotonic() - began)
        yield replies.completed_event(wanted, event, picture, wanted.tokens)
    except Exception as error:
        refusal = refusal_of(error)
        service.meters.refused(refusal.code)
        yield replies.event_bytes("error", refusal.body)
    finally:
        waiting.close()


async def _encoded(wanted: Wanted, event: Preview | Drawn) -> Encoded:
    """Beside the event loop and the drawing thread: both have others to serve."""
    return await asyncio.to_thread(encoded, event.image, wanted.format, wanted.compression)


# --- errors -----------------------------------------------------------------------------------


def _errors(app: FastAPI, service: Service) -> None:
    def answer(refusal: Refusal, more: Mapping[str, str] | None = None) -> Response:
        service.meters.refused(refusal.code)
        headers = {**refusal.headers, **(more or {})}
        return JSONResponse(refusal.body, status_code=refusal.status, headers=headers)

    async def foreseen(request: Request, error: Exception) -> Response:
        return answer(refusal_of(error))

    async def malformed(request: Request, error: Exception) -> Response:
        return answer(_malformed(error))

    async def by_status(request: Request, error: Exception) -> Response:
        status, headers = 500, None
        if isinstance(error, HTTPException):
            status, headers = error.status_code, error.headers
        codes = {404: "not_found", 405: "method_not_allowed"}
        return answer(Refusal(status, codes.get(status, "invalid_request"), str(error)), headers)

    app.add_exception_handler(Refusal, foreseen)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, by_status)
    app.add_exception_handler(Exception, foreseen)


def _malformed(error: Exception) -> Refusal:
    """What is wrong with a body of JSON, or of no form at all."""
    found = list(error.errors()) if isinstance(error, RequestValidationError) else []
    if not found or any(each["loc"][:1] != ("body",) for each in found):
        return invalid("the request is malformed", None)
    inside = [{**each, "loc": each["loc"][1:]} for each in found]
    return malformed(inside, Generation.model_fields)
