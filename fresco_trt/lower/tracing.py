"""What torch's exporter does for every operator and nobody here reads: left out, or done once.

Around the tracing of a graph. Neither changes a graph: a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

_UNSEEN = "do_not_emit_stack_traces"


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Within the scope, torch does not note for each operator which lines of Python called it.

    That is a tenth of a trace, and no graph keeps it. A torch that has no such setting notes them.
    """
    from torch.fx import config

    settings: Any = config
    before = getattr(settings, _UNSEEN, None)
    if before is None:
        yield
        return
    setattr(settings, _UNSEEN, True)
    try:
        yield
    finally:
        setattr(settings, _UNSEEN, before)


@contextmanager
def signatures_once() -> Iterator[None]:
    """Within the scope, what an ONNX operator takes is read from its schema once, not a call."""
    if find_spec("onnx_ir.schemas") is None:
        yield
        return
    from onnx_ir.schemas import OpSignature

    kind: Any = OpSignature
    before, known = vars(kind)["from_op_schema"], dict[tuple[str, str, int], Any]()

    def once(asked: Any, schema: Any) -> Any:
        key = schema.domain, schema.name, schema.since_version
        if key not in known:
            known[key] = before.__func__(asked, schema)
        return known[key]

    kind.from_op_schema = classmethod(once)
    try:
        yield
    finally:
        kind.from_op_schema = before
