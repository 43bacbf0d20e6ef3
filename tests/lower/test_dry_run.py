"""What a build would do is said at once: its engines, what they take, how long they took before."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.backends import backend, backend_names, choosing
from fresco_trt.backends.base import BackendFacts, Missing
from fresco_trt.lower.build import run
from fresco_trt.lower.dry_run import describe
from fresco_trt.lower.request import BuildRequest, resolve
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_TINY
from fresco_trt.plan.cost import plan_summary
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

TINY = BuildRequest(model="flux-tiny")
FLUX = BuildRequest(
    model="flux", weights="random", backend="tensorrt-rtx", precision="bf16", target="sm89"
)
MEMORY = {name: backend(name).describe().memory for name in backend_names()}
GPU = Missing(what="a GPU", fix="buy one")


class Library:
    """A backend of which a known one's memory is all that is known, with GPUs as targets if it is
    installed."""

    name = "library"

    def __init__(self, name: str = "library", *, version: str | None = "1", lacks: Any = ()):
        self.name, self._version, self._lacks = name, version, lacks

    def describe(self) -> BackendFacts:
        return BackendFacts(
            name=self.name,
            library=self.name,
            version=self._version,
            graph_format="onnx",
            targets=("sm80", "sm89", "sm120") if self._version else (),
            precisions=("fp32", "bf16", "fp8"),
            rest="bf16",
            device="cuda",
            memory=MEMORY.get(self.name),
        )

    def check(self) -> tuple[Missing, ...]:
        return tuple(self._lacks)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX as far as a dry run asks, whether it is installed or not."""
    monkeypatch.setattr(choosing, "backend", Library)


def test_a_description_is_json_of_the_plan_and_every_engine() -> None:
    request = replace(TINY, size=(64, 64), preset="turbo")
    draft = json.loads(json.dumps(describe(request)))
    resolved = resolve(request)
    assert draft["plan"] == json.loads(json.dumps(plan_summary(FLUX_TINY, resolved.plan)))
    names = ["stage1.full", "stage2.full", "stage3.full"]
    assert [engine["name"] for engine in draft["engines"]] == names
    assert [engine["tokens"] for engine in draft["engines"]] == list(resolved.plan.tokens)
    assert [engine["text_tokens"] for engine in draft["engines"]] == [128] * 3
    assert [engine["latents"] for engine in draft["engines"]] == ["4x4", "8x8", "16x16"]
    assert {engine["weight_bytes"] for engine in draft["engines"]} == {4 * FLUX_TINY.parameters}
    for index, engine in enumerate(draft["engines"]):
        signature = resolved.signature(index, "full").to_json()
        assert engine["signature"] == json.loads(json.dumps(signature))


def test_a_mixed_stages_tokens_are_not_its_grids() -> None:
    preset = Preset(steps=(2, 1, 1), switch=(0.8, 0.5), refine=((("even", 0.25),), ()), window=1)
    plan = plan_from_preset(FLUX_TINY, preset, size=(128, 128))
    engines = describe(BuildRequest(plan=plan))["engines"]
    assert [engine["tokens"] for engine in engines] == [64, 112, 256]
    assert [engine["latents"] for engine in engines] == ["16x16", "32x32", "32x32"]


def test_reuse_is_said_to_depend_on_the_weights(tmp_path: Path) -> None:
    request = replace(TINY, out=tmp_path)
    assert describe(request)["reuse"] == "nothing there to reuse"
    (tmp_path / "manifest.json").touch()
    assert "once the weights are read" in describe(request)["reuse"]


@pytest.mark.parametrize(
    ("version", "lacks", "builds", "runs", "words"),
    [
        ("1", (), True, True, "ready to build"),
        ("1", (GPU,), True, False, "ready to build; missing to run it here: a GPU (buy one)"),
        (None, (GPU,), False, False, "cannot be built here; missing: a GPU (buy one)"),
    ],
)
def test_building_and_running_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    lacks: tuple[Missing, ...],
    builds: bool,
    runs: bool,
    words: str,
) -> None:
    found = Library(version=version, lacks=lacks)
    monkeypatch.setattr(choosing, "backend", lambda name: found)
    draft = describe(TINY)
    assert (draft["builds"], draft["runs"], draft["state"]) == (builds, runs, words)


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("rtx")
def test_flux_takes_its_weights_three_times_or_once() -> None:
    draft = describe(FLUX)
    weights = 2 * FLUX_DEV.parameters
    assert [engine["weight_bytes"] for engine in draft["engines"]] == [weights] * 3
    static, profiles = draft["layouts"]
    assert (static["name"], profiles["name"]) == ("static", "profiles")
    assert (static["shared_bytes"], profiles["shared_bytes"]) == (0, weights)
    for layout, copies in ((static, 3), (profiles, 1)):
        assert copies * weights < layout["disk_bytes"] < (copies + 0.01) * weights
        assert layout["disk_bytes"] < layout["resident_bytes"] < (copies + 0.05) * weights
        assert [each["name"] for each in layout["engines"]] == [
            engine["name"] for engine in draft["engines"]
        ]
    assert "estimated" in draft["estimates"]


@pytest.mark.usefixtures("rtx")
def test_fewer_blocks_take_less_and_are_called_so() -> None:
    whole, fewer = describe(FLUX), describe(replace(FLUX, blocks=(1, 1)))
    assert (whole["blocks"], fewer["blocks"]) == (None, "1,1")
    assert fewer["out"] == "engines/flux-1+1blocks-1024x1024-3stage"
    for before, after in zip(whole["layouts"], fewer["layouts"], strict=True):
        assert after["build_bytes"] < before["build_bytes"] / 10
        assert after["disk_bytes"] < before["disk_bytes"] / 10
    assert fewer["plan"]["tflops"] < whole["plan"]["tflops"] / 20


