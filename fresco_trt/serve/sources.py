"""The pictures of an edit on their way in: found in a form, read in memory, brought to size.

What is changed of a source or a mask is said in the answer's `warnings`.
"""

from __future__ import annotations

import asyncio
import io
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fresco_trt.errors import PictureInvalid
from fresco_trt.files.picture_file import read_source
from fresco_trt.pipelines.selective import read_mask
from fresco_trt.serve.refusal import Refusal, invalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fresco_trt.serve.body import Wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """The files of a form: what is edited, and where it may change."""

    source: bytes
    mask: bytes | None


def sent_of(pictures: Sequence[tuple[str, bytes]]) -> Sent:
    """The files that an edit has. Raises Refusal for no source, and for several of either."""
    sources, masks = (
        [data for name, data in pictures if name == wanted] for wanted in ("image", "mask")
    )
    if len(sources) != 1:
        given = f"{len(sources)} pictures" if sources else "no picture"
        raise invalid(f"image: {given}; expected the one to edit", "image")
    if len(masks) > 1:
        raise invalid(f"mask: {len(masks)} masks; expected one, or none", "mask")
    return Sent(source=sources[0], mask=masks[0] if masks else None)


def _check_mask(wanted: Wanted) -> None:
    """Raise Refusal for a mask where the engines have no use for one."""
    if wanted.plan.edit is None:
        message = f"mask: {wanted.bucket} draws all of a picture anew; leave the mask out"
        raise invalid(message, "mask", code="no_masks")


class SourceReader:
    """Reads one source at a time: the largest that is allowed takes a GB while it is read."""

    def __init__(self, waiting: int) -> None:
        """As many wait for their turn at most."""
        self._most = waiting
        self._here = 0
        self._turn = asyncio.Lock()

    async def read(self, wanted: Wanted, sent: Sent) -> Wanted:
        """The request with its source, and its mask. Raises Refusal: 400 for bytes that are no
        picture and a mask that nothing reads, 429 if too many wait.
        """
        if sent.mask is not None:
            _check_mask(wanted)
        if self._here > self._most:
            message = f"{self._most} pictures wait to be read, and no more can"
            raise Refusal(429, "queue_full", message, retry_after=1)
        self._here += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(_read, wanted, sent)
        finally:
            self._here -= 1


def _read(wanted: Wanted, sent: Sent) -> Wanted:
    size = wanted.bucket.size
    with _as("image"):
        source, notes = read_source(io.BytesIO(sent.source), size)
    if sent.mask is None:
        return replace(wanted, source=source, notes=notes)
    with _as("mask"):
        mask, more = read_mask(io.BytesIO(sent.mask), size)
    return replace(wanted, source=source, mask=mask, notes=(*notes, *more))


@contextmanager
def _as(param: str) -> Iterator[None]:
    """Whatever is no picture in the scope is refused by its field."""
    try:
        yield
    except PictureInvalid as error:
        raise invalid(str(error), param, code="picture_invalid") from None
