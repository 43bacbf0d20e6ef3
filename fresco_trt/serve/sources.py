"""The pictures of an edit on their way in: found in a form, read in memory, brought to size.

What is changed of a source is said in the answer's `warnings`.
"""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from typing import TYPE_CHECKING

from fresco_trt.errors import PictureInvalid
from fresco_trt.pipelines.edit import read_source
from fresco_trt.serve.refusal import Refusal, invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.serve.body import Wanted


def source_of(pictures: Sequence[tuple[str, bytes]]) -> bytes:
    """The one source among the pictures of a form. Raises Refusal for none, several, or a mask."""
    for name, _ in pictures:
        if name == "mask":
            raise _no_masks()
    if len(pictures) != 1:
        given = f"{len(pictures)} pictures" if pictures else "no picture"
        raise invalid(f"image: {given}; expected the one to edit", "image")
    return pictures[0][1]


def _no_masks() -> Refusal:
    message = "mask: masks are not taken; leave it out, and say in the prompt what to change"
    return invalid(message, "mask", code="no_masks")


class SourceReader:
    """Reads one source at a time: the largest that is allowed takes a GB while it is read."""

    def __init__(self, waiting: int) -> None:
        """As many wait for their turn at most."""
        self._most = waiting
        self._here = 0
        self._turn = asyncio.Lock()

    async def read(self, wanted: Wanted, data: bytes) -> Wanted:
        """The request with its source. Raises Refusal: 400 for bytes that are no picture, 429 if
        too many wait.
        """
        if self._here > self._most:
            message = f"{self._most} pictures wait to be read, and no more can"
            raise Refusal(429, "queue_full", message, retry_after=1)
        self._here += 1
        try:
            async with self._turn:
                source, notes = await asyncio.to_thread(
                    read_source, io.BytesIO(data), wanted.bucket.size
                )
        except PictureInvalid as error:
            raise invalid(str(error), "image", code="picture_invalid") from None
        finally:
            self._here -= 1
        return replace(wanted, source=source, notes=notes)
