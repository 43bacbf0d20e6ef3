"""Requests of every wrong kind, made by hypothesis: bodies, headers, forms, pictures, paths, keys.

Each says what it is, and which fields it has that no request has.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from fresco_trt.serve.body import Generation
from tests.serve.conftest import EDITS, GENERATIONS, Form, part, png

KEY = b"a-key-of-enough-characters"
JSON = (b"content-type", b"application/json")
FORM = (b"content-type", Form.content_type.encode())


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request as ASGI has it."""

    method: str = "POST"
    path: str = GENERATIONS
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    parts: tuple[bytes, ...] = ()
    """Of the body, as they arrive."""
    unknown: tuple[str, ...] = field(default=())
    """Fields that a refusal has to name."""
    may_draw: bool = True
    """Whether an answer of 200 is right."""


_FIELDS = st.sampled_from(list(Generation.model_fields))
_TEXT = st.text(max_size=40)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(_TEXT, inside, max_size=3),
    max_leaves=6,
)
_WORDS = ("64x64", "128x128", "0x0", "auto", "turbo", "hd", "url", "png", "true", "flux-kontext")
_ODD = (2**64, 2**64 - 1, -1, 0, 11, 1e308, True, "9" * 5000, "é\u202e\x00", "\ud800", *_WORDS)
_EDGES = st.sampled_from(_ODD)
_STRANGE = st.text(min_size=1, max_size=80).filter(lambda name: name not in Generation.model_fields)


def _raw(value: Any) -> tuple[bytes, ...]:
    return (value if isinstance(value, bytes) else json.dumps(value).encode(),)


def bodies() -> st.SearchStrategy[Sent]:
    """JSON of wrong values, what is no JSON, and both for either path."""
    fields = st.dictionaries(_FIELDS, _EDGES | _VALUES, max_size=6)
    with_prompt = fields.map(lambda given: {"prompt": "a bell", **given})
    nested = st.integers(1, 20_000).map(lambda depth: b"[" * depth)
    broken = st.tuples(with_prompt, st.integers(0, 60)).map(lambda two: _raw(two[0])[0][: two[1]])
    given = with_prompt | fields | _VALUES | st.binary(max_size=200) | nested | broken
    return st.builds(
        Sent, path=st.sampled_from([GENERATIONS, GENERATIONS, EDITS]), parts=given.map(_raw)
    )


def unknown() -> st.SearchStrategy[Sent]:
    """Right requests with fields more that no request has."""

    def sent(names: list[str], edit: bool) -> Sent:
        if edit:
            named = [name for name in names if "".join(name.split()) and _sendable(name)] or ["x"]
            form = Form(png(), prompt="a hat").body
            more = b"".join(part(name, b"1") for name in named)
            body, path, head = (more + form,), EDITS, FORM
        else:
            named, path, head = names, GENERATIONS, JSON
            body = _raw({"prompt": "a bell", **dict.fromkeys(names, 1)})
        unknown = tuple(named)
        return Sent(path=path, headers=(head,), parts=body, unknown=unknown, may_draw=False)

    names = st.lists(_STRANGE, min_size=1, max_size=3, unique=True)
    return st.builds(sent, names, st.booleans())


