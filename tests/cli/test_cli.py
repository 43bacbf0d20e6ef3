"""The command line: exit codes, one JSON object, refusals with a way out, nothing half-written."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

import fresco_trt
from fresco_trt.backends.fake import FakeRunner
from fresco_trt.bundle import open_bundle
from fresco_trt.cli import display, tables
from fresco_trt.cli import main as cli
from fresco_trt.cli.command import RENAMED
from fresco_trt.cli.generate import save_picture
from fresco_trt.errors import DiskFull, OutputNotWritable
from fresco_trt.models import assembly
from fresco_trt.models.checkpoint import WEIGHTS_NAME
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import bundled_folder
from fresco_trt.plan.config import CacheConfig, PresetConfig, QuantConfig, TargetConfig
from fresco_trt.plan.cost import SUMMARY_KEYS, plan_summary
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.sizes import format_size
from fresco_trt.plan.stages import StagePlan
from tests.hostile import reports
from tests.plan.preset_sizes import size_for
from tests.preloaded import Preloaded

ROOT = Path(__file__).parents[2]
TINY = bundled_folder("flux-tiny")
PROMPT = "a red apple on a plain blue background"
COMMANDS = (
    *(
        "plan",
        "build",
        "generate",
        "edit",
        "video",
        "verify",
        "inspect",
        "sign",
        "doctor",
        "calibrate",
    ),
    *("bench", "report", "export-triton", "profile", "serve"),
)
PATIENCE = 1200  # seconds, against a hang; nothing is measured

# A build says before it begins which defaults it has, whatever becomes of it.
_ERROR = re.compile(r"\A(?:builds with [^\n]+\n)?error: .+; expected .+\. Fix: .+\n\Z", re.DOTALL)


class Ran:
    """What a command said and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON object and nothing else, after success."""
        assert self.code == 0, self.err
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


class Shell:
    """Runs commands in this process, in an empty folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys, self.folder = capsys, folder

    def __call__(self, *arguments: object) -> Ran:
        self._capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Ran(code, *self._capsys.readouterr())

    def left(self) -> list[str]:
        """What lies in the folder."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))


@pytest.fixture
def shell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Shell:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Shell(capsys, folder)


def build_arguments(**options: object) -> list[str]:
    """A build of two eager stages at 64x64, with other options in place of these."""
    settings: dict[str, object] = {"stages": 2, "preset": "turbo", "size": "64x64"}
    settings |= {"model": "flux-tiny", "backend": "eager", **options}
    pairs = [(f"--{name}", str(value)) for name, value in settings.items() if value is not None]
    return ["build", *(word for pair in pairs for word in pair)]


def calibrate_arguments(measure: str, **options: object) -> list[str]:
    """A calibration of the demo."""
    pairs = [(f"--{name}", str(value)) for name, value in options.items()]
    words = [word for pair in pairs for word in pair]
    return ["calibrate", "--model", "flux-tiny", "--measure", measure, *words]


# --- help -------------------------------------------------------------------------------------


def test_no_arguments_show_help(shell: Shell) -> None:
    ran = shell()
    assert "Usage" in ran.out + ran.err
    assert all(command in ran.out + ran.err for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(shell: Shell, command: str) -> None:
    ran = shell(command, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
    assert ran.err == ""


# --- results ----------------------------------------------------------------------------------


def test_plan_json(shell: Shell) -> None:
    found = shell("plan", "--model", "flux-tiny", "--stages", 3, "--steps", 28, "--json").json
    assert {"model", "size", "nfe", "flops_ratio", "stages"} <= found.keys()
    for stage in found["stages"]:
        assert {"grid", "tokens", "steps", "sigma_start", "sigma_end", "actions"} <= stage.keys()
    assert found["baseline"]["steps"] == 28
    assert found["nfe"] == fresco_trt.plan("flux-tiny", stages=3).nfe


def test_the_plan_table_has_every_stage(shell: Shell) -> None:
    ran = shell("plan", "--model", "flux-tiny", "--stages", 3, "--size", "512x256")
    assert ran.code == 0
    for latents in ("32x16", "64x32", "128x64"):
        assert latents in ran.out
    assert "x fewer" in ran.out


def test_the_plan_table_says_how_a_stage_is_mixed(shell: Shell) -> None:
    ran = shell("plan", "--model", "flux", "--preset", "fresco-18")
    assert ran.code == 0
    assert "stage 2 is mixed: 768 coarse + 1024 fine tokens, positions in fine units" in ran.out
    assert "refined 256 by converged-latent over 3 steps" in ran.out
    assert "4.72x fewer" in ran.out
    assert "mixed" not in shell("plan", "--model", "flux").out


def test_the_plan_table_says_where_attention_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    facts = model_facts("flux")
    plan = replace(make_plan(facts, stages=3, preset="fresco-18"), positions="aligned")
    tables.plan_table(plan_summary(facts, plan))
    out = " ".join(capsys.readouterr().out.split())
    assert "1024 fine tokens, positions on each query's own grid" in out


def test_plan_json_says_how_a_stage_is_mixed(shell: Shell) -> None:
    found = shell("plan", "--model", "flux", "--preset", "fresco-18", "--json").json
    assert [stage["refined"] for stage in found["stages"]] == [0, 256, 0]
    assert found["transitions"][0]["refinements"] == [{"rule": "converged-latent", "count": 256}]
    assert (found["positions"], found["solver"]) == ("fine", "euler")


def test_plan_places_its_switches_by_delta(shell: Shell) -> None:
    found = shell("plan", "--model", "flux", "--preset", "delta=0.01", "--json").json
    assert found["preset"] is None
    switches = [each["sigma"] for each in found["transitions"]]
    assert switches == pytest.approx([0.934, 0.853], abs=6e-4)


PRESETS = {
    "delta": ("flux", "fast,delta=0.1"),
    "shift": ("flux", "fast,shift=4"),
    "solver": ("flux", "fast,solver=unipc"),
    "text_tokens": ("flux", "turbo,text_tokens=128+256+512"),
    "text_amplifier": ("hunyuan-video", "turbo,text_amplifier=0.5"),
    "sparse_attention": ("hunyuan-video", "turbo,sparse_attention=0.3"),
    "tube": ("hunyuan-video", "fresco-18,tube=true"),
    "threshold": ("flux-kontext", "specedit,threshold=0.4"),
    "references": ("flux-kontext", "fast,references=fine"),
}
"""A preset that each field of the config object but its name changes."""


@pytest.mark.parametrize("field", [each.name for each in fields(PresetConfig)[1:]])
def test_plan_and_build_take_every_field_of_a_preset(shell: Shell, field: str) -> None:
    model, preset = PRESETS[field]
    facts, asked = model_facts(model), PresetConfig.parse(preset)
    size = size_for(facts, asked.name or "")
    changed, plain = (
        make_plan(facts, stages=3, preset=each, size=size) for each in (asked, asked.name)
    )
    assert asked.changed == ("name", field)
    assert replace(changed, preset=plain.preset) != plain
    wanted = json.loads(json.dumps(plan_summary(facts, changed)))
    arguments = ("--model", model, "--preset", preset, "--size", format_size(size), "--json")
    assert shell("plan", *arguments).json == wanted
    drawn_up = shell("build", *arguments, "--weights", "random", "--backend", "eager", "--dry-run")
    assert drawn_up.json["builds"][0]["plan"] == wanted


def test_build_says_built_then_reused_then_what_differs(shell: Shell) -> None:
    states = [
        shell(*build_arguments(out="bundle", **change), "--json").json["bundles"][0]["state"]
        for change in ({}, {}, {"preset": "fast"})
    ]
    assert states == ["built", "reused (same key)", "rebuilt: plan differs"]
    ran = shell(*build_arguments(out="bundle"))
    assert "rebuilt: plan differs, 2 engines" in ran.out
    assert open_bundle("bundle").plan.preset == "turbo"


def test_the_command_and_the_function_build_the_same(shell: Shell) -> None:
    found = shell(*build_arguments(), "--json").json["bundles"][0]
    assert Path(found["folder"]) == shell.folder / "engines" / "flux-tiny-64x64-2stage"
    folder = fresco_trt.build(
        "flux-tiny", stages=2, preset="turbo", size=(64, 64), backend="eager", out="other"
    )
    assert open_bundle(folder).manifest.key == found["key"]


def test_a_dry_run_shows_every_size_and_writes_nothing(shell: Shell) -> None:
    sizes = ("--size", "64x64", "--size", "128x64")
    arguments = [*build_arguments(size=None, out="parent"), *sizes, "--dry-run"]
    found = shell(*arguments, "--json").json["builds"]
    assert [Path(each["out"]).name for each in found] == [
        "flux-tiny-128x64-2stage",
        "flux-tiny-64x64-2stage",
    ]
    assert {str(Path(each["out"]).parent) for each in found} == {"parent"}
    for each in found:
        for engine in each["engines"]:
            assert engine["signature"]["inputs"][0]["shape"][1] == engine["tokens"]
    table = shell(*arguments)
    assert table.code == 0
    for words in ("stage1.full", "stage2.full", "32x16", "128", "nothing there to reuse"):
        assert words in table.out
    assert shell.left() == []


def test_a_dry_run_says_what_each_layout_takes(shell: Shell) -> None:
    arguments = build_arguments(
        model="flux", weights="random", size=None, stages=3, backend="onnxruntime"
    )
    table = shell(*arguments, "--dry-run")
    assert table.code == 0
    for words in ("estimates, layout shared", "4096", "512", "47.61 GB", "no earlier build"):
        assert words in table.out
    assert "parameters x bytes, exact" in table.out
    found = shell(*arguments, "--dry-run", "--json").json["builds"][0]
    (layout,) = found["layouts"]
    assert layout["shared_bytes"] == 4 * model_facts("flux").parameters
    assert [each["text_tokens"] for each in found["engines"]] == [512] * 3
    assert shell.left() == []


def test_a_dry_run_remembers_the_build_before(shell: Shell) -> None:
    assert shell(*build_arguments(out="apple")).code == 0
    table = shell(*build_arguments(out="pear"), "--dry-run")
    assert "no earlier build" not in table.out
    assert re.search(r"^built before: apple, \d+\.\d s in all$", table.out, re.MULTILINE)
    other = shell(*build_arguments(out="pear", size="96x96"), "--dry-run")
    assert other.out.count("no earlier build") == 2


def test_fewer_blocks_are_called_so_by_every_command(shell: Shell) -> None:
    words = (
        "depth-reduced: 1 double-stream and 2 single-stream blocks as wide as those of flux-tiny"
    )
    arguments = build_arguments(weights="random", blocks="1,2", out="bundle")
    assert words in shell(*arguments, "--dry-run").out
    assert words in shell(*arguments).out
    assert shell(*arguments, "--json").json["bundles"][0]["blocks"] == "1,2"
    assert words in shell("inspect", "bundle").out
    drawn = ("generate", "--engines", "bundle", "--prompt", PROMPT)
    assert words in shell(*drawn).out
    assert shell(*drawn, "--json").json["blocks"] == "1,2"
    assert shell("verify", "--engines", "bundle", "--json").json["passed"] is True
    assert "depth" not in shell(*build_arguments(out="whole")).out


def test_a_build_says_what_it_took_of_the_memory(shell: Shell) -> None:
    ran = shell(*build_arguments(out="bundle"))
    assert re.search(r"^peak host memory \d+\.\d+ [GM]B", ran.out, re.MULTILINE)
    peak = shell(*build_arguments(out="bundle"), "--json").json["peak"]
    weights = 4 * model_facts("flux-tiny").parameters
    assert peak["own_bytes"] > weights
    assert peak.keys() == {"own_bytes", "children_bytes"}


def test_build_places_its_switches_by_delta_as_plan_does(shell: Shell) -> None:
    arguments = (*build_arguments(preset="turbo,delta=0.05", out="bundle"), "--dry-run", "--json")
    drawn_up = shell(*arguments).json["builds"][0]["plan"]
    planned = ("--stages", 2, "--preset", "turbo,delta=0.05", "--size", "64x64", "--json")
    assert drawn_up == shell("plan", "--model", "flux-tiny", *planned).json
    assert drawn_up["preset"] is None


def test_a_build_says_which_defaults_it_has_and_why_and_nothing_if_asked(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fresco_trt.lower.request.this_gpu", lambda: None)
    asked = ("build", "--model", "flux-tiny", "--size", "64x64", "--dry-run", "--json")
    ran = shell(*asked)
    assert ran.json["builds"][0]["backend"] == "onnxruntime"
    assert ran.err == (
        "builds with onnxruntime in fp32: no NVIDIA GPU that torch can use is here;"
        " --backend and --precision choose otherwise\n"
    )
    assert shell(*asked, "--backend", "onnxruntime", "--precision", "fp32").err == ""


def test_generate_json(shell: Shell, eager_bundle: Path) -> None:
    arguments = ("generate", "--engines", eager_bundle, "--prompt", PROMPT, "--seed", 7)
    ran = shell(*arguments, "--out", "new/apple.png", "--preview", "--json")
    found, plan = ran.json, open_bundle(eager_bundle).plan
    assert {"image", "seed", "nfe", "seconds", "steps", "backend"} <= found.keys()
    assert {"total", "text", "denoise", "decode"} <= found["seconds"].keys()
    assert (found["seed"], found["nfe"], found["backend"]) == (7, plan.nfe, "eager")
    assert len(found["steps"]) == plan.nfe
    for step in found["steps"]:
        assert {"stage", "sigma", "action", "seconds"} <= step.keys()
    assert {step["stage"] for step in found["steps"]} == {1, 2, 3}
    assert ran.err == ""


def test_generate_writes_the_picture_and_a_preview_for_each_stage_but_the_last(
    shell: Shell, eager_bundle: Path
) -> None:
    ran = shell(
        *("generate", "--engines", eager_bundle, "--prompt", PROMPT),
        *("--out", "new/apple.png", "--preview"),
    )
    assert ran.code == 0
    names = ("apple.png", "apple.stage1.png", "apple.stage2.png")
    assert shell.left() == ["new", *(f"new/{name}" for name in names)]
    sizes = [size_of(shell.folder / "new" / name) for name in names]
    assert sizes == [(64, 64), (16, 16), (32, 32)]
    assert all(f"new/{name}" in ran.out for name in names)


def test_weights_that_are_no_numbers_stop_the_build_and_an_engine_of_them_the_picture(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY / "transformer", "transformer")
    file = shell.folder / "transformer" / WEIGHTS_NAME
    tensors = load_file(file)
    tensors["proj_out.bias"][3] = math.nan
    save_file(tensors, file)
    build = build_arguments(weights="transformer", out="bundle", stages=1)
    before = shell.left()
    ran = shell(*build)
    assert (ran.code, shell.left()) == (2, before)
    assert "not finite in float32: 1 tensor, the first proj_out.bias" in ran.err
    monkeypatch.setattr(assembly, "check_finite", lambda *_, **__: None)
    assert shell(*build).code == 0
    before = shell.left()
    ran = shell("generate", "--engines", "bundle", "--prompt", PROMPT, "--out", "apple.png")
    assert (ran.code, shell.left()) == (1, before)
    assert _ERROR.match(ran.err)
    assert "stage 1 of 1 (8x8 tokens), step 1 of 4: the engine stage1.full gave" in ran.err


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_the_same_command_writes_the_same_bytes(shell: Shell, eager_bundle: Path) -> None:
    pictures = []
    for name in ("a.png", "b.png"):
        shell("generate", "--engines", eager_bundle, "--prompt", PROMPT, "--out", name)
        pictures.append((shell.folder / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert shell.left() == ["a.png", "b.png"]


def test_verify_json(shell: Shell, eager_bundle: Path) -> None:
    found = shell("verify", "--engines", eager_bundle, "--json").json
    assert found["passed"] is True
    assert [each["engine"] for each in found["engines"]] == [f"stage{k}.full" for k in (1, 2, 3)]


def test_verify_of_a_wrong_engine_reports_and_fails(
    shell: Shell, eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zero(bundle: Any, library: Any, scope: Any, *others: Any, **more: Any) -> Mapping[str, Any]:
        records = bundle.manifest.engines
        return {r.name: scope.enter_context(FakeRunner(r.signature)) for r in records}

    monkeypatch.setattr("fresco_trt.pipelines.loading.load_runners", zero)
    ran = shell("verify", "--engines", eager_bundle, "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["passed"] is False
    assert _ERROR.match(ran.err)
    assert "stage1.full" in ran.err
    table = shell("verify", "--engines", eager_bundle)
    assert table.code == 1
    assert "FAILED" in table.out


def test_inspect_shows_the_manifest(shell: Shell, eager_bundle: Path) -> None:
    found = shell("inspect", eager_bundle, "--json").json
    manifest = json.loads((eager_bundle / "manifest.json").read_text())
    more = {"networks": {}, "attention": {}, "native_code": None, "signature": None}
    assert found == {"folder": str(eager_bundle), **manifest, **more}
    table = shell("inspect", eager_bundle)
    assert table.code == 0
    assert "stage3.full" in table.out
    assert manifest["key"][:16] in table.out


def test_doctor_shows_every_backend(shell: Shell) -> None:
    names = [each["name"] for each in shell("doctor", "--json").json["backends"]]
    table = shell("doctor")
    assert all(name in table.out for name in names)


# --- refusals ---------------------------------------------------------------------------------

WORDS: list[tuple[list[str], list[str]]] = [
    (["plan"], ["neither a model nor a plan", "pass --model or --plan"]),
    (["plan", "--plan", "absent.json"], ["--plan absent.json", "fresco-trt plan --json"]),
    (["plan", "--model", "flux-tinny"], ["flux-tinny", "did you mean flux-tiny"]),
    (["plan", "--model", "flux-tiny", "--preset", "slow"], ["slow", "balanced"]),
    (["plan", "--model", "flux-tiny", "--stages", "9"], ["9 stages", "--stages 3"]),
    (["plan", "--model", "flux-tiny", "--size", "250x250"], ["250x250", "--size 224x224"]),
    (["plan", "--model", "flux-tiny", "--size", "64"], ["'64'", "WIDTHxHEIGHT"]),
    (["plan", "--model", "flux-tiny", "--steps", "0"], ["0 steps"]),
    (["plan", "--model", "flux", "--preset", "delta=1.5"], ["delta=1.5", "between 0.01 and 0.2"]),
    (["plan", "--model", "flux", "--preset", "fast,shift=0"], ["shift=0", "3.16"]),
    (["plan", "--model", "flux", "--preset", "shift=nan"], ["shift=nan", "a number"]),
    (["plan", "--model", "flux", "--preset", "solver=heun"], ["solver=heun", "dpmpp_2m or unipc"]),
    (["plan", "--model", "flux", "--preset", "delta=nan"], ["delta=nan", "a number"]),
    (
        ["plan", "--model", "flux", "--stages", "1", "--preset", "delta=0.1"],
        ["no switch", "--stages 2"],
    ),
    (
        ["plan", "--model", "flux", "--preset", "fresco-11,delta=0.1"],
        ["mixed", "--preset balanced"],
    ),
    (
        ["plan", "--model", "flux-tiny", "--size", "64x64", "--size", "128x128"],
        ["2 sizes", "one size at a time"],
    ),
    (build_arguments(model="flux-tinny"), ["flux-tinny"]),
    (build_arguments(preset="slow"), ["slow"]),
    (build_arguments(stages=9), ["9 stages"]),
    (build_arguments(preset="delta=0.0"), ["delta=0", "between 0.01 and 0.2"]),
    (build_arguments(stages=1, preset="fast,delta=0.1"), ["no switch", "--stages 2"]),
    (build_arguments(size="100x100"), ["100x100", "--size 96x96"]),
    (build_arguments(size="64by64"), ["64by64"]),
    (build_arguments(steps=9), ["--steps 9 with 2 stages", "leave --steps out"]),
    (build_arguments(backend="abacus"), ["abacus", "onnxruntime"]),
    (build_arguments(blocks="1,1"), ["--blocks 1,1 without", "--weights random"]),
    (build_arguments(blocks="1,1", weights=TINY), ["--blocks 1,1 with weights", "random"]),
    (build_arguments(blocks="1", weights="random"), ["--blocks 1 of flux-tiny", "--blocks 1,1"]),
    (build_arguments(blocks="3,1", weights="random"), ["--blocks 3,1 of flux-tiny", "to 2,4"]),
    (build_arguments(precision="fp8"), ["--precision fp8", "bf16"]),
    (build_arguments(precision="fp32,recipe=int8"), ["recipe=int8 in --precision fp32"]),
    (build_arguments(precision="fp32,keep=*"), ["keep in --precision fp32", "--precision int8"]),
    (build_arguments(precision="fp32,amax=r"), ["amax in --precision fp32"]),
    (
        build_arguments(backend="onnxruntime", precision="int8,amax=absent"),
        ["absent cannot be used", "calibrate --measure amax"],
    ),
    (
        build_arguments(backend="tensorrt-rtx", precision="fp8", target="sm86"),
        ["fp8 for sm86", "sm89"],
    ),
    (build_arguments(cache="hicach"), ["--cache hicach", "did you mean hicache"]),
    (build_arguments(cache="none,interval=2"), ["without a cache", "--cache hicache"]),
    (build_arguments(cache="interval=2"), ["no name", "--cache hicache,interval=3"]),
    (build_arguments(cache="taylor,intervall=2"), ["intervall", "did you mean interval?"]),
    (build_arguments(target="sm89,sm120"), ["'sm120'", "sm89+sm120"]),
    (build_arguments(cache="taylor,interval=1"), ["skips none", "interval=2"]),
    (build_arguments(cache="taylor,actions=BF+FF"), ["actions=BF+FF", "one a stage"]),
    (build_arguments(cache="taylor,max_order=4"), ["max_order=4", "1 or 2 or 3"]),
    (build_arguments(cache="taylor,basis=b.safetensors"), ["basis=b.saf", "--cache svd"]),
    (
        build_arguments(cache="svd,warmup_steps=1,basis=b.safetensors"),
        ["b.safetensors", "calibrate"],
    ),
    (["plan", "--model", "flux", "--cache", "reuse,actions=FB"], ["of 2 steps", "3 words"]),
    (calibrate_arguments("size"), ["--measure size", "spectrum, basis, cache-schedule"]),
    (calibrate_arguments("spectrum", energy=0.5), ["--energy", "pass --measure basis"]),
    (calibrate_arguments("basis", scenes=5), ["--scenes", "pass --measure spectrum"]),
    (calibrate_arguments("basis", energy=2), ["energy of 2"]),
    (calibrate_arguments("basis", prompts="no.txt"), ["no.txt", "one prompt a line"]),
    (calibrate_arguments("basis", cache="svd"), ["--cache", "pass --measure cache-schedule"]),
    (calibrate_arguments("cache-schedule", cache="hicach"), ["did you mean hicache"]),
    (calibrate_arguments("cache-schedule", cache="hicache,interval=2"), ["leave the rest out"]),
    (calibrate_arguments("amax", precision="int8,force=true"), ["leave force and amax out"]),
    (
        calibrate_arguments("cache-schedule", cache="reuse,max_order=1"),
        ["max_order=1", "write max_order=0"],
    ),
    (calibrate_arguments("cache-schedule", stages=9), ["9 stages"]),
    (build_arguments(backend="onnxruntime", target="sm89"), ["--target sm89", "no target"]),
    (build_arguments(graphs="onnx"), ["--graphs onnx", "--backend onnxruntime"]),
    (build_arguments(weights="absent"), ["absent does not exist", "--weights random"]),
    (build_arguments(weights=TINY / "vae"), ["AutoencoderKL", "--model"]),
    (
        build_arguments(model="flux", size=None),
        ["black-forest-labs/FLUX.1-dev", str(bundled_folder("flux"))],
    ),
    (["generate", "--engines", "absent", "--prompt", "a cat"], ["'absent'", "fresco-trt build"]),
    (["verify", "--engines", "absent"], ["'absent'", "fresco-trt build"]),
    (["verify", "--engines", "absent", "--tolerance", "nan"], ["tolerance nan"]),
    (["verify", "--engines", "absent", "--seed", "-1"], ["seed -1"]),
    (["inspect", "absent"], ["'absent'", "fresco-trt build"]),
]


@pytest.mark.parametrize(("arguments", "words"), WORDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_wrong_request_is_refused_with_a_way_out(
    shell: Shell, arguments: list[str], words: list[str], as_json: bool
) -> None:
    ran = shell(*arguments, *(["--json"] if as_json else []))
    assert ran.code == 2
    assert _ERROR.match(ran.err), ran.err
    assert all(word in ran.err for word in words), ran.err
    assert ran.out == ""
    assert shell.left() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["draw"],
        ["generate"],
        ["plan", "--model", "flux-tiny", "--stages", "three"],
        ["plan", "--model", "flux-tiny", "--colour", "red"],
        ["generate", "--engines", "absent", "--prompt", "a cat", "--seed", "many"],
    ],
)
def test_a_wrong_word_is_refused_with_the_usage(shell: Shell, arguments: list[str]) -> None:
    ran = shell(*arguments)
    assert ran.code == 2
    assert "Usage" in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_an_old_option_is_refused_by_its_new_spelling(shell: Shell, name: str) -> None:
    option, example = RENAMED[name]
    for arguments in ([*build_arguments(), name, "3"], [*build_arguments(), f"{name}=3"]):
        ran = shell(*arguments)
        assert ran.code == 2
        assert _ERROR.match(ran.err), ran.err
        assert f"{option} {example}" in ran.err
    # A command that never had it knows nothing of it.
    assert "Usage" in shell("doctor", name).err


def test_every_example_of_a_new_spelling_is_one() -> None:
    kinds = (CacheConfig, QuantConfig, TargetConfig, PresetConfig)
    parse = {kind.option: kind.parse for kind in kinds}
    for option, example in RENAMED.values():
        assert str(parse[option](example))


# --- a plan from a file -----------------------------------------------------------------------


def test_a_plan_that_was_printed_is_planned_and_built_as_it_is(shell: Shell) -> None:
    asked = ("--stages", 2, "--preset", "turbo", "--size", "64x64", "--cache", "reuse,interval=2")
    ran = shell("plan", "--model", "flux-tiny", *asked, "--json")
    (shell.folder / "plan.json").write_text(ran.out)
    again = ("plan", "--plan", "plan.json", "--json")
    assert shell(*again).json == shell(*again, "--model", "flux-tiny").json == ran.json
    built = ("build", "--plan", "plan.json", "--backend", "eager", "--out", "bundle", "--json")
    assert shell(*built).json["bundles"][0]["state"] == "built"
    assert open_bundle(shell.folder / "bundle").plan == StagePlan.from_json(
        {key: value for key, value in ran.json.items() if key not in SUMMARY_KEYS}
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--stages", "2"),
        ("--preset", "fast"),
        ("--size", "64x64"),
        ("--steps", "4"),
        ("--cache", "hicache"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "build"])
def test_what_a_plan_has_decided_is_refused_beside_it(
    shell: Shell, command: str, option: str, value: str
) -> None:
    plan = shell("plan", "--model", "flux-tiny", "--stages", 1, "--preset", "fast", "--json")
    path = shell.folder.parent / "plan.json"
    path.write_text(plan.out)
    ran = shell(command, "--plan", path, option, value)
    assert ran.code == 2
    assert f"{option} beside a plan" in ran.err
    assert _ERROR.match(ran.err)


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_guidance_out_of_range_is_refused(shell: Shell, eager_bundle: Path, value: str) -> None:
    ran = shell("generate", "--engines", eager_bundle, "--prompt", "a cat", "--guidance", value)
    assert ran.code == 2
    assert _ERROR.match(ran.err)
    assert shell.left() == []


def test_a_damaged_bundle_is_refused(shell: Shell, eager_bundle: Path) -> None:
    bundle = shutil.copytree(eager_bundle, shell.folder.parent / "damaged")
    with (bundle / "transformer" / "config.json").open("r+b") as file:
        file.write(b" ")
    for command in (["generate", "--prompt", "a cat", "--engines"], ["verify", "--engines"]):
        ran = shell(*command, bundle)
        assert ran.code == 2
        assert _ERROR.match(ran.err)
        assert "transformer/config.json" in ran.err
    assert shell("inspect", bundle).code == 2
    assert shell.left() == []


def test_a_file_where_the_bundle_should_go_stays(shell: Shell) -> None:
    (shell.folder / "bundle").write_text("mine")
    ran = shell(*build_arguments(out="bundle"))
    assert ran.code == 2
    assert _ERROR.match(ran.err)
    assert (shell.folder / "bundle").read_text() == "mine"
    assert shell.left() == ["bundle"]


# --- the picture's place ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("apple.jpg", "ending in .png"),
        ("apple", "ending in .png"),
        ("folder.png", "it is a folder"),
        ("file/apple.png", "Not a directory"),
        ("file/deeper/apple.png", "Not a directory"),
        ("/proc/apple.png", "cannot be written"),
        (f"{'a' * 300}.png", "too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_engines_are_loaded(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, out: str, words: str
) -> None:
    (shell.folder / "folder.png").mkdir()
    (shell.folder / "file").touch()
    monkeypatch.delattr("fresco_trt.pipelines.image.FrescoPipeline.over")
    ran = shell("generate", "--engines", "anything", "--prompt", "a cat", "--out", out)
    assert ran.code == 2
    assert _ERROR.match(ran.err)
    assert words in ran.err
    assert shell.left() == ["file", "folder.png"]


def test_a_refused_request_makes_no_folder_for_its_picture(shell: Shell) -> None:
    ran = shell("generate", "--engines", "absent", "--prompt", "a cat", "--out", "new/apple.png")
    assert ran.code == 2
    assert shell.left() == []


class Unwritable:
    """A picture whose encoder fails halfway."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def save(self, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise self._error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), DiskFull),
        (OSError(5, "Input/output error"), OutputNotWritable),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_half_a_picture_is_never_left(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    (tmp_path / "apple.png").write_text("old")
    picture: Any = Unwritable(error)
    with pytest.raises(raised):
        save_picture(picture, tmp_path / "apple.png")
    assert [path.name for path in tmp_path.iterdir()] == ["apple.png"]
    assert (tmp_path / "apple.png").read_text() == "old"


# --- prompts ----------------------------------------------------------------------------------


def drawn(shell: Shell, bundle: Path, prompt: str) -> list[str]:
    """The lines on standard error of a successful drawing."""
    ran = shell("generate", "--engines", bundle, "--prompt", prompt, "--out", "a.png", "--json")
    assert ran.json["image"] == "a.png"
    return ran.err.splitlines()


def test_a_long_prompt_draws_with_one_warning_for_each_encoder(
    shell: Shell, eager_bundle: Path
) -> None:
    said = drawn(shell, eager_bundle, "a red apple and " * 300)
    assert [line.split(":")[0] for line in said] == ["warning", "warning"]
    assert "pooled encoder takes 32" in said[0]
    assert "sequence encoder takes 128" in said[1]


def test_an_unknown_word_draws_with_a_warning(shell: Shell, eager_bundle: Path) -> None:
    said = drawn(shell, eager_bundle, "a [bold]zebra[/bold] on a plain blue background")
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert "[bold]zebra[/bold]" in said[0]


@pytest.mark.parametrize("prompt", ["", " ", PROMPT])
def test_a_readable_prompt_draws_without_a_word(
    shell: Shell, eager_bundle: Path, prompt: str
) -> None:
    assert drawn(shell, eager_bundle, prompt) == []


def test_bytes_that_are_no_text_are_refused(shell: Shell, eager_bundle: Path) -> None:
    ran = shell("generate", "--engines", eager_bundle, "--prompt", "a cat \udcff")
    assert ran.code == 2
    assert _ERROR.match(ran.err)
    assert shell.left() == []


# --- what surrounds a command -----------------------------------------------------------------


def test_the_callers_warnings_are_left_as_they_were(shell: Shell) -> None:
    before = warnings.showwarning, list(warnings.filters)
    shell("plan", "--model", "flux-tiny")
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_bars_are_drawn_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with display.progress() as report:
        report("nothing to see", 0.5)
    assert capsys.readouterr() == ("", "")
    terminal = Console(stderr=True, force_terminal=True, width=80)
    monkeypatch.setattr(display, "_err", lambda: terminal)
    with display.progress() as report:
        report("first [phase]", 0.5)
        report("second", 1.0)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "first [phase]" in shown.err
    assert "second" in shown.err


def test_a_phase_is_over_when_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: PTH123, SIM115
    monkeypatch.setattr(display, "_err", lambda: terminal)
    tasks: Any = {}
    from rich.progress import Progress

    with terminal.file, Progress(console=terminal) as bars:
        for phase, fraction in (("first", 0.5), ("second", 0.2), ("second", 0.4)):
            display._advance(bars, tasks, phase, fraction)
        assert [task.completed for task in bars.tasks] == [1.0, 0.4]


FRESH = (sys.executable, "-m", "fresco_trt.cli")


def start(
    *arguments: object, folder: Path, program: Sequence[str] = FRESH
) -> subprocess.Popen[str]:
    """A command in a process of its own, in ``folder``."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [*program, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_fresh_process_prints_one_json_object_and_nothing_else(
    tmp_path: Path, onnx_bundle: Path
) -> None:
    arguments = ("generate", "--engines", onnx_bundle, "--prompt", PROMPT, "--json")
    process = start(*arguments, folder=tmp_path)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["backend"] == "onnxruntime"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_an_interrupted_build_keeps_the_old_bundle_and_says_so(
    tmp_path: Path, eager_bundle: Path, preloaded: Preloaded
) -> None:
    old = shutil.copytree(eager_bundle, tmp_path / "bundle")
    before = (old / "manifest.json").read_bytes()
    arguments = build_arguments(backend="onnxruntime", stages=3, out="bundle")
    process = start(*arguments, folder=tmp_path, program=[str(preloaded.command)])
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob(".bundle.partial-*/.work-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    # An interrupt that meets Python inside exec() is handled, and still sets a flag that ends the
    # process by the signal; shells report 130 either way.
    assert process.returncode in (130, -signal.SIGINT), err
    assert "Traceback" not in err
    assert err.endswith("kept\n")
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (old / "manifest.json").read_bytes() == before


def test_a_terminated_build_ends_as_an_interrupted_one(
    shell: Shell, eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(eager_bundle, shell.folder / "bundle", copy_function=os.link)
    left = shell.left()

    def twice(*arguments: object) -> None:
        assert list(shell.folder.glob(".bundle.partial-*"))
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # as some do that end a process and its group

    monkeypatch.setattr("fresco_trt.lower.build._engines", twice)
    try:
        ran = shell(*build_arguments(out="bundle"))
    finally:
        ignored = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert (ran.code, ran.out) == (143, "")
    assert ran.err.endswith(
        "terminated; what was being written is gone, what was there before is kept\n"
    )
    assert shell.left() == left
    assert ignored is signal.SIG_IGN


def test_without_a_termination_the_signal_means_what_it_meant(shell: Shell) -> None:
    assert shell("plan", "--model", "flux-tiny").code == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- a model over another's parts -------------------------------------------------------------


@pytest.mark.slow
def test_a_student_goes_from_plan_to_verified_picture(shell: Shell) -> None:
    asked = ("--model", "flux-tiny-turbo", "--stages", 2, "--preset", "balanced", "--size", "64x64")
    planned = shell("plan", *asked, "--json").json
    assert planned["flops_ratio"] > 1  # over the four steps that are its own
    assert shell("build", *asked, "--backend", "eager", "--json").code == 0
    bundle = "engines/flux-tiny-turbo-64x64-2stage"
    drawn = shell("generate", "--engines", bundle, "--prompt", PROMPT, "--json").json
    assert drawn["nfe"] == planned["nfe"]
    assert shell("verify", "--engines", bundle, "--json").code == 0
    shown = shell("inspect", bundle, "--json").json
    assert shown["model"]["name"] == "flux-tiny-turbo"
    teacher = ("--model", "flux-tiny", *asked[2:], "--backend", "eager", "--out", "teacher")
    other = shell("build", *teacher, "--json")
    weights = shell("inspect", "teacher", "--json").json["model"]["weights_sha256"]
    assert other.code == 0
    assert shown["model"]["weights_sha256"] != weights


@pytest.mark.parametrize("attack", reports.ATTACKS.values(), ids=reports.ATTACKS)
def test_a_report_of_another_shape_is_refused_by_its_name(
    attack: Callable[[Path], None],
    eager_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "b", copy_function=os.link)
    attack(folder)
    assert cli.main(["inspect", str(folder)]) in (1, 2)
    said = capsys.readouterr().err.removesuffix("\n")
    assert said.isprintable()
    assert "products.json" in said or "attention.json" in said
    assert "build" in said.partition("Fix: ")[2]
