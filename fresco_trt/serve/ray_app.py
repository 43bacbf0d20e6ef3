"""The server as a Ray Serve application: doors that answer HTTP, and replicas that draw.

A door is the HTTP application of :mod:`fresco_trt.serve.app`, with a queue whose engines are Ray
actors. A replica of the engines loads and warms the bundles before Ray sends it anything, and draws
one request at a time. In a Serve configuration the import path is ``fresco_trt.serve.ray_app:app``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fresco_trt.errors import BackendUnavailable, FrescoError, InvalidArgument
from fresco_trt.serve.drawing import DrawingQueue, Drawn, Event, Failed, Order
from fresco_trt.serve.limits import MOST_WAITING, PATIENCE, Limits
from fresco_trt.serve.remote import Begun, RemoteQueue

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.pipelines.result import Result
    from fresco_trt.pipelines.several import Bucket, FrescoPipelines, WarmUp

ENGINES, DOORS = "engines", "doors"
"""Names of the two deployments."""

_AT_A_REPLICA = 1000
"""Orders that may wait within a replica. Ray sends it one at a time; what was cancelled may still
be at its last step then.
"""


class RayArguments(BaseModel):
    """The ``args`` of a Serve configuration."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    engines: Annotated[list[str], Field(min_length=1)]
    """Bundle folders, the same on every node."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """That draw; the least, where there is a ``max_replicas``."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """Ray adds replicas up to these while requests wait, and ends them again."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """Of a replica; 0.5 puts two on one GPU, which both must fit into."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """Cores of a replica."""
    doors: Annotated[int, Field(ge=1)] = 1
    """Replicas that answer HTTP."""
    queue: Annotated[int, Field(ge=0)] = MOST_WAITING
    """Requests that wait at most, at each door; the next one is refused, 429."""
    deadline: Annotated[float, Field(gt=0)] = PATIENCE
    """Seconds from a request's arrival to its last picture."""
    api_key_file: str | None = None
    """File of the keys that are let in, one a line."""
    trust_native_code: bool = False
    verify_key: str | None = None
    """As of :meth:`fresco_trt.FrescoPipeline.from_bundle`."""


def app(args: dict[str, Any]) -> Any:
    """The application, for ``serve.run`` or a configuration; ``args`` as :class:`RayArguments`.

    Raises InvalidArgument for other arguments, BackendUnavailable without Ray.
    """
    from pydantic import ValidationError

    try:
        settings = RayArguments.model_validate(args)
        if settings.max_replicas is not None and settings.max_replicas < settings.replicas:
            raise InvalidArgument(
                f"max_replicas={settings.max_replicas} with replicas={settings.replicas}",
                expected="as many or more",
                fix="leave max_replicas out for a fixed number",
            )
        limits = Limits(queue=settings.queue, deadline=settings.deadline)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidArgument(
            f"the argument {'.'.join(map(str, first['loc'])) or 'args'}: {first['msg']}",
            expected=f"arguments among {', '.join(RayArguments.model_fields)}",
            fix="write them like engines=['engines/flux'], replicas=2, gpus=1",
        ) from error
    serve = _serve()
    engines = serve.deployment(
        Engines,
        name=ENGINES,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=settings.deadline,
        **_replicas(settings),
    )
    door = serve.deployment(
        serve.ingress(_builder(settings, limits))(),
        name=DOORS,
        num_replicas=settings.doors,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=limits.connections,
        graceful_shutdown_timeout_s=settings.deadline,
    )
    return door.bind(engines.bind(settings))


def _replicas(settings: RayArguments) -> dict[str, Any]:
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    scaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": 2,
    }
    return {"autoscaling_config": scaling}


def _serve() -> Any:
    if find_spec("ray") is None:
        raise BackendUnavailable(
            "no Python package ray",
            expected="Ray Serve, which comes with the extra 'ray'",
            fix="pip install 'fresco-trt[ray]'",
        )
    return import_module("ray.serve")


def _bundles(settings: RayArguments) -> FrescoPipelines:
    from fresco_trt.pipelines.several import FrescoPipelines

    return FrescoPipelines.from_bundles(
        *settings.engines,
        trust_native_code=settings.trust_native_code,
        verify_key=settings.verify_key,
    )


