"""Bodies of `multipart/form-data` (RFC 7578): text fields and pictures, in memory and nowhere else.

The body is there already and bounded. What a form may hold is narrow, so that all that is odd is
refused by name: a form of fields that come once each, and pictures under the names that take them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from fresco_trt.serve.refusal import Refusal, invalid

PICTURES = ("image", "image[]", "mask")
"""Names under which a form has files; `image[]` is how clients send a list."""
MOST_PARTS = 64
MOST_HEADER_BYTES = 4096
"""Of one part's headers."""

_TYPE = re.compile(r"multipart/form-data *(;.*)?", re.IGNORECASE)
# Up to 70 characters of RFC 2046's, quoted or not.
_BOUNDARY = re.compile(r""";\s*boundary=("?)([0-9A-Za-z'()+_,./:=?-]{1,70})\1\s*(?:;|$)""", re.I)
_NAME = re.compile(r"""(?<=;)\s*name=(?:"([^"]*)"|([^\s";]+))""", re.IGNORECASE)
_FILENAME = re.compile(r"(?<=;)\s*filename\*?=", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Text by its field, and the bytes of pictures in their order."""

    fields: dict[str, str] = field(default_factory=dict)
    pictures: list[tuple[str, bytes]] = field(default_factory=list)


def form_of(content_type: str, body: bytes) -> Form:
    """The form in a request's body. Raises Refusal (400) for what is none."""
    form = Form()
    for head, data in _parts(body, _boundary(content_type)):
        name, is_file = _disposition(head)
        if name in PICTURES:
            form.pictures.append((name.removesuffix("[]"), data))
        elif is_file:
            raise invalid(f"{_short(name)} is a file; expected text", name)
        elif name in form.fields:
            raise invalid(f"{_short(name)} comes twice; expected once", name)
        else:
            form.fields[name] = _text(name, data)
    return form


def _boundary(content_type: str) -> bytes:
    if not _TYPE.fullmatch(content_type.strip()):
        raise invalid("the body is no form; expected multipart/form-data", None)
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise _broken("without a boundary in its content type")
    return found[2].encode("ascii")


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Headers and content of each part."""
    mark = b"\r\n--" + boundary
    if not body.startswith(mark[2:]):
        raise _broken("that does not begin with its boundary")
    at = len(mark) - 2
    for _ in range(MOST_PARTS + 1):
        if body.startswith(b"--", at):
            if body[at + 2 : at + 4] not in (b"", b"\r\n") or body[at + 4 :].strip():
                raise _broken("with more after its end")
            return
        end = body.find(mark, at)
        if end < 0:
            raise _broken("that is cut short")
        head = body.find(b"\r\n\r\n", at, min(end, at + MOST_HEADER_BYTES))
        if head < 0 or not body.startswith(b"\r\n", at):
            raise _broken("with a part without headers, or with over 4096 bytes of them")
        yield body[at + 2 : head], body[head + 4 : end]
        at = end + len(mark)
    raise _broken(f"with over {MOST_PARTS} parts")


def _disposition(head: bytes) -> tuple[str, bool]:
    """A part's name, and whether it is a file."""
    named, is_file = None, False
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if key == "content-disposition":
            found = _NAME.search(value)
            if named is not None or not value.lower().startswith("form-data") or found is None:
                raise _broken("with a part that has no name, or several")
            named = found[1] if found[1] is not None else found[2]
            is_file = _FILENAME.search(value) is not None
        elif key == "content-type" and value.lower().startswith("multipart/"):
            raise _broken("with a form within")
        elif key == "content-transfer-encoding" and value.lower() not in ("binary", "8bit", "7bit"):
            raise _broken(f"with a part in {_short(value)}; expected its bytes as they are")
    if named is None:
        raise _broken("with a part that has no name")
    return named, is_file


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{_short(name)} is no UTF-8 text", name[:60]) from None


def _broken(what: str) -> Refusal:
    return invalid(f"a form {what}", None, code="invalid_form")


def _short(text: str) -> str:
    return repr(text[:60])
