"""Attention chosen by measuring: the fastest that is exact, kept in the code's name and beside it.

No GPU: a script says how long each kind takes and how far it errs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor import build as inductor_build
from fresco_trt.backends.inductor import naming, pool, worker
from fresco_trt.backends.inductor.attention import (
    DEFAULT,
    KINDS,
    CudaTrial,
    Operands,
    attention_of,
    choose,
    read_choices,
    trial_of,
    using,
    write_choices,
)
from fresco_trt.backends.inductor.backend import InductorBackend
from fresco_trt.backends.inductor.naming import ATTENTION
from fresco_trt.cli import inspect
from fresco_trt.cli.tables import attention_lines
from fresco_trt.errors import EngineFailed
from fresco_trt.lower.weights import write_source
from fresco_trt.models.family import Part
from fresco_trt.models.flux.blocks import cut
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.signatures import full_signature
from tests.shallow import FACTS, shallow_transformer

OPERANDS = Operands(query=(1, 24, 768, 128), keys=768, dtype="bfloat16")
TIMES = {"default": 1.0, "cudnn": 0.9, "flash": 0.5, "efficient": 2.0}


@dataclass(kw_only=True, slots=True)
class Script:
    """``seconds`` and ``errors`` by kind; one that has no seconds is not there."""

    seconds_of: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    tried: list[tuple[str, Operands]] = field(default_factory=list)

    def error(self, kind: str, operands: Operands) -> float:
        self.tried.append((kind, operands))
        if kind not in self.seconds_of:
            raise RuntimeError(f"No available kernel.\n  Aborting {kind}.")
        return self.errors.get(kind, 1e-3)

    def seconds(self, kind: str, operands: Operands) -> float:
        return self.seconds_of[kind]


# --- choosing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "errors", "chosen"),
    [
        (TIMES, {}, "flash"),
        (TIMES, {"flash": 0.02}, "cudnn"),
        (TIMES, {"flash": float("nan")}, "cudnn"),
        (TIMES, {"default": 0.02}, "flash"),
        ({"default": 1.0, "cudnn": 0.98, "efficient": 1.0}, {}, DEFAULT),
        ({"default": 1.0}, {}, DEFAULT),
        ({}, {}, DEFAULT),
        (TIMES, dict.fromkeys(KINDS, 1.0), DEFAULT),
    ],
)
def test_the_fastest_that_is_exact_is_taken(
    seconds: dict[str, float], errors: dict[str, float], chosen: str
) -> None:
    choice = choose(OPERANDS, Script(seconds_of=seconds, errors=errors))
    assert choice.attention == chosen
    assert choice.seconds.keys() | choice.refused.keys() == set(KINDS)
    assert not choice.seconds.keys() & choice.refused.keys()
    assert choice.errors.keys() == choice.seconds.keys()


def test_why_a_kind_was_not_taken_is_said() -> None:
    choice = choose(
        OPERANDS, Script(seconds_of={"default": 1.0, "flash": 0.5}, errors={"flash": 1})
    )
    told = choice.to_json()
    assert told["attention"] == DEFAULT
    assert told["milliseconds"] == {"default": 1000.0}
    assert told["refused"]["flash"] == "its error 1 is over 0.01"
    assert told["refused"]["cudnn"] == "No available kernel. Aborting cudnn."
    json.dumps(told, allow_nan=False)


def test_a_cpu_has_nothing_to_choose() -> None:
    assert trial_of("cpu") is None


def test_torch_is_told_to_take_one_kind_and_no_other() -> None:
    cuda: Any = torch.backends.cuda

    def allowed() -> list[bool]:
        kinds = ("cudnn", "flash", "mem_efficient", "math")
        return [getattr(cuda, f"{kind}_sdp_enabled")() for kind in kinds]

    before = allowed()
    for kind, there in {"cudnn": 0, "flash": 1, "efficient": 2}.items():
        with using(kind):
            assert allowed() == [number == there for number in range(4)]
        assert allowed() == before
    with using(DEFAULT):
        assert allowed() == before


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_error_is_that_of_torch_to_float32(dtype: str, most: float) -> None:
    operands = Operands(query=(1, 3, 96, 16), keys=80, dtype=dtype)
    assert 0 < CudaTrial("cpu").error(DEFAULT, operands) < most


def test_a_kind_that_computes_something_else_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: products(q, k, 1.1 * v)
    )
    operands = Operands(query=(1, 3, 96, 16), keys=80, dtype="float32")
    assert CudaTrial("cpu").error(DEFAULT, operands) == pytest.approx(0.1, rel=1e-3)


def test_seconds_are_the_median_of_replays_by_the_devices_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([9.0, 40.0, 41.0, 42.0, 39.0, 38.0, 500.0])
    seen: list[str] = []
    event = SimpleNamespace(
        record=lambda: None, synchronize=lambda: None, elapsed_time=lambda _: next(times)
    )

    @contextmanager
    def capturing(graph: Any) -> Iterator[None]:
        seen.append("capture")
        yield

    graph = SimpleNamespace(replay=lambda: seen.append("replay"))
    cuda = SimpleNamespace(
        CUDAGraph=lambda: graph,
        graph=capturing,
        Event=lambda enable_timing: event,
        synchronize=lambda: seen.append("wait"),
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    operands = Operands(query=(1, 1, 2, 4), keys=2, dtype="float32")
    # Milliseconds of 20 calls.
    assert CudaTrial("cpu").seconds(DEFAULT, operands) == pytest.approx(40.0 / 20 / 1e3)
    assert seen == ["wait", "capture", *["replay"] * 8]


@pytest.mark.parametrize("fuse", [False, True])
def test_the_operands_of_a_part_are_found_without_running_it(fuse: bool) -> None:
    signature = full_signature(FACTS, 16, FLUX_TINY.text_tokens)
    graph = graph_from_signature(shallow_transformer(torch.bfloat16), signature)
    found = {
        part.kind: attention_of(part.layers[0], part.signature)
        for part in cut(graph, signature, fuse=fuse).parts
    }
    tokens = 16 + FLUX_TINY.text_tokens
    shape = (1, FACTS.heads, tokens, FACTS.head_dim)
    wanted = Operands(query=shape, keys=tokens, dtype="bfloat16")
    assert {kind: each for kind, each in found.items() if each is not None} == {
        "double": wanted,
        "single": wanted,
    }


# --- building ---------------------------------------------------------------------------------


@pytest.fixture
def graphs(tmp_path: Path) -> list[StageGraph]:
    """Two grids of one model."""
    model = shallow_transformer()
    source = write_source(model, tmp_path / "source")
    return [
        StageGraph(
            name=f"{tokens}",
            signature=signature,
            module=graph_from_signature(model, signature),
            onnx=None,
            weights=None,
            source=source,
            family="flux",
        )
        for tokens in (16, 64)
        for signature in (full_signature(FACTS, tokens, FLUX_TINY.text_tokens),)
    ]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Nothing is compiled: the attention that each piece would have, by its name."""
    pieces: dict[str, str] = {}

    def compile_pieces(given: Any, *_: Any) -> None:
        for piece in given:
            pieces[piece.name] = piece.attention
            piece.path.write_bytes(b"code")

    monkeypatch.setattr(inductor, "compile_pieces", compile_pieces)
    return pieces


