"""torch's recompile limit: the fallback that happens before a graph is captured.

Beside the compilation. Past the limit torch runs a function's new shapes without asking any
backend. It says so in its log alone, so that is where this listens.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import WeakSet

from torch._dynamo.callback import callback_handler
from torch._guards import CompileContext

from fresco_trt.compile.counting import COUNT
from fresco_trt.errors import UnsupportedGraph

if TYPE_CHECKING:
    from fresco_trt.compile.engine import CompiledGraph

_LOGGER = logging.getLogger("torch._dynamo.convert_frame")
_TOLD = "torch._dynamo hit config."
FIX = (
    "pass torch.compile a larger recompile_limit, or dynamic=True, which captures a graph once"
    " for all shapes"
)

_graphs: WeakSet[CompiledGraph] = WeakSet()


def frame() -> int | None:
    """torch's number of the function that it is compiling in this thread."""
    found = CompileContext.current_compile_id()
    return None if found is None else found.frame_id


def watch(graph: CompiledGraph) -> None:
    """Count it as a fallback when the function of ``graph`` reaches the limit.

    With the graph's option ``strict`` that call raises UnsupportedGraph.
    """
    _watched().add(graph)
    if _LISTENER not in _LOGGER.handlers:
        _LOGGER.addHandler(_LISTENER)


def _watched() -> WeakSet[CompiledGraph]:
    """The graphs whose numbers still mean the functions that they meant.

    ``torch._dynamo.reset()`` has torch number its functions anew, while a graph of before may live
    on. It forgets callbacks too, and so the mark.
    """
    if _mark not in callback_handler.start_callbacks:
        _graphs.clear()
        callback_handler.register_start_callback(_mark)
    return _graphs


def _mark(_: object) -> None:
    """What torch calls when it begins to compile, until it is reset."""


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """As torch reports the limit: its name, its value, the function, the last guard."""
        if not (str(record.msg).startswith(_TOLD) and isinstance(record.args, tuple)):
            return
        found = [each for each in _watched() if each.frame is not None and each.frame == frame()]
        if not found:
            return
        limit, value, function = record.args[:3]
        given = f"torch's {limit} of {value} is reached by {function}"
        if any(each.strict for each in found):
            raise UnsupportedGraph(given, expected="fewer shapes and values", fix=FIX)
        COUNT.fell_back(given)


_LISTENER = _Listener(logging.WARNING)