# --- a door -----------------------------------------------------------------------------------


def _builder(settings: RayArguments, limits: Limits) -> Any:
    """What Ray calls in each door for its ASGI application."""

    def build() -> Any:
        from fresco_trt.serve.app import Service, app_of
        from fresco_trt.serve.guard import read_keys

        keys = settings.api_key_file
        service = Service(
            pipelines=_bundles(settings),  # opened, to know what is built; nothing is loaded
            limits=limits,
            keys=read_keys(None if keys is None else Path(keys)),
            queue_of=lambda pipelines, meters, *, waiting: RemoteQueue(
                RayWorkers(), meters, waiting=waiting
            ),
        )
        return app_of(service)

    return build


class RayWorkers:
    """The engines of this door's application, through Ray's handle."""

    def __init__(self) -> None:
        serve = _serve()
        name = serve.get_replica_context().app_name
        self._handle = serve.get_deployment_handle(ENGINES, app_name=name)

    async def ready(self) -> tuple[WarmUp, ...]:
        """As :class:`~fresco_trt.serve.remote.Workers`."""
        costs: tuple[WarmUp, ...] = await self._handle.costs.remote()
        return costs

    async def draw(self, order: Order) -> AsyncIterator[Begun | Event]:
        """As :class:`~fresco_trt.serve.remote.Workers`."""
        asked = self._handle.options(stream=True).draw.remote(
            order.bucket,
            order.prompt,
            order.seeds,
            order.guidance,
            order.previews,
            order.source,
            order.mask,
        )
        try:
            async for event in asked:
                yield event
        finally:
            asked.cancel()

    def is_lost(self, error: Exception) -> bool:
        """As :class:`~fresco_trt.serve.remote.Workers`."""
        ray: Any = import_module("ray.exceptions")
        return isinstance(error, ray.RayActorError | ray.WorkerCrashedError | ray.NodeDiedError)


# --- a replica that draws ---------------------------------------------------------------------


class _NoMeters:
    """Ray has metrics of its own for its replicas."""

    def drawn(self, bucket: Bucket, result: Result, device: str) -> None:
        """As :class:`~fresco_trt.serve.drawing.Meters`."""

    def warmed(self, cost: WarmUp) -> None:
        """As :class:`~fresco_trt.serve.drawing.Meters`."""


class Engines:
    """A replica: bundles loaded and warm, and the thread that draws with them."""

    def __init__(self, settings: RayArguments) -> None:
        """Raises what opening, loading and drawing raise; Ray then tries again, and gives up."""
        self._queue = DrawingQueue(_bundles(settings), _NoMeters(), waiting=_AT_A_REPLICA)
        warm = threading.Event()
        errors: list[Exception] = []

        def ended(error: Exception | None) -> None:
            errors.extend(filter(None, [error]))
            warm.set()

        self._queue.start(ended)
        warm.wait()
        for error in errors:
            raise error

    async def costs(self) -> tuple[WarmUp, ...]:
        """What it took to be ready."""
        return self._queue.costs

    def check_health(self) -> None:
        """Ray asks this, and replaces a replica that raises."""
        if self._queue.state != "ready":
            raise RuntimeError(f"the engines are {self._queue.state}")

    async def draw(
        self,
        bucket: Bucket,
        prompt: str,
        seeds: tuple[int, ...],
        guidance: float | None,
        previews: int,
        source: Image | None,
        mask: Image | None,
    ) -> AsyncIterator[Begun | Event]:
        """What is drawn of an order, as it comes. Cancelled, the drawing ends between two steps."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        order = Order(
            bucket=bucket,
            prompt=prompt,
            seeds=seeds,
            guidance=guidance,
            previews=previews,
            tell=tell,
            source=source,
            mask=mask,
        )
        self._queue.put(order)
        yield Begun()
        left = len(seeds)
        try:
            while left:
                event = await events.get()
                yield _sendable(event)
                left = 0 if isinstance(event, Failed) else left - isinstance(event, Drawn)
        finally:
            self._queue.drop(order)


def _sendable(event: Event) -> Event:
    """An event that another process can read: of errors that nobody foresaw, their kind alone."""
    if isinstance(event, Failed) and not isinstance(event.error, FrescoError):
        return Failed(error=RuntimeError(type(event.error).__name__))
    return event
