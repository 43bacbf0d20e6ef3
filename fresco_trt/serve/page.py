"""The page at `/`: one file without anything from elsewhere, and the policy that keeps it so."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from importlib.resources import files

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def page() -> bytes:
    """The page's bytes."""
    return files("fresco_trt.serve").joinpath("page.html").read_bytes()


def policy(html: bytes) -> str:
    """A content security policy under which a browser runs the page's own script and style, draws
    pictures that are in it, asks this server, and does nothing else.
    """
    allowed = {"script": "", "style": ""}
    for kind, text in _INLINE.findall(html.decode()):
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[kind] += f" 'sha256-{digest}'"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src{allowed['script']}",
            f"style-src{allowed['style']}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


PAGE_HEADERS = {
    "content-security-policy": policy(page()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
