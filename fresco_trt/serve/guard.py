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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["path"].startswith(GUARDED):
                self._check_key(_header(scope, b"authorization"))
            body = await self._body(scope, receive)
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

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b""
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared[:20]) > self._limits.body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._received(receive)
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise Refusal(408, "request_timeout", message) from None

    async def _received(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            body += message.get("body", b"")
            if len(body) > self._limits.body:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refusal:
        message = f"the body is too large; expected at most {self._limits.body} bytes"
        return Refusal(413, "request_too_large", message)


class _Gone(Exception):
    """The client went away before its request was there."""


def _header(scope: Scope, name: bytes) -> bytes:
    """The first header of that name, empty where there is none."""
    found: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return found[0] if found else b""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once, and then what else comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

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
