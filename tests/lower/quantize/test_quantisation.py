"""Quantised builds: judged before they are published, refused with a way out, or forced."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from fresco_trt import verify
from fresco_trt.bundle import open_bundle
from fresco_trt.errors import (
    CalibrationError,
    IncompatibleOptions,
    QualityTooLow,
    UnsupportedPrecision,
)
from fresco_trt.lower import gather
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.lower.calibrate.basis import Reference, default_prompts, read_prompts
from fresco_trt.lower.quantize import quantisation as quantized
from fresco_trt.lower.quantize.gate import Verdict
from fresco_trt.lower.request import resolve
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.config import QuantConfig
from fresco_trt.verify import verify_bundle
from tests.shallow import NAME, shallow_pipeline, shallow_transformer

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(autouse=True)
def two_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts: what is judged here is the gate."""
    path = tmp_path / "prompts.txt"
    path.write_text("a star on a plain red background\na cat on a checked blue background\n")
    monkeypatch.setattr(gather, "default_prompts", lambda model: path)


def request(out: Path, **options: Any) -> BuildRequest:
    settings: dict[str, Any] = {
        "model": "flux-tiny",
        "stages": 2,
        "preset": "turbo",
        "size": (64, 64),
        "precision": "int8",
        "out": out,
    }
    return BuildRequest(**(settings | options))


def one_graph(out: Path, **options: Any) -> BuildRequest:
    """Of one stage: exporting its graph is what takes long, and one shows as much as two."""
    return request(out, **({"stages": 1, "preset": None, "steps": 2} | options))


