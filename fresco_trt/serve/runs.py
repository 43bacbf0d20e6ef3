"""One run of the engines for one order or several, by the thread that draws.

Under :class:`~fresco_trt.serve.drawing.DrawingQueue`, which chooses whose pictures are drawn
together. An order that fails, or whose client has gone, changes nothing for the others.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from fresco_trt.errors import Cancelled
from fresco_trt.models.family import PromptWarning
from fresco_trt.models.registry import model_facts
from fresco_trt.pipelines.request import Asked
from fresco_trt.pipelines.result import Result, Seconds
from fresco_trt.pipelines.selective import EditWarning
from fresco_trt.serve.orders import Drawn, Order, Preview

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.pipelines import drawing
    from fresco_trt.pipelines.drawing import Picture
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.serve.drawing import Meters

_LOG = logging.getLogger(__name__)
_FOR_CLIENTS = (PromptWarning, EditWarning)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The next ``count`` pictures of an order, in one run."""

    order: Order
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """An order's pictures as the engines take them, what its prompt was read as, and how long that
    took.
    """

    pictures: Sequence[Picture]
    tokens: int
    warnings: tuple[str, ...]
    seconds: float


def shares_of(orders: Sequence[Order], batch: int) -> list[Share]:
    """What one run draws: pictures of the first order, which came first, and as far as there is
    room those of orders behind it that are drawn with the same bundle.
    """
    shares: list[Share] = []
    first, room = orders[0], batch
    for order in orders:
        count = min(order.left, room) if order is first or _share_engines(order, first) else 0
        if count:
            shares.append(Share(order=order, count=count))
            room -= count
    return shares


def _share_engines(one: Order, other: Order) -> bool:
    """Whether one run may draw two orders: by the same bundle, which may have been replaced between
    them, and where guidance is true guidance, which is of a whole run, by the same scale.
    """
    if one.hold is None or other.hold is None or one.hold.bundle is not other.hold.bundle:
        return False
    return one.guidance == other.guidance or model_facts(one.bucket.model).guidance


def draw(shares: Sequence[Share], meters: Meters) -> list[float]:
    """Draw a run, and tell its orders; the seconds of each picture that came of it.

    What fails is told to the orders that it is of. Nothing is raised but by `tell`.
    """
    hold = shares[0].order.hold
    try:
        if hold is None:
            raise RuntimeError("an order that was not put")
        pipeline = hold.pipeline
        if hold.bundle.batch == 1:
            return _alone(pipeline, shares[0].order, meters)
        ready = [share for share in shares if _is_prepared(pipeline, share.order)]
        return _together(pipeline, ready, meters) if ready else []
    except Cancelled:
        return []  # whoever cancelled it knows
    except Exception as error:
        _LOG.exception("a request failed")
        if len(shares) > 1:
            # One of them may be the reason. The others shall not suffer.
            return [spent for share in shares for spent in draw([share], meters)]
        shares[0].order.fail(error)
        return []


def _alone(pipeline: FrescoPipeline, order: Order, meters: Meters) -> list[float]:
    """The next picture of an order, by engines that draw one at a time."""
    seed, tokens = order.seeds[order.done], pipeline.prompt_tokens(order.prompt)
    with client_warnings() as said:
        result = pipeline(
            order.prompt,
            image=order.source,
            mask=order.mask,
            seed=seed,
            guidance=order.guidance,
            on_stage=_preview(order),
            cancel=order.cancelled.is_set,
        )
    meters.drawn(order.bucket, result, pipeline.device)
    seconds = result.seconds.total
    _tell(order, result.images[0], seconds, tokens, tuple(said))
    return [seconds]


def _is_prepared(pipeline: FrescoPipeline, order: Order) -> bool:
    """Read an order's prompt, if that was not done yet. One that cannot be read fails by itself."""
    if order.prepared is not None:
        return True
    began, count = perf_counter(), len(order.seeds)
    asked = Asked(
        prompt=order.prompt,
        seed=order.seeds,
        num_images_per_prompt=count,
        guidance=order.guidance,
        image=order.source,
        mask=order.mask,
        cancel=order.cancelled.is_set,
    )
    try:
        with client_warnings() as said:
            pictures = pipeline.prepare(asked, on_stage=_preview(order))
        tokens = pipeline.prompt_tokens(order.prompt)
    except Cancelled:
        return False
    except Exception as error:
        _LOG.exception("a request failed")
        order.fail(error)
        return False
    order.prepared = Prepared(
        pictures=pictures, tokens=tokens, warnings=tuple(said), seconds=perf_counter() - began
    )
    return True


def _together(pipeline: FrescoPipeline, shares: Sequence[Share], meters: Meters) -> list[float]:
    """Pictures of several orders in one run. Raises what the engines raise, and Cancelled once
    nobody wants any of them.
    """
    wanted = [
        (share.order, ready, picture)
        for share in shares
        if (ready := share.order.prepared) is not None
        for picture in ready.pictures[share.order.done :][: share.count]
    ]
    began = perf_counter()
    drawn = pipeline.draw([picture for _, _, picture in wanted])
    total = perf_counter() - began
    result = _result(pipeline, wanted, drawn, total)
    meters.drawn(wanted[0][0].bucket, result, pipeline.device)
    each = total / len(wanted)
    for (order, ready, _), image in zip(wanted, drawn.images, strict=True):
        if image is not None:
            _tell(order, image, each, ready.tokens, ready.warnings)
    return [each] * len(wanted)


def _result(
    pipeline: FrescoPipeline,
    wanted: Sequence[tuple[Order, Prepared, Picture]],
    drawn: drawing.Drawn,
    total: float,
) -> Result:
    """A run as the metrics have it: without what was cancelled meanwhile."""
    pairs = [(image, each[2].seed) for image, each in zip(drawn.images, wanted, strict=True)]
    text = {id(order): ready.seconds for order, ready, _ in wanted if not order.done}
    seconds = Seconds(
        total=total,
        text=sum(text.values()),
        denoise=drawn.denoise,
        engines=drawn.engines,
        decode=drawn.decode,
    )
    return Result(
        images=[image for image, _ in pairs if image is not None],
        seeds=tuple(seed for image, seed in pairs if image is not None),
        nfe=pipeline.plan.nfe,
        seconds=seconds,
        steps=drawn.steps,
        runs=(len(wanted),),
    )


def _preview(order: Order) -> drawing.OnStage | None:
    if not order.previews:
        return None

    def preview(stage: int, image: Image) -> None:
        if stage <= order.previews:
            order.tell(Preview(stage=stage, image=image))

    return preview


def _tell(order: Order, image: Image, seconds: float, tokens: int, said: tuple[str, ...]) -> None:
    """A picture of an order is there: the next of its seeds."""
    seed = order.seeds[order.done]
    order.done += 1
    order.tell(Drawn(image=image, seed=seed, seconds=seconds, tokens=tokens, warnings=said))


@contextmanager
def client_warnings() -> Iterator[list[str]]:
    """What is said of prompts and edits in the scope is for clients, and all else for the log."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        for category in _FOR_CLIENTS:
            warnings.simplefilter("always", category)
        yield said
    for each in caught:
        if issubclass(each.category, _FOR_CLIENTS):
            said.append(str(each.message))
        else:
            _LOG.warning("%s", each.message)
