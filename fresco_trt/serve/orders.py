"""What a request wants drawn, and what is told of it while that happens.

Between the event loop, which makes an order, and whoever draws it: a thread of this process, or
another process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.pipelines.held import Hold
    from fresco_trt.pipelines.several import Bucket
    from fresco_trt.serve.runs import Prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A stage of a picture ended, counted from 1: what it looks like by then."""

    stage: int
    image: Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A picture is there. `tokens` are the prompt's own, `warnings` what of it was not read;
    `seconds` is its share of the run that it was drawn in.
    """

    image: Image
    seed: int
    seconds: float
    tokens: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """Nothing more comes."""

    error: Exception


Event = Preview | Drawn | Failed


@dataclass(kw_only=True, slots=True, eq=False)
class Order:
    """What one request wants drawn: a picture for each seed. `tell` is called by the drawing thread
    and must not wait.
    """

    bucket: Bucket
    prompt: str
    seeds: tuple[int, ...]
    guidance: float | None
    previews: int
    tell: Callable[[Event], None]
    source: Image | None = None
    """What is edited, RGB of the built size."""
    mask: Image | None = None
    """White where it may change, mode "L" of the built size."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    hold: Hold | None = None
    """What it is drawn with, from its acceptance to its end, whatever is put in service then."""
    done: int = 0
    """How many of its pictures are drawn."""
    failed: bool = False
    """Whether it was told that nothing more comes."""
    prepared: Prepared | None = None
    """Its prompt as engines of a batch take it, once it was read."""

    @property
    def left(self) -> int:
        """How many pictures are still to be drawn; none where nobody wants them."""
        over = self.failed or self.cancelled.is_set()
        return 0 if over else len(self.seeds) - self.done

    def end(self) -> None:
        """It is drawn, or never will be: let go of what it was to be drawn with."""
        self.prepared = None
        if self.hold is not None:
            self.hold.release()

    def fail(self, error: Exception) -> None:
        """Nothing more comes."""
        self.failed = True
        self.tell(Failed(error=error))