def _sendable(name: str) -> bool:
    """Whether a form can have a field of that name as it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not set('"\r\n') & set(name) and name not in ("image", "image[]", "mask")


_HEADERS = (
    b"content-type content-length authorization host accept expect content-encoding "
    b"transfer-encoding cookie range origin x-forwarded-for connection"
).split()
_HEADER_VALUES = (
    b"text/plain gzip chunked -1 0 Bearer */* application/json;charset=utf-16 multipart/form-data"
).split(b" ")


def headers() -> st.SearchStrategy[Sent]:
    """Headers of any bytes beside a body that would be right."""
    names = st.sampled_from(_HEADERS)
    values = st.sampled_from((*_HEADER_VALUES, b"9" * 40, b"a" * 5000, b"\x80\xff", b"Bearer \xff"))
    pairs = st.tuples(names | st.binary(min_size=1, max_size=20), values | st.binary(max_size=40))
    made = st.lists(pairs, max_size=5).map(tuple)
    body = st.sampled_from(
        [_raw({"prompt": "a bell"}), (), (b"x" * 600_000,), (b"{", b'"prompt"', b"}")]
    )
    return st.builds(
        Sent, path=st.sampled_from([GENERATIONS, EDITS, "/v1/models"]), headers=made, parts=body
    )


_FORM_TYPES = (
    'multipart/form-data; boundary="edge"',
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=é",
    "multipart/mixed",
)


def forms() -> st.SearchStrategy[Sent]:
    """Forms cut, doubled, nested and mixed up, in any number of pieces."""
    image, text = part("image", png(), b'; filename="a.png"'), part("prompt", b"a hat")
    within = part("x", b"--in--", b"\r\ncontent-type: multipart/mixed; boundary=in")
    mask, two = part("mask", b"x", b'; filename="m"'), part("n", b"2")
    marks = (b"--edge--\r\n", b"--edge", b"\r\n", b"\r\n\r\n", b"--", b'name="', b"\x00" * 3000)
    pieces = st.sampled_from((text, image, mask, two, within, part("stream", b"true"), *marks))
    kinds = st.sampled_from((Form.content_type,) * 4 + _FORM_TYPES)
    mixed = st.lists(pieces | st.binary(max_size=30), max_size=9)
    whole = b"".join((text, image, two, marks[0]))
    cut = st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))).map(
        lambda ends: [whole[: ends[0]], whole[ends[1] :]]
    )
    ordered = st.permutations([text, image, two]).map(lambda parts: [*parts, marks[0]])
    body = mixed | cut | ordered
    typed = kinds.map(lambda kind: ((b"content-type", kind.encode()),))
    return st.builds(Sent, path=st.just(EDITS), headers=typed, parts=body.map(tuple))


_FORMATS = ("PNG/RGBA", "PNG/I;16", "PNG/P", "JPEG/CMYK", "WEBP/RGB", "TIFF/RGB", "GIF/P", "BMP/L")


@cache
def _files() -> tuple[bytes, ...]:
    image = Image.effect_noise((24, 16), 60)
    found = []
    for name in _FORMATS:
        form, mode = name.split("/")
        file = io.BytesIO()
        image.convert(mode).save(file, format=form)
        found.append(file.getvalue())
    return tuple(found)


def pictures() -> st.SearchStrategy[Sent]:
    """Edits of pictures of all formats whose bytes were changed, cut or doubled."""

    def sent(file: bytes, changes: list[tuple[float, bytes]], cut: float, twice: bool) -> Sent:
        data = bytearray(file)
        for at, byte in changes:
            start = int(at * len(data))
            data[start : start + len(byte)] = byte
        data = data[: max(int(cut * len(data)), 0)] if cut < 0.5 else data
        form = Form(bytes(data) * (1 + twice), prompt="a hat")
        return Sent(path=EDITS, headers=(FORM,), parts=(form.body,))

    share = st.floats(0, 1, exclude_max=True)
    changes = st.lists(st.tuples(share, st.binary(min_size=1, max_size=4)), max_size=4)
    return st.builds(sent, st.sampled_from(_files()), changes, share, st.booleans())


def paths() -> st.SearchStrategy[Sent]:
    """Other paths, methods and queries."""
    known = [GENERATIONS, EDITS, "/v1/models", "/health", "/ready", "/pictures/", "/metrics", "/"]
    ends = st.sampled_from(["", "/", "//", "/../etc/passwd", "/%00", "/flux-tiny", "?", "/{name}"])
    path = st.tuples(st.sampled_from(known), ends | _TEXT).map("".join)
    methods = st.sampled_from(
        ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "A"]
    )
    return st.builds(
        Sent,
        method=methods,
        path=path | _TEXT.map(lambda text: f"/{text}"),
        query=st.binary(max_size=30),
        parts=st.sampled_from([(), _raw({"prompt": "a bell"})]),
    )


def keys() -> st.SearchStrategy[Sent]:
    """Keys that are not the server's: sent to one that asks for a key."""
    near = st.sampled_from([KEY[:-1], KEY + b"x", b"", KEY.upper(), KEY + b" " + KEY, b"\xff" * 26])
    schemes = st.sampled_from(
        [b"Bearer ", b"bearer ", b"Basic ", b"", b"Bearer\t", b"Bearer Bearer "]
    )
    value = st.tuples(schemes, near | st.binary(max_size=40)).map(b"".join)
    given = value.filter(lambda each: each.split(b" ", 1)[-1].strip() != KEY)
    return st.builds(
        Sent,
        path=st.sampled_from([GENERATIONS, EDITS]),
        headers=given.map(lambda each: (JSON, (b"authorization", each))),
        parts=st.just(_raw({"prompt": "a bell"})),
        may_draw=st.just(False),
    )


_LINES = (
    b"POST /v1/images/generations HTTP/1.1",
    b"GET /health HTTP/1.0",
    b"POST * HTTP/1.1",
    b"GET / HTTP/9.9",
    b"\x16\x03\x01",
    b"PRI * HTTP/2.0",
)
_WIRE_HEADERS = (
    b"host: here|content-length: 5|content-length: -5|content-length: 5, 6|: empty| folded|"
    b"transfer-encoding: chunked|transfer-encoding: gzip, chunked|content-type: application/json|"
    b"connection: upgrade|expect: 100-continue"
).split(b"|")


def wire() -> st.SearchStrategy[bytes]:
    """What is no HTTP, or nearly: sent over a socket as it is."""
    line = st.sampled_from((*_LINES, b"GET " + b"/" * 70_000 + b" HTTP/1.1"))
    fields = st.sampled_from((*_WIRE_HEADERS, b"a" * 3000))
    head = st.tuples(line, st.lists(fields, max_size=5)).map(
        lambda two: b"\r\n".join([two[0], *two[1]])
    )
    tail = st.sampled_from(
        [b"", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"FFFFFFFFFFFFFFFFF\r\n", b"{}"]
    )
    near = st.tuples(head, tail | st.binary(max_size=40)).map(b"\r\n\r\n".join)
    return near | st.binary(min_size=1, max_size=200)


KINDS: dict[str, Callable[[], st.SearchStrategy[Sent]]] = {
    "bodies": bodies,
    "unknown fields": unknown,
    "headers": headers,
    "forms": forms,
    "pictures": pictures,
    "paths": paths,
    "keys": keys,
}
"""All that go to the application in this process; `wire` and the interface's own are apart."""
