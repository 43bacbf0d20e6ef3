"""Clients of a server that know what they have to get. Each asks once, and says how that ended."""

from __future__ import annotations

import io
import json
import random
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from PIL import Image

from bench.server_process import GENERATIONS

PATIENCE = 120.0
"""Seconds of silence after which a client says that it was left hanging."""
SEVERAL = 3
"""Pictures of a request for several."""

RIGHT, FALSE, CUT, LEFT, SILENT, HUNG = "right", "false", "cut", "left", "no answer", "hung"
"""Ends: all that was asked for, pixel for pixel; something else; a part of an answer; the client
went away; the connection was refused or closed before an answer began; nothing for too long. Any
other is the status and code of an error.
"""

Pixels = tuple[str, tuple[int, int], bytes]


def pixels(image: Image.Image) -> Pixels:
    """What two pictures are compared by."""
    return image.mode, image.size, image.tobytes()


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What has to come: of each prompt and seed the ends of the stages, the picture last."""

    prompts: tuple[str, ...]
    seeds: int
    pictures: Mapping[tuple[str, int], tuple[Pixels, ...]]

    @classmethod
    def of(
        cls, draw: Callable[[str, int], Sequence[Image.Image]], prompts: Sequence[str], seeds: int
    ) -> Truth:
        """As `draw` draws, one after the other."""
        pictures = {
            (prompt, seed): tuple(map(pixels, draw(prompt, seed)))
            for prompt in prompts
            for seed in range(seeds)
        }
        return cls(prompts=tuple(prompts), seeds=seeds, pictures=pictures)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a request of some kind ended, and when, by `time.monotonic`."""

    kind: str
    end: str
    began: float
    ended: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """One that asks a server at HOST:PORT for what it knows; `pause` is the most seconds that it
    waits before it goes away, and `streaming` is set when the first event of a stream is there.
    """

    address: str
    truth: Truth
    pause: float
    streaming: threading.Event = field(default_factory=threading.Event)

    def ask(self, kind: str, number: int) -> Outcome:
        """One request of one of `KINDS`; the same number asks the same."""
        dice, began = random.Random(number), time.monotonic()
        connection = HTTPConnection(self.address, timeout=PATIENCE)
        try:
            end = KINDS[kind](self, connection, dice)
        except TimeoutError:
            end = HUNG
        except (OSError, HTTPException) as error:
            end = f"{SILENT}: {type(error).__name__}"
        finally:
            connection.close()
        return Outcome(kind=kind, end=end, began=began, ended=time.monotonic())

    # --- kinds of requests --------------------------------------------------------------------

    def _plain(self, connection: HTTPConnection, dice: random.Random, count: int = 1) -> str:
        prompt, seed = self._some(dice, count)
        answer = _posted(connection, {"prompt": prompt, "seed": seed, "n": count})
        data, whole = _arrived(answer)
        if not whole:
            return CUT
        if answer.status != 200:
            return _refusal(answer, data)
        found = [_picture(each["b64_json"]) for each in json.loads(data)["data"]]
        wanted = [self.truth.pictures[prompt, seed + i][-1] for i in range(count)]
        return RIGHT if found == wanted else FALSE

    def _several(self, connection: HTTPConnection, dice: random.Random) -> str:
        return self._plain(connection, dice, SEVERAL)

    def _stream(self, connection: HTTPConnection, dice: random.Random) -> str:
        prompt, seed = self._some(dice)
        wanted = self.truth.pictures[prompt, seed]
        answer = self._streamed(connection, prompt, seed)
        if answer.status == 200:
            self.streaming.set()
        data, whole = _arrived(answer)
        if answer.status != 200:
            return _refusal(answer, data) if whole else CUT
        found = [_event(each) for each in data.split(b"\n\n")[:-1]]  # the last has no end
        names = [name for name, _ in found]
        if "error" in names:
            return f"error event {found[-1][1]['error']['code']}"
        shown = tuple(_picture(event["b64_json"]) for _, event in found)
        due = ["image_generation.partial_image"] * (len(wanted) - 1)
        due.append("image_generation.completed")
        if shown != wanted[: len(shown)] or names != due[: len(shown)]:
            return FALSE
        if not whole:
            return CUT
        return RIGHT if len(shown) == len(wanted) else FALSE

    def _leaver(self, connection: HTTPConnection, dice: random.Random) -> str:
        """One half goes away after some time, the other with the first partial picture."""
        prompt, seed = self._some(dice)
        if dice.random() < 0.5:
            _send(connection, {"prompt": prompt, "seed": seed})
            time.sleep(dice.uniform(0, self.pause))
            return LEFT
        answer = self._streamed(connection, prompt, seed)
        if answer.status != 200:
            data, whole = _arrived(answer)
            return _refusal(answer, data) if whole else CUT
        answer.read1(1000)
        return LEFT

    def _wrong(self, connection: HTTPConnection, dice: random.Random) -> str:
        fields, status = dice.choice(_WRONG)
        answer = _posted(connection, fields)
        data, whole = _arrived(answer)
        if not whole:
            return CUT
        return _refusal(answer, data) if answer.status == status else FALSE

    def _streamed(self, connection: HTTPConnection, prompt: str, seed: int) -> HTTPResponse:
        partial = min(len(self.truth.pictures[prompt, seed]) - 1, 3)
        fields = {"prompt": prompt, "seed": seed, "stream": True, "partial_images": partial}
        return _posted(connection, fields)

    def _some(self, dice: random.Random, count: int = 1) -> tuple[str, int]:
        return dice.choice(self.truth.prompts), dice.randrange(self.truth.seeds - count + 1)


