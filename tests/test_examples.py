"""Every example is run as its first lines say, and does what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.preloaded import Preloaded, environment_with

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(preloaded: Preloaded, name: str, folder: Path) -> str:
    """What an example prints when it is run in ``folder``."""
    example = ROOT / "examples" / f"{name}.py"
    code = example.read_text(encoding="utf-8")
    environment = environment_with(folder / "cache")
    done = preloaded.run(code, folder, str(example), environment=environment)
    assert done.status == 0, done.said[-6000:]
    return done.said


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it(example: Path) -> None:
    assert f"python examples/{example.name}" in example.read_text(encoding="utf-8")


def test_plans_are_compared(tmp_path: Path, preloaded: Preloaded) -> None:
    lines = run(preloaded, "plan", tmp_path).splitlines()
    assert len(lines) == 6
    assert all(line.endswith("x fewer FLOPs") for line in lines)


@pytest.mark.slow
def test_a_bundle_draws_a_picture_and_a_preview(tmp_path: Path, preloaded: Preloaded) -> None:
    run(preloaded, "build_and_generate", tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"stage1.png", "picture.png"}
    assert (tmp_path / "bundle" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_pipeline_is_as_it_was(tmp_path: Path, preloaded: Preloaded) -> None:
    said = run(preloaded, "enable", tmp_path)
    assert said.splitlines()[-1] == "as it was: True"


@pytest.mark.slow
def test_a_cache_of_ones_own_is_compared_with_others(tmp_path: Path, preloaded: Preloaded) -> None:
    lines = run(preloaded, "own_cache", tmp_path).splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["reuse", "taylor,max_order=1", "fading"]
    assert all(float(line.split()[1]) > 15 for line in lines)


@pytest.mark.slow
def test_a_family_of_ones_own_draws_what_it_knows(tmp_path: Path, preloaded: Preloaded) -> None:
    said = run(preloaded, "own_family", tmp_path)
    assert said.splitlines()[-1].endswith("[191, 183, 175, 167, 159, 151, 143, 135]")
    assert (tmp_path / "fading.png").is_file()
