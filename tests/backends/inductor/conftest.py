"""What the tests of inductor share: a cache folder of their own, where builds leave their logs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is not there yet."""
    folder = tmp_path_factory.mktemp("cached") / "cache"
    monkeypatch.setenv("FRESCO_TRT_CACHE", str(folder))
    return folder
