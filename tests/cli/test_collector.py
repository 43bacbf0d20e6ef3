"""The garbage collector looks rarely while a command starts, and as usual afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fresco_trt.cli import collector
from fresco_trt.cli.main import main

USUAL = (700, 10, 10)


@pytest.fixture(autouse=True)
def _as_usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    monkeypatch.setattr(collector, "_USUALLY", USUAL)
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_a_command_leaves_the_collector_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "none"]) == 2
    assert gc.get_threshold() == USUAL
    capsys.readouterr()


def test_it_collects_rarely_until_all_is_loaded() -> None:
    with collector.collecting_rarely():
        assert gc.get_threshold()[0] > 100 * USUAL[0]
        collector.collect_as_usual()
        assert gc.get_threshold() == USUAL
        assert gc.get_freeze_count() > 0
