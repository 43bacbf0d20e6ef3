"""HTML that is right by construction: every text is escaped where it is put in.

The bottom of the page. Names of a bundle and of result files may be a stranger's: a text becomes
markup in :func:`text` alone, and nothing else writes a character of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from fresco_trt.errors import one_line

LONGEST = 300
"""Characters of one text that a page shows."""

_VOID = {"circle", "img", "line", "meta", "path", "polygon", "polyline", "rect"}
"""Elements that this package gives no content."""


class Html(str):
    """Markup: what :func:`tag` made, and is put into others as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as one printable line of bounded length, in markup or within quotation marks."""
    line = one_line(str(value))
    return Html(escape(line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}...", quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children that are :class:`Html` stay as they are, others become :func:`text`.

    ``class_`` and ``http_equiv`` stand for the attributes class and http-equiv; one that is None
    is left out.
    """
    spelt = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_inside(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Html(f"<{name}{spelt}/>" if name in _VOID - {"img", "meta"} else f"<{name}{spelt}>")
    return Html(f"<{name}{spelt}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Several things one after the other."""
    return Html("".join(each if isinstance(each, Html) else text(each) for each in children))


def _inside(value: object) -> Html:
    return value if isinstance(value, Html) else text(value)


def section(name: str, title: str, *children: object) -> Html:
    """A part of the page, under a heading that can be linked to."""
    return tag("section", tag("h2", title), *children, id=name)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Rows under a heading each; numbers stand at the right."""
    head = tag("thead", tag("tr", *(tag("th", column, scope="col") for column in columns)))
    body = tag("tbody", *(tag("tr", *map(_cell, row)) for row in rows))
    return tag("div", tag("table", tag("caption", caption), head, body), class_="scroll")


def _cell(value: object) -> Html:
    return tag("td", value, class_="number" if isinstance(value, int | float) else None)


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are."""
    return tag("dl", *(join((tag("dt", name), tag("dd", value))) for name, value in pairs))


def folded(summary: str, *children: object) -> Html:
    """What a reader opens by a click; a print shows its heading."""
    return tag("details", tag("summary", summary), *children)


def size_of(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
