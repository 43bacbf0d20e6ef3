"""Laws of the eager backend: it is the module itself, read back from one shared folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fresco_trt.backends.base import BuildOptions
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.backends.transformer import FOLDER, WEIGHTS, SharedTransformers
from fresco_trt.errors import (
    BuildError,
    EngineFailed,
    FileMissing,
    IncompatibleOptions,
    UnknownModel,
    UnsupportedPrecision,
)
from fresco_trt.lower.weights import write_source
from fresco_trt.models.flux import loading
from fresco_trt.models.flux.family import FLUX
from fresco_trt.models.flux.loading import transformer_from_folder
from fresco_trt.plan.signature import GraphSignature

if TYPE_CHECKING:
    from tests.backends.conftest import Record, Stage

    Stages = tuple[Stage, ...]


def build_all(stages: Stages, folder: Path) -> list[Record]:
    backend = EagerBackend()
    options = BuildOptions(folder=folder)
    return [stage.record(backend.build(stage.graph, options)) for stage in stages]


def test_a_built_stage_is_bit_equal_to_its_module(stages: Stages, folder: Path) -> None:
    for stage, record in zip(stages, build_all(stages, folder), strict=True):
        tracked = {name: value.clone().requires_grad_() for name, value in stage.inputs.items()}
        with EagerBackend().load(folder, record) as runner:
            outputs = runner(tracked)
        expected = stage.expected()
        assert list(outputs) == list(expected)
        assert all(torch.equal(outputs[name], expected[name]) for name in expected)
        assert not any(value.requires_grad for value in outputs.values())


def test_all_stages_hold_the_weights_once_on_disk(stages: Stages, folder: Path) -> None:
    records = build_all(stages, folder)
    assert {record.files for record in records} == {
        (f"{FOLDER}/config.json", f"{FOLDER}/{WEIGHTS}")
    }
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == sorted(records[0].files)


def test_a_backend_shares_the_transformer_with_whoever_holds_it(
    stages: Stages, folder: Path
) -> None:
    record = build_all(stages, folder)[0]
    shared = SharedTransformers()
    held: Any = shared.of(FLUX, folder / FOLDER)
    inputs = stages[0].inputs
    with EagerBackend(shared).load(folder, record) as runner:
        before = runner(inputs)["velocity"].clone()
        held.proj_out.bias.add_(1.0)
        assert torch.allclose(runner(inputs)["velocity"], before + 1.0, atol=1e-5)


def test_runners_in_scope_share_one_transformer(
    stages: Stages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    load = transformer_from_folder

    def watched(path: Path) -> torch.nn.Module:
        loads.append(path)
        return load(path)

    monkeypatch.setattr(loading, "transformer_from_folder", watched)
    records = build_all(stages, folder)
    backend = EagerBackend()
    first, second = (backend.load(folder, record) for record in records[:2])
    assert loads == []
    with first, second:
        assert len(loads) == 1
    with first:
        assert len(loads) == 2  # nothing was kept between the scopes
        write_source(load(folder / FOLDER), folder / "new")
        (folder / "new" / WEIGHTS).replace(folder / FOLDER / WEIGHTS)
        with second:
            assert len(loads) == 3  # other files are not mistaken for these


def test_weights_are_run_in_the_precision_asked_for(stages: Stages, folder: Path) -> None:
    backend = EagerBackend()
    with pytest.raises(BuildError, match="stored as F32; expected BF16 for --precision bf16"):
        backend.build(stages[0].graph, BuildOptions(folder=folder, precision="bf16"))
    with pytest.raises(UnsupportedPrecision):
        backend.build(stages[0].graph, BuildOptions(folder=folder, precision="int8"))
    half = torch.nn.Module.to(transformer_from_folder(stages[0].graph.source), torch.bfloat16)
    graph = replace(stages[0].graph, source=write_source(half, folder / "half"))
    files = backend.build(graph, BuildOptions(folder=folder, precision="bf16"))
    with backend.load(folder, stages[0].record(files)) as runner:
        velocity = runner(stages[0].inputs)["velocity"]
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - stages[0].expected()["velocity"]).abs().max() < 0.1


def test_a_source_without_weights_is_refused(stages: Stages, folder: Path) -> None:
    graph = replace(stages[0].graph, source=folder)
    with pytest.raises(BuildError, match=WEIGHTS):
        EagerBackend().build(graph, BuildOptions(folder=folder))


def test_a_bundle_without_its_transformer_is_refused_at_load(stages: Stages, folder: Path) -> None:
    records = build_all(stages, folder)
    (folder / FOLDER / WEIGHTS).unlink()
    with pytest.raises(FileMissing):
        EagerBackend().load(folder, records[0])


@pytest.mark.parametrize("name", ["UnknownTransformer2DModel", "os", "../flux", None])
def test_a_transformer_of_another_class_is_refused(
    stages: Stages, folder: Path, name: str | None
) -> None:
    records = build_all(stages, folder)
    path = folder / FOLDER / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))
    runner = EagerBackend().load(folder, records[0])
    with pytest.raises(IncompatibleOptions, match=f"of the class {name}"), runner:
        pass


@pytest.mark.parametrize("family", ["os", "../flux", ""])
def test_an_engine_of_no_known_family_is_refused(stages: Stages, folder: Path, family: str) -> None:
    record = replace(build_all(stages, folder)[0], family=family)
    with pytest.raises(UnknownModel, match="unknown model family"):
        EagerBackend().load(folder, record).__enter__()


def test_a_failure_of_torch_is_an_engine_that_failed(stages: Stages, folder: Path) -> None:
    records = build_all(stages, folder)
    wrong = replace(stages[0].graph.signature.inputs[1], shape=(1, 6, 31))
    inputs = tuple(
        wrong if spec.name == wrong.name else spec for spec in records[0].signature.inputs
    )
    signature = GraphSignature(inputs=inputs, outputs=records[0].signature.outputs)
    record = stages[0].record(records[0].files)
    runner = EagerBackend().load(folder, replace(record, signature=signature))
    with runner, pytest.raises(EngineFailed, match="running the eager graph"):
        runner(stages[0].inputs | {"text": torch.ones(wrong.shape)})
