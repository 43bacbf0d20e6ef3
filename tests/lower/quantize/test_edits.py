"""Models that edit in codes: ranges cover their sources in every stage, and edits stay what they
were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fresco_trt.backends.base import silent
from fresco_trt.bundle.amax import Amax, AmaxRecord, LayerAmax
from fresco_trt.errors import CalibrationError
from fresco_trt.lower import gather
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.lower.calibrate.amax import layers_of, measure_amax
from fresco_trt.lower.calibrate.basis import Reference, measure_basis
from fresco_trt.lower.calibrate.cache_schedule import measure_cache_schedule
from fresco_trt.lower.calibrate.edits import METADATA, read_edits
from fresco_trt.lower.calibrate.trajectories import full_runners, in_full
from fresco_trt.lower.quantize.gate import judge, simulated_runners
from fresco_trt.lower.quantize.simulation import simulate
from fresco_trt.lower.request import resolve
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.models.weights import weights_digest
from fresco_trt.plan.cache_schedule import cache_settings
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.editing import SELECTIVE_PRESET
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.editing import masks_of
from fresco_trt.run.request import Conditioning
from fresco_trt.run.sampler import engine_name
from fresco_trt.verify import verify_bundle
from tests.pipelines.test_edit import MODEL, SIZE

FACTS = replace(model_facts(MODEL), text_tokens=32)  # of 512, which are most of the time
FAMILY = family_of(FACTS)
PLAN = plan_from_preset(
    FACTS, replace(FACTS.presets[SELECTIVE_PRESET][3], steps=(2, 1, 1)), size=SIZE
)
"""A draft, and as alternatives behind it a mixed stage and the whole grid."""

KEPT = FACTS.high_precision
PROMPTS = ("make it blue", "add a cat")
WITHOUT_SOURCE = ("add_", "context")  # parts of the names of layers that see the text alone


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of coloured squares, and their prompts."""
    folder = tmp_path_factory.mktemp("edits")
    return written(folder, np.random.default_rng(0))


def written(folder: Path, rng: np.random.Generator) -> Path:
    lines = []
    for number, prompt in enumerate(PROMPTS):
        squares = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(squares).resize(SIZE, Image.Resampling.NEAREST).save(
            folder / f"{number}.png"
        )
        lines.append(json.dumps({"file_name": f"{number}.png", "prompt": prompt}))
    (folder / METADATA).write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def reference(edits: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    model = FAMILY.weights.load("random", FACTS)
    prompts, pictures = read_edits(edits, SIZE)
    return Reference(
        facts=FACTS,
        transformer=model,
        weights_sha256=weights_digest(model),
        pipeline=FAMILY.components.write_random(FACTS, tmp_path_factory.mktemp("kontext")),
        prompts=prompts,
        pictures=pictures,
    )


def sources_seen(reference: Reference) -> Iterator[tuple[int, str, float]]:
    """Stage, layer and largest magnitude of the sources' tokens alone, at every step."""
    components, model = FAMILY.components, reference.transformer
    encode = components.prompt_encoder(reference.pipeline, FACTS.text_tokens)
    latents = components.encoder(reference.pipeline)
    seen: dict[str, Tensor] = {}
    names = [n for n in layers_of(model, KEPT) if not any(each in n for each in WITHOUT_SOURCE)]
    with ExitStack() as scope:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update({name: inputs[0].detach()})
            )
            scope.callback(hook.remove)
        runners = full_runners(reference, PLAN, scope)
        denoiser = Denoiser.of(FACTS, PLAN, runners, text_tokens=FACTS.text_tokens)
        for seed, (prompt, picture) in enumerate(
            zip(reference.prompts, reference.pictures, strict=True)
        ):
            inputs = {**encode(prompt), "guidance": torch.tensor([FACTS.guidance_default])}
            source = latents(np.array(picture)[None])
            for mask in masks_of(PLAN):
                given = Conditioning(inputs=inputs, references=(source,), mask=mask)
                for step in denoiser.steps(given, seed):
                    behind = PLAN.reference_tokens[step.stage]
                    for name, value in seen.items():
                        yield step.stage, name, float(value[:, -behind:].abs().max())


