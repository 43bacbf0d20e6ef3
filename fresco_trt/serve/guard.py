"""In front of the application: whose request it is, and that its body is bounded and arrives."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import TYPE_CHECKING

from fresco_trt.serve.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fresco_trt.serve.limits import Limits

EDITS = "/v1/images/edits"
"""Where bodies have pictures in them."""
GUARDED = "/v1/"
"""What an API key is asked for: all that draws. Probes, metrics and the page are open."""
SHORTEST_KEY = 16


class Guard:
    """An ASGI application around another one: refuses before anything of a body is looked at."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[bytes],
        limits: Limits,
        refused: Callable[[str], None],
    ) -> None:
        self._app = app
        self._keys = tuple(keys)
        self._limits = limits
        self._refused = refused
        self._held = 0
        """Bytes of bodies that are here, of all requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body()
        try:
            await self._guarded(body, scope, receive, send)
        finally:
            self._held -= body.size

    async def _guarded(self, body: _Body, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"].startswith(GUARDED):
                self._check_key(_header(scope, b"authorization"))
            await self._receive(body, scope, receive)
        except _Gone:
            return
        except Refusal as refusal:
            self._refused(refusal.code)
            await _answer(refusal, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    def _check_key(self, given: bytes) -> None:
        """Every key is compared, and all of each, so that the time says nothing."""
        scheme, _, key = given.partition(b" ")
        known = [hmac.compare_digest(key.strip(), each) for each in self._keys]
        if self._keys and not (scheme.lower() == b"bearer" and any(known)):
            raise Refusal(401, "invalid_api_key", "expected the header Authorization: Bearer KEY")

    async def _receive(self, body: _Body, scope: Scope, receive: Receive) -> None:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return
        most = self._limits.source if scope["path"] == EDITS else self._limits.body
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared[:20]) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while await self._part(body, most, receive):
                    pass
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise Refusal(408, "request_timeout", message) from None

    async def _part(self, body: _Body, most: int, receive: Receive) -> bool:
        """Take what came of a body; whether more will come."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        if body.size + len(part) > most:
            raise _too_large(most)
        if self._held + len(part) > self._limits.bodies:
            text = "there is no memory left for this body; others are being answered"
            raise Refusal(503, "bodies_full", text, retry_after=5)
        self._held += len(part)
        body.size += len(part)
        body.data += part
        return bool(message.get("more_body", False))


def _too_large(most: int) -> Refusal:
    message = f"the body is too large; expected at most {most} bytes"
    return Refusal(413, "request_too_large", message)


class _Body:
    """What has come of a body; its size is still known when the application has taken it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0


class _Gone(Exception):
    """The client went away before its request was there."""


def _header(scope: Scope, name: bytes) -> bytes:
    """The first header of that name, empty where there is none."""
    found: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return found[0] if found else b""


def _replayed(body: _Body, receive: Receive) -> Receive:
    """A body that was read, once, and then what else comes."""
    left: list[Message] = [{"type": "http.request", "body": body.data, "more_body": False}]
    body.data = bytearray()

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


async def _answer(refusal: Refusal, send: Send) -> None:
    """Close the connection as well: what is left of a body would be read as the next request."""
    body = json.dumps(refusal.body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *((name.encode(), value.encode()) for name, value in refusal.headers.items()),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def read_keys(path: Path | None) -> tuple[bytes, ...]:
    """The API keys in a file, one a line; none for no file.

    Raises KeyNotUsable for a file that cannot be read, has no key, or one that is easily guessed.
    """
    from fresco_trt.errors import KeyNotUsable

    if path is None:
        return ()
    try:
        lines = path.read_bytes()[: 1 << 16].splitlines()
    except OSError as error:
        raise KeyNotUsable(
            f"--api-key-file {path} cannot be read ({error.strerror or error})",
            expected="a file with one key a line",
            fix="pass the path of such a file",
        ) from error
    keys = tuple(key for key in map(bytes.strip, lines) if key)
    if not keys or any(len(key) < SHORTEST_KEY for key in keys):
        raise KeyNotUsable(
            f"--api-key-file {path} with {'a short key' if keys else 'no key'}",
            expected=f"one key a line, each of {SHORTEST_KEY} characters or more",
            fix="make one with 'openssl rand -hex 24'",
        )
    return keys
