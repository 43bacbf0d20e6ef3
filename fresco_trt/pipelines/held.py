"""One bundle in service: its pipeline once somebody needs it, who holds it, and its end.

Under `FrescoPipelines`, which may put another bundle in its place at any moment. Requests that hold
the old one end with it; its engines are freed by whoever lets go of it last.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from fresco_trt.bundle import Bundle
    from fresco_trt.pipelines.image import FrescoPipeline


class Served:
    """A bundle and, from the first need on, its pipeline. May be used from several threads."""

    def __init__(self, bundle: Bundle, load: Callable[[Bundle], FrescoPipeline]) -> None:
        self.bundle = bundle
        self._load = load
        self._loading, self._counting = Lock(), Lock()
        self._pipeline: FrescoPipeline | None = None
        self._holds: set[Hold] = set()
        self._retired = False

    @property
    def pipeline(self) -> FrescoPipeline:
        """Loaded if it was not; raises as `load`."""
        with self._loading:
            if self._pipeline is None:
                self._pipeline = self._load(self.bundle)
            return self._pipeline

    def hold(self) -> Hold:
        """Keep it open for one request; not to be asked of one that is retired."""
        hold = Hold(self)
        with self._counting:
            self._holds.add(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """A request has ended. One that ends twice has ended once."""
        with self._counting:
            last = self._retired and self._holds == {hold}
            self._holds.discard(hold)
        if last:
            self.close()

    def retire(self) -> None:
        """No new request will come: close it when the last that holds it ends, or now."""
        with self._counting:
            self._retired = True
            idle = not self._holds
        if idle:
            self.close()

    def close(self) -> None:
        """Free its engines, after the request that is being drawn."""
        with self._loading:
            pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.close()


class Hold:
    """Keeps a bundle in service for one request, whatever is put in its place meanwhile.

    As a context manager it gives the pipeline; or call `release`.
    """

    def __init__(self, served: Served) -> None:
        self._served = served

    @property
    def bundle(self) -> Bundle:
        """What is drawn with."""
        return self._served.bundle

    @property
    def pipeline(self) -> FrescoPipeline:
        """Its pipeline, loaded if it was not; raises as `FrescoPipeline.from_bundle`."""
        return self._served.pipeline

    def release(self) -> None:
        """The request has ended. The last one that holds a bundle which was replaced frees it."""
        self._served.release(self)

    def __enter__(self) -> FrescoPipeline:
        try:
            return self.pipeline
        except BaseException:
            self.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