def test_ranges_cover_the_sources_tokens_in_every_stage(reference: Reference) -> None:
    amax = measure_amax(reference, PLAN, RECIPES["int8"], KEPT, silent)
    largest: dict[tuple[int, str], float] = {}
    for stage, name, value in sources_seen(reference):
        largest[stage, name] = max(value, largest.get((stage, name), 0.0))
    assert {stage for stage, _ in largest} == {0, 1, 2}
    found = {(stage, name): float(amax.layers[name].input[stage]) for stage, name in largest}
    assert all(found[key] >= value * (1 - 1e-5) for key, value in largest.items())
    # Some ranges are the sources' own: without them they would be narrower.
    assert any(value >= found[key] * (1 - 1e-5) for key, value in largest.items())


@pytest.mark.parametrize(("name", "bound"), [("int8-smooth", 0.005), ("fp8", 0.02)])
def test_edits_in_codes_are_close_to_those_in_float(
    name: str, bound: float, reference: Reference
) -> None:
    recipe = RECIPES[name]
    amax = measure_amax(reference, PLAN, recipe, KEPT, silent)
    verdict = judged(reference, amax, name)
    assert verdict.errors.keys() == {f"stage{number}.full" for number in (1, 2, 3)}
    assert 1e-5 < max(verdict.errors.values()) < bound
    assert verdict.lowest > 0.999
    # Ranges that leave out a part of what comes are told by the same figures.
    narrow = {layer: replace(each, input=each.input / 8) for layer, each in amax.layers.items()}
    assert max(judged(reference, replace(amax, layers=narrow), name).errors.values()) > bound


def judged(reference: Reference, amax: Amax, name: str) -> Any:
    with ExitStack() as scope:
        model = simulate(reference.transformer, amax, RECIPES[name])
        signatures = {
            engine_name(index, action): FAMILY.graphs.signature(
                FACTS, PLAN, index, action, text_tokens=FACTS.text_tokens
            )
            for index, action in PLAN.graphs
        }
        runners = simulated_runners(reference, model, signatures, scope)
        return judge(reference, PLAN, runners, basis=None, progress=silent)


def test_what_caches_need_is_measured_on_edits_too(reference: Reference) -> None:
    settings = cache_settings(CacheConfig(name="hicache"))
    (found,) = measure_cache_schedule(reference, PLAN, settings, (100.0,))
    assert found.actions == ("FB", "F", "F")
    basis = measure_basis(reference, in_full(PLAN))
    assert basis.record.prompts_sha256 == reference.prompts_sha256


@pytest.mark.usefixtures("traced_once")
def test_a_build_measures_on_edits_and_records_them(
    edits: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "default_edits", lambda model: edits)
    asked = BuildRequest(
        model=MODEL,
        weights="random",
        size=SIZE,
        stages=1,
        steps=2,
        backend="onnxruntime",
        precision="int8",
        out=tmp_path / "b",
    )
    bundle = run(asked).bundle
    record = bundle.manifest.quantized
    assert record is not None
    assert record.products["stage1.full"]["int8"] == 17
    assert record.ssim > 0.999
    assert reference.prompts_sha256 in str(bundle.manifest.built.options["quantisation"])
    outcome = verify_bundle(bundle.folder)
    outcome.require()
    assert 1e-5 < max(each.relative for each in outcome.engines) < 0.01
    others = written(tmp_path, np.random.default_rng(1))
    monkeypatch.setattr(gather, "default_edits", lambda model: others)
    with ExitStack() as scope:
        made = gather.gather(resolve(asked), scope, silent)
        assert made.key != bundle.manifest.key


def test_ranges_of_a_model_that_draws_are_none_of_one_that_edits(
    edits: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "default_edits", lambda model: edits)
    record = AmaxRecord(
        model="flux",
        weights_sha256=reference.weights_sha256,
        recipe="int8-smooth",
        kept=(),
        prompts=2,
        prompts_sha256="b" * 64,
        seed=0,
        plan_sha256=in_full(PLAN).digest(),
    )
    path = tmp_path / "amax.safetensors"
    layer = LayerAmax(input=torch.ones(3), weight=torch.ones(()))
    Amax(layers={"proj": layer}, record=record).store(path)
    asked = BuildRequest(
        plan=PLAN,
        weights="random",
        backend="onnxruntime",
        precision=f"int8,amax={path}",
        out=tmp_path / "b",
    )
    with pytest.raises(CalibrationError, match="amax of model flux; expected") as caught:
        run(asked)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "b").exists()
