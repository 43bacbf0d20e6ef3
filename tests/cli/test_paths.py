"""A path that no system call takes is refused in words by every door, before anything is done."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import fresco_trt
from fresco_trt.cli.command import PATHS
from fresco_trt.cli.main import app, main
from fresco_trt.errors import DiskFull, InvalidArgument
from fresco_trt.plan.arguments import place
from fresco_trt.plan.config import CacheConfig, QuantConfig
from fresco_trt.plan.paths import paths_refused

LONG = {"long": "x" * 5_000, "long name": "x" * 300}
UNDECODABLE = {"not UTF-8": os.fsdecode(b"a\xffb"), "half": "a\ud800b", "zero": "a\0b"}
HOSTILE = LONG | UNDECODABLE
TINY = ["--model", "flux-tiny"]
BUILD = ["build", *TINY, "--stages", "2", "--backend", "eager"]
COMMANDS = {
    "plan": ["plan", *TINY, "--plan"],
    "out": [*BUILD, "--out"],
    "dry run": [*BUILD, "--dry-run", "--out"],
    "weights": [*BUILD, "--weights"],
    "graphs": [*BUILD, "--graphs"],
    "basis": [*BUILD, "--cache", "svd,basis="],
    "amax": [*BUILD, "--precision", "int8,amax="],
    "engines": ["generate", "--prompt", "x", "--engines"],
    "picture": ["generate", "--prompt", "x", "--engines", "x", "--out"],
    "key": ["inspect", "x", "--verify-key"],
    "folder": ["inspect"],
    "verify": ["verify", "--engines"],
    "sign": ["sign", "--engines", "x", "--key"],
    "prompts": ["calibrate", *TINY, "--measure", "basis", "--prompts"],
    "report": ["bench", *TINY, "--out"],
    "tune": ["tune", *TINY, "--speed", "2", "--prompts"],
}


@pytest.mark.parametrize("path", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_refuses_it_by_the_option(
    command: list[str], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    *words, last = command
    given = [*words, last + path] if last.endswith("=") else [*words, last, path]
    assert main(given) == 2
    said = capsys.readouterr().err
    if path in UNDECODABLE.values() and "Usage: " in said:
        return  # an argument of no text, as typer itself says
    assert said.removesuffix("\n").isprintable()
    assert len(said) < 700
    assert "expected a path that this system takes" in said


@pytest.mark.parametrize("path", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "call",
    [
        lambda path: fresco_trt.build("flux-tiny", stages=2, backend="eager", out=path),
        lambda path: fresco_trt.build("flux-tiny", stages=2, backend="eager", weights=path),
        lambda path: fresco_trt.tune("flux-tiny", speed=2.0, out=path),
        lambda path: fresco_trt.FrescoPipeline.from_bundle(path),
        lambda path: fresco_trt.FrescoPipeline.from_bundle(Path(path)),
        lambda path: fresco_trt.FrescoPipeline.from_bundle("x", verify_key=path),
        lambda path: fresco_trt.enable(None, engines=path),
        lambda path: CacheConfig(name="svd", basis=Path(path)),
        lambda path: QuantConfig(precision="int8", amax=Path(path)),
    ],
)
def test_a_call_refuses_it_by_the_argument(call: Callable[[Any], Any], path: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a path that this system takes") as caught:
        call(path)
    assert len(str(caught.value)) < 400


def test_a_ring_of_links_is_refused_and_what_may_come_to_be_is_not(tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(InvalidArgument, match="symbolic links"):
        place("out", tmp_path / "ring" / "x")
    (tmp_path / "file").touch()
    for path in (tmp_path / "new", tmp_path / "file" / "x", "\u00e4"):
        assert place("out", path) == Path(path)


def test_every_option_that_is_a_path_is_known_as_one() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback)
        paths = {name for name, kind in hints.items() if Path in (kind, *get_args(kind))}
        assert paths <= PATHS


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, InvalidArgument), (errno.ENOSPC, DiskFull)]
)
def test_what_the_system_refuses_of_a_path_later_is_typed(number: int, kind: type) -> None:
    with pytest.raises(kind, match=r"^/x/y cannot be used: "), paths_refused():
        raise OSError(number, os.strerror(number), "/x/y")
    with pytest.raises(OSError, match="of no path"), paths_refused():
        raise OSError(number, "of no path")
