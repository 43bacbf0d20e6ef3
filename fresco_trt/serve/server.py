"""uvicorn around the application: a socket, signals, and an end that waits for what it accepted."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TYPE_CHECKING

import uvicorn

from fresco_trt.errors import InvalidArgument
from fresco_trt.serve.app import Service, app_of
from fresco_trt.serve.protocol import patient_protocol
from fresco_trt.serve.reloading import Reloader, on_hangup

if TYPE_CHECKING:
    from fresco_trt.pipelines.several import FrescoPipelines, WarmUp
    from fresco_trt.serve.limits import Limits
    from fresco_trt.serve.reloading import Reload, Reloaded

_RELOADED_WITHIN = 30.0
"""Seconds that the end waits for bundles that are being read."""


class Server:
    """A server over a socket that is bound already; it runs once."""

    def __init__(
        self,
        pipelines: FrescoPipelines,
        listening: socket.socket,
        limits: Limits,
        *,
        keys: tuple[bytes, ...] = (),
        warm: Callable[[Sequence[WarmUp]], None] = lambda costs: None,
        reload: Reload | None = None,
        reloaded: Reloaded = lambda outcome: None,
    ) -> None:
        """`warm` is called by the drawing thread once all bundles are loaded and warm, with what it
        took. `reload` is called on a SIGHUP, in a thread of its own, to put other bundles in
        service; `reloaded` then gets what these took, or what `reload` raised. `warm` and
        `reloaded` must not raise.
        """
        self._warm, self._reloaded = warm, reloaded
        self.reloader = None if reload is None else Reloader(reload, self._told)
        self._error: Exception | None = None
        self._listening = listening
        self.service = Service(pipelines=pipelines, limits=limits, keys=keys, warm=self._warmed)
        config = uvicorn.Config(
            app_of(self.service),
            http=patient_protocol(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=int(limits.drain) or 1,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until a SIGTERM or SIGINT came and accepted requests are answered, or `stop`.

        Raises what loading the bundles raised. Such a signal is raised again at the end, as uvicorn
        does.
        """
        with ExitStack() as scope:
            if self.reloader is not None:
                scope.callback(self.reloader.stop, _RELOADED_WITHIN)
                scope.enter_context(on_hangup(self.reloader.ask, self.stop))
            self._server.run(sockets=[self._listening])
        self.check()

    def check(self) -> None:
        """Raise what loading the bundles raised, if it has."""
        if self._error is not None:
            raise self._error

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def stop(self) -> None:
        """Take no more requests, and end when those that were accepted are answered."""
        self._server.should_exit = True

    def _warmed(self, error: Exception | None) -> None:
        self._error = error
        if error is not None:
            self.stop()
            return
        self._warm(self.service.queue.costs)
        if self.reloader is not None:
            self.reloader.start()

    def _told(self, outcome: Sequence[WarmUp] | Exception) -> None:
        self.service.meters.reloaded(outcome)
        self._reloaded(outcome)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 is any that is free. Raises InvalidArgument in the command's words."""
    if not 0 <= port <= 65535:
        raise InvalidArgument(f"--port {port}", expected="a number from 0 to 65535", fix="pass one")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        with ExitStack() as scope:
            bound = scope.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(1024)  # who comes early waits
            scope.pop_all()
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(
            f"--host {host} --port {port} cannot be listened on ({error})",
            expected="an address of this machine, and a port that is free",
            fix="pass another --port, or 0 for any that is free",
        ) from error
    return bound


def is_local(listening: socket.socket) -> bool:
    """Whether a bound socket is reached from this machine alone."""
    return ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