def test_each_grid_has_its_own_and_it_is_kept(
    graphs: list[StageGraph],
    compiled: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = BuildOptions(folder=tmp_path / "plain")
    without = {graph.name: InductorBackend().build(graph, plain) for graph in graphs}
    assert set(compiled.values()) == {DEFAULT}
    assert not (plain.folder / ATTENTION).exists()

    class ByGrid(Script):
        def seconds(self, kind: str, operands: Operands) -> float:
            few = operands.keys == 16 + FLUX_TINY.text_tokens
            return {"flash": 0.5 if few else 2.0}.get(kind, 1.0)

    script = ByGrid(seconds_of=TIMES)
    monkeypatch.setattr(naming, "trial_of", lambda device: script)
    compiled.clear()
    options = BuildOptions(folder=tmp_path / "chosen")
    InductorBackend().prepare(graphs, options)
    files = {graph.name: InductorBackend().build(graph, options) for graph in graphs}
    # Double and single blocks of one grid multiply alike: each kind was tried once a grid.
    assert len(script.tried) == 2 * len(KINDS)
    by_piece = {name.rpartition("-")[0]: kind for name, kind in compiled.items()}
    assert {name: kind for name, kind in by_piece.items() if kind != DEFAULT} == {
        "double-16": "flash",
        "single-16": "flash",
    }
    # What torch takes by itself keeps its name, and what it does not has another.
    assert set(files["64"]) - set(without["64"]) == {ATTENTION}
    own = set(files["16"]) - set(without["16"]) - {ATTENTION}
    assert {name.rpartition("-")[0] for name in own} == {"blocks/double-16", "blocks/single-16"}
    stored = json.loads((options.folder / ATTENTION).read_text())
    assert {name.rpartition("-")[0]: each["attention"] for name, each in stored.items()} == {
        "double-16": "flash",
        "single-16": "flash",
        "double-64": DEFAULT,
        "single-64": DEFAULT,
    }
    choices = read_choices(options.folder / ATTENTION)
    for graph in graphs:
        parts = inductor._parts_of(graph)
        assert {inductor.file_of(part, choices) for part in parts} < set(files[graph.name])


def test_a_layer_that_needs_memory_keeps_torchs_own_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reads(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor]:
            return (inputs[0] * inputs[0].sum().item(),)

    told: list[str] = []
    script = Script(seconds_of=TIMES)
    monkeypatch.setattr(naming, "trial_of", lambda device: script)
    signature = full_signature(FACTS, 16, FLUX_TINY.text_tokens)
    part = Part(kind="odd", name="odd-16", signature=signature, layers=(Reads(),))
    options = BuildOptions(folder=tmp_path, progress=lambda phase, _: told.append(phase))
    naming.choose_attention([part], options)
    assert script.tried == []
    assert told[0].startswith("attention of odd-16 is torch's own choice:")
    assert list(tmp_path.iterdir()) == []


def test_another_engines_choices_stay(tmp_path: Path) -> None:
    path = tmp_path / "attention.json"
    fast = choose(OPERANDS, Script(seconds_of=TIMES))
    write_choices(path, {"double-1": fast})
    write_choices(path, {"single-1": choose(OPERANDS, Script(seconds_of={"default": 1.0}))})
    assert read_choices(path) == {"double-1": "flash", "single-1": DEFAULT}
    assert [each.name for each in tmp_path.iterdir()] == ["attention.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"double-1": 1}', '{"double-1": {}}', '{"double-1": {"attention": "fa9"}}']
)
def test_a_damaged_file_of_choices_is_said_to_be(tmp_path: Path, text: str) -> None:
    path = tmp_path / "attention.json"
    path.write_text(text)
    with pytest.raises(EngineFailed, match=r"attention\.json"):
        read_choices(path)


@pytest.mark.parametrize("apart", [False, True])
def test_a_piece_is_compiled_with_its_own_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """In this process, and as a process of its own does it."""
    allowed: list[bool] = []

    def compile_layer(*_: Any) -> None:
        cuda: Any = torch.backends.cuda
        allowed.extend([cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()])

    monkeypatch.setattr(pool, "compile_layer", compile_layer)
    monkeypatch.setattr(inductor_build, "compile_layer", compile_layer)
    signature = full_signature(FACTS, 16, FLUX_TINY.text_tokens)
    layer = torch.nn.Linear(2, 2)
    piece = pool.Piece(layer=layer, signature=signature, path=tmp_path / "a", attention="cudnn")
    if apart:
        monkeypatch.setattr("fresco_trt.backends.inductor.probe.trust", lambda device: None)
        task = {
            "device": "cpu",
            "piece": worker.packed(layer, signature),
            "state": worker.state(),
            "path": str(piece.path),
            "threads": 1,
            "attention": piece.attention,
        }
        worker._compile(task)
    else:
        pool.compile_pieces([piece], "cpu", 1, lambda name: None)
    assert allowed == [True, False]


def test_inspect_shows_what_was_chosen_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blocks").mkdir()
    write_choices(tmp_path / ATTENTION, {"double-1": choose(OPERANDS, Script(seconds_of=TIMES))})
    listed = SimpleNamespace(files=(SimpleNamespace(path=ATTENTION),))
    found = inspect._attention(SimpleNamespace(folder=tmp_path, manifest=listed))
    assert found["double-1"]["attention"] == "flash"
    assert found["double-1"]["milliseconds"]["cudnn"] == 900.0
    attention_lines(found)
    said = " ".join(capsys.readouterr().out.split())
    assert "attention of double-1: flash (cudnn 900 ms, default 1000 ms" in said
    bare = SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(files=()))
    assert inspect._attention(bare) == {}