KINDS: Mapping[str, Callable[[Client, HTTPConnection, random.Random], str]] = {
    "plain": Client._plain,
    "several": Client._several,
    "stream": Client._stream,
    "leaver": Client._leaver,
    "wrong": Client._wrong,
}

_WRONG: tuple[tuple[Any, int], ...] = (
    ({}, 400),
    ({"prompt": 7}, 400),
    ({"prompt": "a bell", "n": 0}, 400),
    ({"prompt": "a bell", "size": "7x7"}, 400),
    ({"prompt": "a bell", "colour": "blue"}, 400),
    ({"prompt": "a bell", "partial_images": 2}, 400),
    ({"prompt": "a bell", "model": "none"}, 404),
    (["a bell"], 400),
    (b'{"prompt": "a be', 400),
)
"""Bodies, and the status that each has to get."""


def _send(connection: HTTPConnection, fields: Any) -> None:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    connection.request("POST", GENERATIONS, body, {"content-type": "application/json"})


def _posted(connection: HTTPConnection, fields: Any) -> HTTPResponse:
    _send(connection, fields)
    return connection.getresponse()


def _arrived(answer: HTTPResponse) -> tuple[bytes, bool]:
    """What came of a body, and whether that is all of it. Raises TimeoutError."""
    data, declared = bytearray(), answer.getheader("content-length")
    try:
        while more := answer.read1(1 << 16):
            data += more
    except TimeoutError:
        raise
    except (OSError, HTTPException):
        return bytes(data), False
    return bytes(data), declared is None or len(data) == int(declared)


def _refusal(answer: HTTPResponse, data: bytes) -> str:
    """Status and code; an error in another form is none that a client can read."""
    with suppress(ValueError, LookupError, TypeError):
        return f"{answer.status} {json.loads(data)['error']['code']}"
    return f"{FALSE}: {answer.status} without an error object"


def _event(data: bytes) -> tuple[str, Any]:
    name, _, value = data.decode().partition("\n")
    return name.removeprefix("event: "), json.loads(value.removeprefix("data: "))


def _picture(b64: str) -> Pixels:
    return pixels(Image.open(io.BytesIO(b64decode(b64, validate=True))))
