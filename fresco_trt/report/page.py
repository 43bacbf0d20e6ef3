"""The page around its sections: one HTML document that nothing is fetched for.

The last step of a report. Its policy lets pictures be embedded and one style sheet be used, which
is named by its digest, and nothing else: markup that got in all the same could not run or call out.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fresco_trt.report.html import Html, section, tag

_STYLE = Path(__file__).with_name("page.css")


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page: the name that links lead to, its heading and what is below."""

    name: str
    title: str
    content: Html


def page(title: str, lead: str, sections: Sequence[Section], maker: str) -> str:
    """The document. The same arguments give the same bytes."""
    style = _STYLE.read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Html(policy(style))),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style)),
    )
    links = (tag("a", each.title, href=f"#{each.name}") for each in sections)
    body = tag(
        "body",
        tag("h1", title),
        tag("p", lead, class_="lead"),
        tag("nav", *links),
        *(section(each.name, each.title, each.content) for each in sections),
        tag("p", maker, class_="lead"),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def policy(style: str) -> str:
    """The content security policy of a page with this style sheet."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; "
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