@pytest.mark.usefixtures("rtx")
def test_codes_and_skipped_steps_are_in_the_numbers() -> None:
    plain = describe(FLUX)["layouts"][0]
    coded = describe(replace(FLUX, precision="fp8"))["layouts"][0]
    assert 0.5 < coded["disk_bytes"] / plain["disk_bytes"] < 0.7
    kept = replace(FLUX, precision="fp8,keep=*.ff.net.2")
    assert coded["disk_bytes"] < describe(kept)["layouts"][0]["disk_bytes"] < plain["disk_bytes"]
    cached = describe(replace(FLUX, cache="taylor"))
    tokens = {engine["name"]: engine["text_tokens"] for engine in cached["engines"]}
    assert (tokens["stage1.full"], tokens["stage1.bypass"]) == (512, 0)
    weights = {engine["name"]: engine["weight_bytes"] for engine in cached["engines"]}
    assert weights["stage1.bypass"] < weights["stage1.full"] / 100


@pytest.mark.parametrize("name", backend_names())
def test_every_backend_says_what_its_engines_take(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(choosing, "backend", Library)
    draft, memory = describe(replace(TINY, backend=name)), MEMORY[name]
    assert memory is not None
    assert [each["name"] for each in draft["layouts"]] == [each.name for each in memory.layouts]
    assert draft["estimates"]


def test_nothing_is_made_up_for_a_library_that_was_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choosing, "backend", lambda name: Library())
    draft = describe(TINY)
    assert (draft["layouts"], draft["estimates"]) == ([], "")


# --- earlier builds ---------------------------------------------------------------------------


def eager(out: Path, **options: Any) -> BuildRequest:
    """Two stages at 64x64, built as they are by torch."""
    settings: dict[str, Any] = {"stages": 2, "preset": "turbo", "size": (64, 64)}
    return BuildRequest(model="flux-tiny", backend="eager", out=out, **(settings | options))


def before(request: BuildRequest) -> list[Any]:
    """What is known of an earlier build of each engine."""
    return [engine["earlier"] for engine in describe(request)["engines"]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(eager(tmp_path_factory.mktemp("earlier") / "apple")).bundle.folder


def test_equal_engines_took_what_the_manifest_says(built: Path) -> None:
    told = json.loads((built / "manifest.json").read_text())["built"]
    seconds = told["options"]["engine_seconds"]
    assert seconds.keys() == {"stage1.full", "stage2.full"}
    assert 0 <= sum(seconds.values()) <= told["seconds"]
    for out in (built, built.with_name("pear")):
        assert before(eager(out)) == [
            {"seconds": each, "bundle": "apple", "bundle_seconds": told["seconds"]}
            for each in seconds.values()
        ]
    assert before(eager(built.parent / "elsewhere" / "pear")) == [None, None]


def test_only_an_equal_engine_is_an_earlier_build(built: Path) -> None:
    beside = built.with_name("pear")
    assert before(eager(beside, size=(128, 128)))[1] is None
    assert before(eager(beside, size=(128, 128)))[0] is not None  # that of stage 2 at 64x64
    for change in (
        {"precision": "bf16"},
        {"backend": "onnxruntime"},
        {"weights": "random", "blocks": (1, 1)},
    ):
        request = replace(eager(beside), **change)
        assert before(request) == [None, None]


def test_the_newest_of_two_builds_counts(built: Path, tmp_path: Path) -> None:
    from fresco_trt.files.canonical_json import build_key

    manifest = json.loads((built / "manifest.json").read_text())
    for age, name in ((50, "old"), (10, "new"), (30, "older")):
        manifest["built"]["options"]["engine_seconds"]["stage1.full"] = float(age)
        manifest["digest"] = build_key({k: v for k, v in manifest.items() if k != "digest"})
        path = tmp_path / name / "manifest.json"
        path.parent.mkdir()
        path.write_text(json.dumps(manifest))
        os.utime(path, (1000 - age, 1000 - age))
    first = before(eager(tmp_path / "pear"))[0]
    assert (first["bundle"], first["seconds"]) == ("new", 10.0)


@pytest.mark.parametrize("broken", [b"", b"{}", b"\xff" * 9, b'{"schema_version": 9}'])
def test_what_is_no_bundle_is_no_earlier_build(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "apple").mkdir()
    (tmp_path / "apple" / "manifest.json").write_bytes(broken)
    (tmp_path / "pear" / "manifest.json").mkdir(parents=True)
    (tmp_path / "file").touch()
    kept = sorted(tmp_path.rglob("*"))
    assert before(eager(tmp_path / "plum")) == [None, None]
    assert before(eager(tmp_path / "file" / "plum")) == [None, None]
    assert sorted(tmp_path.rglob("*")) == kept


@pytest.mark.parametrize("told", [None, "long", {"stage1.full": True}, {"stage1.full": "1"}])
def test_a_manifest_that_says_nothing_of_engines_is_read_as_that(
    built: Path, tmp_path: Path, told: Any
) -> None:
    from fresco_trt.files.canonical_json import build_key

    manifest = json.loads((built / "manifest.json").read_text())
    manifest["built"]["options"]["engine_seconds"] = told
    manifest["digest"] = build_key({k: v for k, v in manifest.items() if k != "digest"})
    (tmp_path / "apple").mkdir()
    (tmp_path / "apple" / "manifest.json").write_text(json.dumps(manifest))
    assert before(eager(tmp_path / "pear")) == [None, None]