def two_blocks(out: Path, **options: Any) -> BuildRequest:
    """The same of random weights and one block of each kind, where it is not about pictures."""
    return one_graph(out, **({"weights": "random", "blocks": (1, 1)} | options))


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """What gives again what it gave first, whatever it is given."""
    found: list[Any] = []

    def call(*given: Any) -> Any:
        if not found:
            found.append(function(*given))
        return found[0]

    return call


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 bundle of two small stages with a cache, of two blocks, whatever its quality."""
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    path = folder.parent / "prompts.txt"
    # Of one prompt the amax would clip what another one needs.
    path.write_text("".join(f"{each}\n" for each in read_prompts(default_prompts("flux-tiny"))[:4]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "default_prompts", lambda model: path)
        cache = "reuse,interval=2,warmup_steps=1"
        few: dict[str, Any] = {"weights": "random", "blocks": (1, 1)}
        run(request(folder, precision="int8,force=true", cache=cache, **few))
    return folder


def test_the_manifest_says_what_was_quantised_and_how_well(bundle: Path) -> None:
    record = open_bundle(bundle).manifest.quantized
    assert record is not None
    assert record.recipe == "int8-smooth"
    assert record.bytes <= 0.27 * record.float32_bytes
    for name in ("stage1.full", "stage2.full"):
        assert record.products[name]["int8"] == 11
    assert "int8" not in record.products["stage1.bypass"]
    assert record.judged_by == "engines"
    assert 0 < record.lowest <= record.ssim < 1
    assert record.forced == (record.ssim < record.threshold)
    assert record.errors.keys() == record.products.keys()


@pytest.mark.slow
def test_attention_in_codes_is_judged_like_any_recipe(tmp_path: Path) -> None:
    options: dict[str, Any] = {"preset": None, "stages": 1, "steps": 4}
    attention = "fp8,recipe=fp8-attention"
    built = run(request(tmp_path / "b", precision=attention, **options))  # it passes the gate
    record = built.bundle.manifest.quantized
    assert record is not None
    assert record.recipe == "fp8-attention"
    assert record.products["stage1.full"] == {"fp8": 40, "float": 34}
    assert record.bytes <= 0.27 * record.float32_bytes
    assert record.judged_by == "engines"
    assert record.threshold <= record.ssim < 1
    assert not record.forced
    assert 0.01 < record.errors["stage1.full"] < 0.4
    verify_bundle(built.bundle.folder).require()
    assert run(request(tmp_path / "b", precision=attention, **options)).reused
    plain = run(request(tmp_path / "b", precision="fp8", **options))
    assert plain.state == "rebuilt: quantisation differs"
    layers = plain.bundle.manifest.quantized
    assert layers is not None
    assert layers.products["stage1.full"] == {"fp8": 28, "float": 46}
    assert (layers.bytes, layers.float32_bytes) == (record.bytes, record.float32_bytes)
    print(f"mean SSIM {record.ssim:.3f}, with the layers alone {layers.ssim:.3f}")


def test_its_engines_are_verified_at_a_tolerance_of_their_own(bundle: Path) -> None:
    outcome = verify_bundle(bundle)
    assert outcome.tolerance == verify.TOLERANCES["int8"]
    outcome.require()
    errors = {each.engine: each.relative for each in outcome.engines}
    assert errors["stage1.full"] > verify.TOLERANCES["fp32"]
    assert errors["stage1.bypass"] < verify.TOLERANCES["fp32"]


def test_it_draws(bundle: Path) -> None:
    with fresco_trt.FrescoPipeline.from_bundle(bundle) as pipe:
        assert pipe("a star on a plain red background", seed=1).images[0].size == (64, 64)


def test_a_bundle_that_draws_other_pictures_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = once(quantized.measure_sensitivity)
    monkeypatch.setattr(quantized, "measure_sensitivity", groups)
    monkeypatch.setattr(quantized, "THRESHOLD", 1.0)
    out = tmp_path / "out" / "bundle"
    with pytest.raises(QualityTooLow) as caught:
        run(two_blocks(out))
    assert list(out.parent.iterdir()) == []
    said = str(caught.value)
    assert re.search(r"mean SSIM [01]\.\d{3} to", said)
    assert "worst engine stage" in said
    assert "worst group" in said
    assert "keep=" in caught.value.fix
    assert "force=true" in caught.value.fix
    built = run(two_blocks(out, precision="int8,force=true"))
    record = built.bundle.manifest.quantized
    assert record is not None
    assert record.forced
    assert 0 < record.lowest <= record.ssim < 1
    assert run(two_blocks(out, precision="int8,force=true")).reused
    with pytest.raises(QualityTooLow):  # what was forced once is not taken for sound later
        run(two_blocks(out))
    assert open_bundle(out).manifest == built.bundle.manifest


def test_engines_that_give_no_numbers_are_refused_even_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Verdict(ssim=0.99, lowest=0.98, errors={"stage1.full": 0.1, "stage2.full": math.inf})
    monkeypatch.setattr(quantized, "judge", lambda *_, **__: broken)
    with pytest.raises(QualityTooLow, match=r"stage2.full gives values that are not finite"):
        run(two_blocks(tmp_path / "b", precision="int8,force=true"))
    assert not (tmp_path / "b").exists()


def test_what_is_kept_stays_in_float(tmp_path: Path) -> None:
    kept = ("single_transformer_blocks.*", "*.to_v")
    precision = QuantConfig(precision="int8", keep=kept, force=True)
    built = run(two_blocks(tmp_path / "b", precision=precision))
    record = built.bundle.manifest.quantized
    assert record is not None
    assert record.kept[-2:] == kept
    assert record.products["stage1.full"]["int8"] == 7
    again = run(two_blocks(tmp_path / "b", precision=precision))
    assert again.reused
    other = run(two_blocks(tmp_path / "b", precision="int8,force=true"))
    assert other.state == "rebuilt: quantisation differs"


def test_measured_ranges_are_taken_if_they_belong_to_the_build(tmp_path: Path) -> None:
    from fresco_trt.lower.calibrate.amax import measure_amax
    from fresco_trt.models.weights import weights_digest
    from fresco_trt.plan.recipes import RECIPES

    model, facts = shallow_transformer(), model_facts(NAME)
    folder = shallow_pipeline(tmp_path / "flux-tiny")
    trained = {"model": NAME, "weights": str(folder)}
    reference = Reference(
        facts=facts,
        transformer=model,
        weights_sha256=weights_digest(model),
        pipeline=folder,
        prompts=read_prompts(default_prompts("flux-tiny"))[:1],
    )
    plan = fresco_trt.plan(NAME, stages=1, steps=2, size=(64, 64))
    kept = facts.high_precision
    amax = measure_amax(reference, plan, RECIPES["int8-smooth"], kept, lambda *_: None)
    path = tmp_path / "amax.safetensors"
    amax.store(path)
    built = run(one_graph(tmp_path / "b", precision=f"int8,amax={path},force=true", **trained))
    record = built.bundle.manifest.quantized
    assert record is not None
    assert record.amax_sha256 == amax.digest()
    stale = one_graph(tmp_path / "c", size=(96, 96), precision=f"int8,amax={path}", **trained)
    with pytest.raises(CalibrationError, match="amax of plan"):
        run(stale)
    assert not (tmp_path / "c").exists()


def test_without_prompts_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    empty = tmp_path / "none.txt"
    empty.write_text("\n")
    monkeypatch.setattr(gather, "default_prompts", lambda model: empty)
    with pytest.raises(CalibrationError, match="without a prompt"):
        run(request(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp32,keep=*"}, "keep in --precision fp32"),
        ({"precision": "bf16,force=true"}, "bf16 with the backend"),
        ({"precision": "int8,recipe=fp8"}, "recipe=fp8 in --precision int8"),
        ({"precision": "int8,amax=r,keep=*"}, "keep with amax in --precision int8"),
        ({"backend": "eager"}, "int8 with the backend eager"),
        (
            {
                "backend": "inductor",
                "precision": "fp8,recipe=fp8-attention",
            },
            "fp8-attention with the backend inductor",
        ),
        (
            {"precision": "fp8", "backend": "tensorrt-rtx", "target": "sm86+sm120"},
            "fp8 for sm86",
        ),
    ],
)
def test_what_cannot_be_is_refused_while_planning(options: dict[str, Any], words: str) -> None:
    with pytest.raises((IncompatibleOptions, UnsupportedPrecision), match=words) as caught:
        resolve(request(Path("b"), **options))
    assert caught.value.exit_code == 2
