"""Pictures on their way out: encoded, and for those who want a URL kept in memory for a while.

Nothing is written to the file system, and no name in it comes from outside.
"""

from __future__ import annotations

import io
import secrets
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The bytes of a picture file, and their media type."""

    data: bytes
    media_type: str

    @property
    def b64(self) -> str:
        """The bytes in base64."""
        return b64encode(self.data).decode("ascii")


def encoded(image: Image, form: str, compression: int) -> Encoded:
    """A picture as a file of the format `png`, `jpeg` or `webp`. `compression` is the quality of
    the latter two, 0 to 100.
    """
    file = io.BytesIO()
    # Pillow reads a JPEG quality of 0 as its default.
    options = {} if form == "png" else {"quality": max(compression, 1)}
    image.save(file, format=form, **options)
    return Encoded(data=file.getvalue(), media_type=f"image/{form}")


class KeptPictures:
    """Pictures under names that nobody can guess, each for some seconds; beyond so many bytes the
    oldest go first.
    """

    def __init__(
        self, *, most_bytes: int, seconds: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._most, self._seconds, self._clock = most_bytes, seconds, clock
        self._kept: OrderedDict[str, tuple[float, Encoded]] = OrderedDict()
        self._bytes = 0

    def keep(self, picture: Encoded) -> str:
        """Its name."""
        name = secrets.token_urlsafe(24)
        self._kept[name] = (self._clock() + self._seconds, picture)
        self._bytes += len(picture.data)
        self._sweep()
        return name

    def get(self, name: str) -> Encoded | None:
        """The picture of that name; None if there is none, or no more."""
        self._sweep()
        kept = self._kept.get(name)
        return None if kept is None else kept[1]

    def _sweep(self) -> None:
        now = self._clock()
        while self._kept:
            until, picture = next(iter(self._kept.values()))
            if until > now and self._bytes <= self._most:
                return
            self._kept.popitem(last=False)
            self._bytes -= len(picture.data)
