"""What compiled blocks are tied to, and what is refused without compiling or loading any."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor import build as inductor_build
from fresco_trt.backends.inductor.backend import HOST, InductorBackend
from fresco_trt.backends.inductor.host import check_host, this_host, write_host
from fresco_trt.backends.preparing import prepare
from fresco_trt.errors import BuildError, EnvironmentMismatch
from fresco_trt.lower.weights import write_source
from fresco_trt.models.flux.blocks import cut
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from tests.hostile import reports


def test_a_processor_that_is_able_to_more_is_fine(tmp_path: Path) -> None:
    here = this_host("cpu")
    path = tmp_path / HOST
    write_host(path, replace(here, features=here.features[1:]))
    check_host(path, here)


@pytest.mark.parametrize("content", reports.SHAPES.values(), ids=reports.SHAPES)
def test_a_file_of_another_shape_is_refused(content: bytes, tmp_path: Path) -> None:
    path, here = tmp_path / HOST, this_host("cpu")
    path.write_bytes(content)
    with pytest.raises(EnvironmentMismatch, match="does not say what the blocks were compiled for"):
        check_host(path, here)
    path.unlink()
    write_host(path, here)
    told = json.loads(path.read_bytes())
    for name in told:
        for value in (None, 7, [], {}, "avx2" if name == "features" else ["x"]):
            path.write_text(json.dumps({**told, name: value}))
            with suppress(EnvironmentMismatch):
                check_host(path, here)
                assert (name, value) == ("features", [])  # able to nothing: it runs anywhere


def test_a_gpu_of_another_architecture_is_named_and_a_driver_is_not_compared(
    tmp_path: Path,
) -> None:
    path, here = tmp_path / HOST, replace(this_host("cpu"), device="cuda")
    write_host(path, replace(here, features=(*here.features, "sm90")))
    check_host(path, replace(here, features=(*here.features, "sm90")))
    with pytest.raises(EnvironmentMismatch, match="architecture sm90; this is sm120"):
        check_host(path, replace(here, features=(*here.features, "sm120")))
    with pytest.raises(EnvironmentMismatch, match=r"for a GPU; torch finds none .* its driver"):
        check_host(path, this_host("cpu"))
    write_host(path, this_host("cpu"))
    with pytest.raises(EnvironmentMismatch, match="for the CPU; torch runs on a GPU"):
        check_host(path, here)


def test_the_kind_of_machine_is_part_of_what_it_says() -> None:
    here = this_host("cpu")
    assert InductorBackend().describe().machine == str(here)
    assert str(replace(here, features=())) != str(here)


def test_an_older_torch_is_said_to_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_build, "torch_version", lambda: "2.10.1+cu130")
    (missing,) = InductorBackend().check()
    assert (missing.what, missing.only_to_build) == ("torch 2.11 or newer", False)
    assert InductorBackend().describe().machine is None


@pytest.mark.parametrize(
    ("torch", "kept"),
    [
        ("2.11.0", {"a/model.so": b"code", "a/wrapper.cpp": b""}),
        ("2.13.0", {"a/model.so": b"code"}),
    ],
)
def test_no_source_is_packed_and_its_name_only_where_torch_looks_for_it(
    torch: str, kept: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor_build, "torch_version", lambda: torch)
    with ZipFile(tmp_path / "compiled", "w") as package:
        package.writestr("a/model.so", b"code")
        package.writestr("a/wrapper.cpp", b"// a folder of this machine")
    inductor_build._pack(tmp_path / "compiled", tmp_path / "packed")
    with ZipFile(tmp_path / "packed") as package:
        assert {name: package.read(name) for name in package.namelist()} == kept


def test_the_pieces_of_all_graphs_are_compiled_at_once_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    told: list[tuple[str, float]] = []

    def compile_pieces(pieces: Any, device: str, threads: Any, done: Any) -> None:
        asked.append([piece.name.rpartition("-")[0] for piece in pieces])
        for piece in pieces:
            piece.path.write_bytes(b"code")
            done(piece.name)

    monkeypatch.setattr(inductor, "compile_pieces", compile_pieces)
    model = random_transformer(FLUX_TINY, layers=(1, 1))
    source = write_source(model, tmp_path / "source")
    graphs = [
        StageGraph(
            name=name,
            signature=signature,
            module=graph_from_signature(model, signature),
            onnx=None,
            weights=None,
            source=source,
            family="flux",
        )
        for name, signature in {
            "stage1.full": full_signature(FLUX_TINY, 64, FLUX_TINY.text_tokens, feature=True),
            "stage1.bypass": bypass_signature(FLUX_TINY, 64, FLUX_TINY.text_tokens),
            "stage2.full": full_signature(FLUX_TINY, 256, FLUX_TINY.text_tokens),
        }.items()
    ]
    options = BuildOptions(folder=tmp_path / "out", progress=lambda *said: told.append(said))
    prepare(InductorBackend(), graphs, options)
    (names,) = asked
    by_size = ("enter", "double", "single", "leave")
    assert sorted(names) == sorted(
        ["condition", *(f"{kind}-{size}" for kind in by_size for size in (64, 256))]
    )
    assert [fraction for _, fraction in told] == [number / 9 for number in range(10)]
    for graph in graphs:
        files = InductorBackend().build(graph, options)
        assert all((options.folder / name).is_file() for name in files)
    assert len(asked) == 1


def test_layers_that_differ_in_shape_share_no_code(tmp_path: Path) -> None:
    wider = random_transformer(replace(FLUX_TINY, hidden=256, heads=8))
    model: Any = random_transformer(FLUX_TINY)
    model.transformer_blocks[1] = wider.get_submodule("transformer_blocks.1")
    signature = full_signature(FLUX_TINY, 64, FLUX_TINY.text_tokens)
    part = cut(graph_from_signature(model, signature), signature).parts[2]
    with pytest.raises(BuildError, match="double-64 are of different shapes"):
        inductor._compile_missing([part], BuildOptions(folder=tmp_path))
