"""What the tests share is shared without waiting for itself."""

from __future__ import annotations

import pytest

from fresco_trt.lower import export
from tests.once import traced_once


def test_a_scope_within_another_takes_what_traces_and_not_the_others_memory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # It would wait for ever for a lock that the outer one holds.
    with pytest.MonkeyPatch.context() as patch:

        def traces() -> None: ...

        patch.setattr(export, "_traced", traces)
        with traced_once(tmp_path_factory), traced_once(tmp_path_factory):
            assert vars(export._traced)["__wrapped__"] is traces
        assert export._traced is traces
