"""The README's figures are those of the stored files, to the digit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tables import readme_tables

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", list(readme_tables()))
def test_the_readme_shows_what_is_stored(table: str) -> None:
    assert table in README
