"""Programs in forks of one process: for all processes of a run, each with its own environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.once import shared_folder
from tests.preloaded import Preloaded


@pytest.mark.slow
def test_another_process_of_the_run_is_served_by_the_one_that_is_there(
    preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    place = shared_folder(tmp_path_factory) / "preloaded"
    address = place.read_text()
    code = "import os, sys; print(os.environ['GIVEN'], 'PATH' in os.environ, len(sys.argv))"
    with Preloaded(place.parent, tmp_path) as other:
        done = other.run(code, tmp_path, environment={"GIVEN": "here"})
    assert (done.status, done.said) == (0, "here True 1\n")
    assert place.read_text() == address
    assert preloaded.run("raise SystemExit(3)", tmp_path).status == 3
    assert preloaded.run(code, tmp_path).said.endswith("KeyError: 'GIVEN'\n")


@pytest.mark.slow
def test_a_shell_calls_the_command_as_if_it_were_installed(
    preloaded: Preloaded, tmp_path: Path
) -> None:
    code = """
fresco-trt plan --model flux-tiny --json > plan.json
fresco-trt plan --model why || echo "ended with $?"
fresco-trt inspect "a folder" | cat
echo not reached
"""
    environment = {"COLUMNS": "200"}
    done = preloaded.shell(code, tmp_path, environment=environment)
    assert json.loads((tmp_path / "plan.json").read_text())["model"] == "flux-tiny"
    first, told, last = done.said.splitlines()
    assert "'why'" in first
    assert told == "ended with 2"
    assert "a folder" in last
    assert done.status == 2
