"""Laws of compiling side by side: every core, no process and no half file left, errors by name.

The processes here run a few lines in place of torch's compiler; ``tests/once.py`` has the pieces of
a model compiled by the real ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from fresco_trt.backends.inductor import pool
from fresco_trt.backends.inductor.build import shapes_of
from fresco_trt.backends.inductor.pool import Piece, compile_pieces, room, side_by_side
from fresco_trt.backends.inductor.worker import packed, set_state, state, unpacked
from fresco_trt.errors import BuildError, DiskFull, FrescoError
from fresco_trt.plan.signature import GraphSignature, TensorSpec

SIGNATURE = GraphSignature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
)

# ``met`` is a folder that all of a test's processes see; a process's own file in it has its pid.
WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
met = Path({met!r})
def together(count):
    end = time.monotonic() + 20
    while len(list(met.iterdir())) < count and time.monotonic() < end:
        time.sleep(0.01)
for line in sys.stdin:
    task = json.loads(line)
    path, answer = Path(task["path"]), {{}}
    (met / str(os.getpid())).touch()
{lines}
    print(json.dumps(answer), flush=True)
"""
WRITES = "path.write_text(json.dumps(task))"


@pytest.fixture
def met(tmp_path: Path) -> Path:
    folder = tmp_path / "met"
    folder.mkdir()
    return folder


@pytest.fixture
def running(met: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have every process do these lines for a piece, on a machine of three cores."""

    def use(*lines: str) -> None:
        text = WORKER.format(met=str(met), lines="\n".join(f"    {line}" for line in lines))
        monkeypatch.setattr(pool, "_CHILD", text)

    monkeypatch.setattr(pool, "usable_cores", lambda: 3)
    monkeypatch.setattr(pool, "free_memory", lambda: None)
    return use


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the pieces are written."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def pieces_of(folder: Path, count: int, layer: Any = None) -> list[Piece]:
    return [
        Piece(
            layer=layer or torch.nn.Linear(2, 2),
            signature=SIGNATURE,
            path=folder / f"piece-{number}.pt2",
        )
        for number in range(count)
    ]


def compile_all(pieces: Sequence[Piece], threads: int | None = None) -> list[str]:
    """The names that were told."""
    told: list[str] = []
    compile_pieces(pieces, "cpu", threads, told.append)
    return told


def gone(pid: int) -> bool:
    """Whether a process ends soon, or has."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


# --- how many ---------------------------------------------------------------------------------


def test_every_core_is_used_at_once(running: Callable[..., None], met: Path, out: Path) -> None:
    running("together(3)", "assert len(list(met.iterdir())) == 3", WRITES)
    pieces = pieces_of(out, 7)
    told = compile_all(pieces)
    assert len(list(met.iterdir())) == 3
    assert sorted(told) == [piece.name for piece in pieces]
    assert sorted(out.iterdir()) == [piece.path for piece in pieces]
    assert all('"threads": 1' in piece.path.read_text() for piece in pieces)
    assert all(gone(int(path.name)) for path in met.iterdir())


@pytest.mark.parametrize(
    ("pieces", "cores", "memory", "threads", "expected"),
    [
        (13, 16, 125_000_000_000, None, 13),
        (13, 8, 125_000_000_000, None, 8),
        (13, 16, 6_100_000_000, None, 4),
        (13, 16, None, 2, 2),
        (13, 16, 0, None, 1),
        (1, 16, None, None, 1),
    ],
)
def test_there_are_as_many_processes_as_there_is_room_for(
    pieces: int,
    cores: int,
    memory: int | None,
    threads: int | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "usable_cores", lambda: cores)
    monkeypatch.setattr(pool, "free_memory", lambda: memory)
    assert room(pieces, "cpu", threads) == expected


def test_memory_of_the_gpu_bounds_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "usable_cores", lambda: 16)
    monkeypatch.setattr(pool, "free_memory", lambda: 125_000_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7_000_000_000, 80_000_000_000))
    assert room(13, "cuda", None) == 3


