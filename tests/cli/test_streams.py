"""The door: what a stranger's text and the system itself can do to a command's streams."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fresco_trt.cli.main import main
from fresco_trt.errors import PlanError

CLIPBOARD = "a\x1b]52;c;aGVsbG8=\x07\u202eb\n"
LONG = "x" * 5_000
PLAN = [sys.executable, "-m", "fresco_trt.cli", "plan", "--model", "flux-tiny", "--stages", "2"]


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", LONG],
        ["generate", "--engines", LONG, "--prompt", "x"],
        ["plan", "--model", "flux-tiny", "--plan", LONG],
        ["plan", "--model", "flux-tiny", "--stages", "2", "--cache", CLIPBOARD],
        ["plan", "--model", CLIPBOARD, "--stages", "2"],
        ["plan", "--model", "flux-tiny", "--plan", "\udcff"],
        ["plan", "--model", "flux-tiny", "--stages", "2", "--preset", "turbo,shift=1e-300"],
    ],
)
def test_a_hostile_argument_is_refused_in_one_short_printable_line(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    said = capsys.readouterr().err.removesuffix("\n")
    assert said.isprintable()
    assert len(said) < 1_500


def test_a_message_is_one_printable_line_whatever_it_repeats() -> None:
    error = PlanError(CLIPBOARD * 200, expected="a\nb", fix="c")
    error.context = (CLIPBOARD,)
    assert str(error).isprintable()
    assert len(str(error)) < 600


def test_a_full_standard_output_is_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(PLAN, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "standard output" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_closed_standard_output_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(PLAN[3:]) == 2
    assert "standard output" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_nobody_to_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(os.fdopen(writing, "wb", 0), write_through=True) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(PLAN[3:]) == 1
    assert not capsys.readouterr().err
