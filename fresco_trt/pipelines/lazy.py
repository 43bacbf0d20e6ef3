"""An engine that is loaded at its first call.

In the place of a runner that is entered when its bundle is loaded: a stage that no request has come
to takes no memory and no time.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.backends.cuda_graph import Graph


class LazyRunner:
    """A :class:`~fresco_trt.backends.base.Runner` around another one, which it enters itself.

    ``enter`` enters the runner inside into the scope that it is given. Where it raises, the next
    call tries again.
    """

    def __init__(self, runner: Runner, enter: Callable[[Runner, ExitStack], None]) -> None:
        self.signature = runner.signature
        self._runner, self._enter = runner, enter
        self._scope = ExitStack()
        self._is_open = self._is_loaded = False

    @property
    def graph(self) -> Graph | None:
        """What its calls are queued through, as that of the runner inside."""
        return getattr(self._runner, "graph", None)

    def __enter__(self) -> Self:
        self._is_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_open = self._is_loaded = False
        self._scope.close()

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As :class:`~fresco_trt.backends.base.Runner`; the first call raises as ``enter`` too."""
        if self._is_open and not self._is_loaded:
            self._enter(self._runner, self._scope)
            self._is_loaded = True
        return self._runner(inputs)
