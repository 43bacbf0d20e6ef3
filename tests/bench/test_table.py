"""The README's figures are those of the stored files, to the digit."""

from __future__ import annotations

from pathlib import Path

from fresco_trt.bench.table import fitness_table, main_job_table, stored

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_stored_main_job() -> None:
    assert main_job_table(stored("main-job")) in README


def test_the_readme_shows_the_stored_fitness_of_the_demo() -> None:
    assert fitness_table(stored("demo-fitness")) in README
