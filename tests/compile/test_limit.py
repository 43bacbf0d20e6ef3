"""torch's recompile limit: what falls back before a graph is captured is counted all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.compile import counters, limit
from fresco_trt.errors import UnsupportedGraph
from tests.compile.compiling import compiled, since

pytestmark = pytest.mark.usefixtures("torch_tensorrt")  # the quickest to build


def twice(x: Tensor) -> Tensor:
    return x * 2.0


def thrice(x: Tensor) -> Tensor:
    return x * 3.0


def test_past_the_recompile_limit_each_function_is_a_fallback_with_its_reason(cache: Path) -> None:
    before = counters()
    with torch._dynamo.config.patch(recompile_limit=1):
        for function in (twice, thrice):
            fast = compiled(function, cache, backend="torch-tensorrt")
            for rows in (1, 2, 3):
                assert torch.equal(fast(torch.ones(rows, 2)), function(torch.ones(rows, 2)))
        other = torch.compile(lambda x: x - 1.0, backend="eager", dynamic=False)
        for rows in (1, 2):
            other(torch.ones(rows, 2))
    assert since(before) == (2, 0, 2)
    reasons = sorted(counters().fell_back.keys() - before.fell_back.keys())
    assert [reason.split(" (")[0] for reason in reasons] == [
        "torch's recompile_limit of 1 is reached by 'thrice'",
        "torch's recompile_limit of 1 is reached by 'twice'",
    ]


def test_strict_refuses_what_is_past_the_limit_and_keeps_what_is_not(cache: Path) -> None:
    before, fast = counters(), compiled(twice, cache, strict=True, backend="torch-tensorrt")
    with torch._dynamo.config.patch(recompile_limit=1):
        fast(torch.ones(1, 2))
        for _ in range(2):
            with pytest.raises(UnsupportedGraph, match=r"recompile_limit of 1.*larger recompile_l"):
                fast(torch.ones(2, 2))
        assert torch.equal(fast(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    assert since(before) == (1, 0, 0)


def test_after_a_reset_a_graph_that_lives_on_has_no_part_in_what_gets_its_number(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch numbers its functions anew then, and who holds a graph may be as slow to let go as the
    garbage collector.
    """
    held, watch, before = list[Any](), limit.watch, counters()
    monkeypatch.setattr(limit, "watch", lambda graph: watch(graph) or held.append(graph))
    for strict in (True, False):
        compiled(twice, cache, strict=strict, backend="torch-tensorrt")(torch.ones(1, 2))
        torch._dynamo.reset()
        other = torch.compile(lambda x: x - 1.0, backend="eager", dynamic=False)
        with torch._dynamo.config.patch(recompile_limit=1):
            for rows in (1, 2):
                other(torch.ones(rows, 2))
        torch._dynamo.reset()
    assert len(held) == 2
    assert since(before) == (1, 1, 0)
