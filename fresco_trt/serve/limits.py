"""What the server takes at most, of everything that somebody outside decides about."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fresco_trt.errors import PlanError

MOST_IMAGES = 10
"""Pictures of one request at most, as OpenAI has it."""
LONGEST_PROMPT = 32000
"""Characters of a prompt at most, as OpenAI has it."""
MOST_WAITING = 32
BODY_BYTES = 512 * 1024  # holds the longest prompt, even if each of its characters is escaped
SOURCE_BYTES = 20 * 1024 * 1024  # a photograph, or a PNG of some million pixels
PATIENCE = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Checked when it is made: raises PlanError with the option that sets the field."""

    queue: int = MOST_WAITING
    """Requests that wait at most; the next one is refused, 429."""
    deadline: float = PATIENCE
    """Seconds from a request's arrival to its last picture."""
    drain: float = PATIENCE
    """Seconds that accepted requests get after a SIGTERM."""
    images: int = MOST_IMAGES
    """Pictures of one request."""
    prompt: int = LONGEST_PROMPT
    """Characters of a prompt."""
    body: int = BODY_BYTES
    """Bytes of a request's body."""
    source: int = SOURCE_BYTES
    """Bytes of an edit's body, its picture among them."""
    bodies: int = 256 * 1024 * 1024
    """Bytes of all bodies whose requests are not answered yet; one more is refused, 503."""
    body_seconds: float = 20.0
    """For a request's body to arrive, after its headers."""
    receive_seconds: float = 30.0
    """For a whole request to arrive, from its first byte or the connection on."""
    send_seconds: float = 60.0
    """For a client to read what is ready for it."""
    connections: int = 512
    """Connections that are open at once."""
    kept_bytes: int = 64 * 1024 * 1024
    """Memory for pictures that are fetched by URL."""
    kept_seconds: float = 600.0
    """How long such a picture can be fetched."""

    def __post_init__(self) -> None:
        for name, most in (("images", MOST_IMAGES), ("prompt", LONGEST_PROMPT)):
            _require(name, 1 <= getattr(self, name) <= most, f"from 1 to {most}")
        _require("queue", self.queue >= 0, "0 or more")
        for name in ("body", "source"):
            given = getattr(self, name)
            _require(name, 1024 <= given <= self.bodies, f"from 1024 to {self.bodies} bytes")
        for name in ("deadline", "drain"):
            value = getattr(self, name)
            _require(name, math.isfinite(value) and value > 0, "a number of seconds over 0")


def _require(name: str, fits: bool, expected: str) -> None:
    if not fits:
        option = f"--{'' if name in ('queue', 'deadline', 'drain') else 'max-'}{name}"
        raise PlanError(f"{option} as it was given", expected=expected, fix=f"pass {option} so")
