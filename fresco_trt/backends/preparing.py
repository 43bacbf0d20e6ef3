"""What a library may do for all graphs of a bundle before it builds them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend, BuildOptions, StageGraph


@runtime_checkable
class Prepares(Protocol):
    """A :class:`~fresco_trt.backends.base.Backend` that does at once what many graphs share, or
    what can be done side by side.
    """

    def prepare(self, graphs: Sequence[StageGraph], options: BuildOptions) -> None:
        """What ``build`` of each of ``graphs`` then finds done; refuses and raises as it does."""
        ...


def prepare(backend: Backend, graphs: Sequence[StageGraph], options: BuildOptions) -> None:
    """Have a library that :class:`Prepares` do so; any other builds each graph as it comes."""
    if isinstance(backend, Prepares):
        backend.prepare(graphs, options)
