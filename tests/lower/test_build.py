"""A build is whole or not at all, is reused exactly when nothing changed, and says which."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.bundle import open_bundle
from fresco_trt.errors import (
    BackendUnavailable,
    BuildError,
    IncompatibleOptions,
    OutputNotWritable,
    WeightsNotFound,
)
from fresco_trt.files.digests import folder_digest
from fresco_trt.lower import gather
from fresco_trt.lower.build import REUSED, BuildRequest, run
from fresco_trt.models.flux import loading
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.layers import with_blocks
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.weights import bundled_folder, weights_digest
from tests.shallow import short_turbo

pytestmark = pytest.mark.usefixtures("traced_once")

TINY = bundled_folder("flux-tiny")


def request(out: Path, **options: Any) -> BuildRequest:
    """Two eager stages at 64x64."""
    settings: dict[str, Any] = {"stages": 2, "preset": "turbo", "size": (64, 64)}
    return BuildRequest(model="flux-tiny", backend="eager", out=out, **(settings | options))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- what is built ----------------------------------------------------------------------------


def test_a_bundle_says_what_it_is(demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    assert manifest.plan == short_turbo()
    assert [engine.name for engine in manifest.engines] == [f"stage{k}.full" for k in (1, 2, 3)]
    assert manifest.model.weights_sha256 == weights_digest(load_transformer(None, FLUX_TINY))
    assert manifest.model.config["num_layers"] == FLUX_TINY.double_blocks
    assert manifest.pipeline.digest == folder_digest(TINY, COMPONENTS)
    assert manifest.built.version == fresco_trt.__version__
    packages: Any = manifest.built.options["packages"]
    assert packages["torch"] == metadata.version("torch")


def test_a_library_that_prepares_is_given_all_graphs_before_the_first_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    build = EagerBackend.build

    def prepare(self: EagerBackend, graphs: Any, options: BuildOptions) -> None:
        asked.append(", ".join(graph.name for graph in graphs))

    def built(self: EagerBackend, graph: StageGraph, options: BuildOptions) -> Any:
        asked.append(f"build {graph.name}")
        return build(self, graph, options)

    monkeypatch.setattr(EagerBackend, "prepare", prepare, raising=False)
    monkeypatch.setattr(EagerBackend, "build", built)
    run(request(tmp_path / "bundle"))
    names = ["stage1.full", "stage2.full"]
    assert asked == [", ".join(names), *(f"build {name}" for name in names)]


def test_weights_are_in_a_bundle_once(onnx_bundle: Path, demo_bundle: Path) -> None:
    """Three stages and everything around them take little more than the weights themselves."""
    around = sum(file.stat().st_size for part in COMPONENTS for file in files_of(TINY / part))
    for bundle, facts in ((onnx_bundle, with_blocks(FLUX_TINY, (1, 1))), (demo_bundle, FLUX_TINY)):
        weights = facts.parameters * 4
        size = sum(len(data) for data in contents(bundle).values())
        assert weights < size < 1.1 * weights + around


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def test_a_bundle_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    own = shutil.copytree(TINY, tmp_path / "own-weights")
    bundle = run(request(tmp_path / "bundle", weights=str(own))).bundle
    text = (bundle.folder / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert bundle.manifest.built.options["weights"] == "a given path"


def test_precision_is_what_weights_are_stored_in(tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp32", "bf16", "fp16"):
        bundle = run(request(tmp_path / precision, precision=precision)).bundle
        assert bundle.manifest.precision == precision
        sizes[precision] = max(file.bytes for file in bundle.manifest.files)
    for half in ("bf16", "fp16"):
        assert sizes[half] == pytest.approx(sizes["fp32"] / 2, rel=0.01)


def test_random_weights_need_nothing_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "bundled_folder", lambda model: tmp_path / "nothing" / model)
    built = run(request(tmp_path / "bundle", weights="random"))
    assert run(request(tmp_path / "bundle", weights="random")).reused
    with fresco_trt.FrescoPipeline.from_bundle(built.bundle.folder) as pipe:
        assert pipe("any words at all").images[0].size == (64, 64)


def test_fewer_blocks_are_recorded_wherever_one_looks(tmp_path: Path) -> None:
    whole = run(request(tmp_path / "whole", weights="random")).bundle.manifest
    fewer = run(request(tmp_path / "fewer", weights="random", blocks=(1, 2))).bundle
    manifest = fewer.manifest
    assert (whole.built.options["blocks"], manifest.built.options["blocks"]) == (None, "1,2")
    assert [manifest.model.config[name] for name in ("num_layers", "num_single_layers")] == [1, 2]
    assert manifest.model.config["num_attention_heads"] == FLUX_TINY.heads
    assert manifest.model.weights_sha256 != whole.model.weights_sha256
    assert run(request(tmp_path / "fewer", weights="random", blocks=(1, 2))).reused
    again = run(request(tmp_path / "fewer", weights="random", blocks=(1, 1)))
    assert again.state == "rebuilt: weights differ"
    with fresco_trt.FrescoPipeline.from_bundle(fewer.folder) as pipe:
        assert pipe("a cat").images[0].size == (64, 64)


def test_every_engine_says_how_long_it_took(eager_two: Path) -> None:
    built = open_bundle(eager_two).manifest.built
    seconds: Any = built.options["engine_seconds"]
    assert list(seconds) == ["stage1.full", "stage2.full"]
    assert all(each >= 0 for each in seconds.values())
    assert sum(seconds.values()) <= built.seconds


def test_the_tolerance_is_recorded_and_is_part_of_the_key(tmp_path: Path) -> None:
    out, states = tmp_path / "bundle", []
    for preset in ("turbo", "turbo,delta=0.05", "turbo,delta=0.05", "turbo,delta=0.1"):
        built = run(request(out, preset=preset))
        states.append(built.state)
        assert built.bundle.manifest.built.options["preset"] == preset
    assert states == ["built", "rebuilt: plan differs", REUSED, "rebuilt: plan differs"]


@pytest.mark.slow
def test_graphs_are_kept_where_they_were_asked_for(tmp_path: Path) -> None:
    asked = request(tmp_path / "bundle", graphs=tmp_path / "graphs", stages=1)
    asked = replace(asked, backend="onnxruntime")
    run(asked)
    assert {path.name for path in (tmp_path / "graphs").iterdir()} == {
        "stage1.full.onnx",
        "weights.bin",
    }
    assert run(asked).state == f"{REUSED}; no graphs were exported"


def test_every_phase_is_reported(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    run(request(tmp_path / "bundle"), progress=lambda *said: told.append(said))
    phases = {phase for phase, _ in told}
    assert {"loading weights", "copy stage1.full", "digests"} <= phases
    assert all(0.0 <= fraction <= 1.0 for _, fraction in told)


# --- reuse ------------------------------------------------------------------------------------


def test_an_equal_request_reuses_the_bundle(tmp_path: Path) -> None:
    first = run(request(tmp_path / "bundle"))
    before = contents(first.bundle.folder)
    again = run(request(tmp_path / "bundle", target="", precision="fp32"))
    assert (first.state, first.reused) == ("built", False)
    assert (again.state, again.reused) == (REUSED, True)
    assert again.bundle.manifest == first.bundle.manifest
    assert contents(first.bundle.folder) == before


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"preset": "fast"}, "plan differs"),
    ({"size": (128, 64)}, "plan differs"),
    ({"stages": 1}, "plan differs"),
    ({"weights": "random"}, "weights differ"),
    ({"precision": "bf16"}, "weights, precision differ"),
    ({"weights": "random", "preset": "fast"}, "weights, plan differ"),
    ({"target": "batch=2"}, "batch differs"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_another_request_says_what_differs(
    tmp_path: Path, eager_two: Path, change: dict[str, Any], words: str
) -> None:
    out = shutil.copytree(eager_two, tmp_path / "bundle")
    built = run(request(out, **change))
    assert (built.state, built.reused) == (f"rebuilt: {words}", False)
    assert built.bundle.manifest.key != open_bundle(eager_two).manifest.key
    assert run(request(out, **change)).reused


@pytest.fixture(scope="module")
def eager_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(request(tmp_path_factory.mktemp("two") / "bundle")).bundle.folder


def test_another_version_of_a_package_says_so(
    tmp_path: Path, eager_two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(eager_two, tmp_path / "bundle")
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "0" if n == "diffusers" else version(n))
    assert run(request(out)).state == "rebuilt: package versions differ"


def test_other_prompt_encoders_say_so(tmp_path: Path, eager_two: Path) -> None:
    out = shutil.copytree(eager_two, tmp_path / "bundle")
    own = shutil.copytree(TINY, tmp_path / "own")
    with (own / "scheduler" / "scheduler_config.json").open("a") as file:
        file.write("\n")
    built = run(request(out, weights=str(own)))
    assert built.state == "rebuilt: prompt encoders or decoder differs"


def test_a_damaged_bundle_is_rebuilt_and_said_so(tmp_path: Path, eager_two: Path) -> None:
    out = shutil.copytree(eager_two, tmp_path / "bundle")
    before = contents(out)
    (out / "transformer" / "config.json").write_text("{}")
    built = run(request(out))
    assert built.state.startswith("rebuilt: the old bundle cannot be used, ")
    assert "config.json" in built.state
    after = contents(out)
    assert {name: after[name] for name in after if name != "manifest.json"} == {
        name: before[name] for name in before if name != "manifest.json"
    }


def test_the_report_is_json_with_the_state(tmp_path: Path, eager_two: Path) -> None:
    built = run(request(shutil.copytree(eager_two, tmp_path / "bundle")))
    report = json.loads(json.dumps(built.to_json()))
    assert report["state"] == REUSED
    assert report["folder"] == str(tmp_path / "bundle")
    assert report["engines"] == ["stage1.full", "stage2.full"]
    assert report["bytes"] == sum(file.bytes for file in built.bundle.manifest.files)


# --- refusals and failures --------------------------------------------------------------------


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("weights", ["absent", "empty"])
def test_weights_that_are_not_there_leave_nothing(tmp_path: Path, weights: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsNotFound, match=str(tmp_path / weights)):
        run(request(tmp_path / "bundle", weights=str(tmp_path / weights)))
    assert left_in(tmp_path) == ["empty"]


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_weights_of_something_else_leave_nothing(tmp_path: Path, part: str) -> None:
    with pytest.raises(IncompatibleOptions):
        run(request(tmp_path / "bundle", weights=str(TINY / part)))
    assert left_in(tmp_path) == []


def test_weights_of_another_model_leave_nothing(tmp_path: Path) -> None:
    asked = replace(request(tmp_path / "bundle", weights=str(TINY), size=None), model="flux")
    with pytest.raises(IncompatibleOptions, match="num_layers 2"):
        run(asked)
    assert left_in(tmp_path) == []


def test_something_else_at_the_place_stays(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputNotWritable, match=r"thesis\.txt"):
        run(request(tmp_path / "bundle"))
    assert contents(tmp_path) == {"bundle/thesis.txt": b"mine"}


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritable):
        run(request(tmp_path / "file" / "bundle"))
    assert left_in(tmp_path) == ["file"]


def test_a_library_that_is_absent_is_told_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_transformer", load)
    asked = replace(request(tmp_path / "bundle"), backend="tensorrt")
    with pytest.raises(BackendUnavailable, match="tensorrt"):
        run(asked)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "error", [BuildError("no", expected="yes", fix="try"), KeyboardInterrupt()]
)
def test_a_build_that_fails_halfway_keeps_the_old_bundle(
    tmp_path: Path, eager_two: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = shutil.copytree(eager_two, tmp_path / "bundle")
    before = contents(out)
    build = EagerBackend.build

    def fail(self: EagerBackend, graph: StageGraph, options: BuildOptions) -> tuple[str, ...]:
        if graph.name == "stage2.full":
            raise error
        return build(self, graph, options)

    monkeypatch.setattr(EagerBackend, "build", fail)
    with pytest.raises(type(error)):
        run(request(out, preset="fast"))
    assert left_in(tmp_path) == ["bundle"]
    assert contents(out) == before


def test_errors_say_which_build_they_belong_to(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match=f"build of {tmp_path / 'bundle'}: "):
        run(request(tmp_path / "bundle", weights=str(tmp_path / "absent")))


def test_a_reused_build_sweeps_what_killed_ones_left(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_bundle, tmp_path / "bundle", copy_function=os.link)
    (tmp_path / ".bundle.partial-1-0123abcd" / "half").mkdir(parents=True)
    temporary = tmp_path / "tmp"
    killed = temporary / f".fresco-trt-{os.getuid()}.partial-1-0123abcd"
    killed.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = (tmp_path / "bundle" / "manifest.json").stat().st_ino
    plan = open_bundle(demo_bundle).plan
    fresco_trt.build(plan, backend="eager", out=tmp_path / "bundle")
    assert (tmp_path / "bundle" / "manifest.json").stat().st_ino == before, "reused"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "tmp"]
    assert list(temporary.iterdir()) == []