@pytest.mark.parametrize(("count", "threads"), [(1, None), (3, 1)])
def test_one_piece_or_one_core_needs_no_other_process(
    count: int,
    threads: int | None,
    running: Callable[..., None],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running("raise SystemExit('not here')")
    compiled: list[Path] = []
    monkeypatch.setattr(pool, "compile_layer", lambda *given: compiled.append(given[2]))
    pieces = pieces_of(out, count)
    assert compile_all(pieces, threads) == [piece.name for piece in pieces]
    assert compiled == [piece.path for piece in pieces]


def test_what_no_other_process_can_know_is_compiled_in_this_one(
    running: Callable[..., None], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Script(torch.nn.Linear):
        """As a script would define it."""

    Script.__module__ = "__main__"
    local = torch.nn.Linear(2, 2)
    local.hook = lambda: None
    compiled: list[str] = []
    monkeypatch.setattr(pool, "compile_layer", lambda *given: compiled.append(given[2].stem))
    running(WRITES)
    pieces = pieces_of(out, 4)
    own = [
        Piece(layer=layer, signature=SIGNATURE, path=out / f"{name}.pt2")
        for name, layer in (("script", Script(2, 2)), ("local", local))
    ]
    told = compile_all([*pieces, *own])
    assert compiled == ["script", "local"]
    assert sorted(told) == sorted(piece.name for piece in (*pieces, *own))
    assert sorted(out.iterdir()) == [piece.path for piece in pieces]


# --- what goes wrong --------------------------------------------------------------------------

_FIRST = "together(3)\n    first = str(os.getpid()) == min(p.name for p in met.iterdir())"
_FULL = {"error": "DiskFull", "given": "no room", "expected": "room", "fix": "make some"}


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        (f"answer = {_FULL}", DiskFull, "no room; expected room. Fix: make some"),
        (
            "answer = {'error': None, 'given': 'OSError: x'}",
            BuildError,
            "the process that compiled piece-. failed: OSError: x",
        ),
        (
            "print('$ g++ x', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGKILL)",
            BuildError,
            r"piece-. was ended by SIGKILL; .* in .*\.log",
        ),
        ("raise SystemExit('bad news')", BuildError, r"exit status 1: bad news; .* in .*\.log"),
    ],
)
def test_an_error_is_passed_on_and_ends_the_others(
    line: str,
    kind: type[FrescoError],
    words: str,
    running: Callable[..., None],
    met: Path,
    out: Path,
    cache: Path,
) -> None:
    running(_FIRST, "if not first: time.sleep(60)", line)
    with pytest.raises(kind, match=words) as caught:
        compile_all(pieces_of(out, 5))
    assert type(caught.value) is kind or kind is BuildError
    # The process that died leaves what it said; those that were ended for it leave nothing.
    logs = [path.read_text() for path in cache.rglob("*.log")]
    assert len(logs) == ("in .*" in words)
    assert all("$ g++ x" in each or "bad news" in each for each in logs)
    assert list(out.iterdir()) == []
    assert all(gone(int(path.name)) for path in met.iterdir())


def test_an_interrupt_leaves_no_process_and_nothing_half_written(
    running: Callable[..., None], met: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(
        "path.write_text('half')",
        "compiler = subprocess.Popen(['sleep', '60'], stdout=2)",
        "(met / str(compiler.pid)).touch()",
        "time.sleep(60)",
    )

    def interrupted(futures: Sequence[Future[None]], **options: Any) -> None:
        end = time.monotonic() + 20
        while len(list(met.iterdir())) < 6 and time.monotonic() < end:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compile_all(pieces_of(out, 4))
    assert list(out.iterdir()) == []
    pids = [int(path.name) for path in met.iterdir()]
    assert len(pids) == 6
    assert os.getpid() not in pids
    assert all(map(gone, pids))


def test_a_listener_that_raises_stops_the_build(
    running: Callable[..., None], met: Path, out: Path
) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError(f"{name} is enough")

    running(WRITES)
    pieces = pieces_of(out, 40)
    with pytest.raises(RuntimeError, match="is enough"):
        side_by_side(dict.fromkeys(pieces, ""), "cpu", 2, None, refuse)
    assert 0 < len(list(out.iterdir())) < 40
    assert all(gone(int(path.name)) for path in met.iterdir())


# --- a piece without its weights --------------------------------------------------------------


class Odd(torch.nn.Module):
    """Weights of several types, one of them laid out by columns, and a tensor that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Parameter(torch.ones(8, 4).T, requires_grad=False)
        self.codes = torch.nn.Parameter(
            torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False
        )
        self.register_buffer("scale", torch.ones(4, dtype=torch.bfloat16))
        self.tied = self.wide
        self.order = torch.arange(3)


def test_a_piece_is_told_without_its_weights() -> None:
    layer = Odd()
    before = dict(layer.named_parameters())
    text = packed(layer, SIGNATURE)
    assert all(value is before[name] for name, value in layer.named_parameters())
    assert not layer.wide.is_meta
    other, signature = unpacked(text, "cpu")
    assert signature == SIGNATURE
    assert shapes_of(other) == shapes_of(layer)
    assert other.wide.stride() == layer.wide.stride() != (8, 1)
    assert other.tied is other.wide
    assert torch.equal(other.order, layer.order)
    assert not torch.equal(other.wide, layer.wide)
    big = packed(torch.nn.Linear(4000, 4000, device="meta"), SIGNATURE)
    assert len(big) < 20_000


def test_a_piece_with_much_beside_its_weights_is_not_told() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.table = torch.zeros(17_000_000)
    with pytest.raises(ValueError, match="beside the weights"):
        packed(layer, SIGNATURE)


def test_what_a_program_has_set_of_torch_is_told() -> None:
    before = state()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_flash_sdp(False)
        told = state()
        set_state(before)
        assert state() == before != told
        set_state(told)
        assert torch.get_float32_matmul_precision() == "high"
        assert not torch.backends.cuda.flash_sdp_enabled()
    finally:
        set_state(before)
