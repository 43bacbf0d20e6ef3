"""A family that is nobody's, in one file: clips, a reference picture and true guidance.

The proof of the seam: nothing of the package is changed for it, and it goes through plan, eager
engines, sampler, caches and bundle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fresco_trt.backends.eager import module_runner
from fresco_trt.bundle import open_bundle
from fresco_trt.errors import (
    EnvironmentMismatch,
    IncompatibleOptions,
    UnknownModel,
    UnsupportedSize,
)
from fresco_trt.lower.build import build
from fresco_trt.models.family import ModelFamily
from fresco_trt.models.registry import (
    family_of,
    model_facts,
    model_names,
    register,
    unregister,
)
from fresco_trt.pipelines.environment import check_environment
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.plan.caching import FEATURES, Action, CacheSite
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.memory import Parameters
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning
from fresco_trt.run.sampler import engine_name

TOY = ModelFacts(
    name="toy-clip",
    family="toy",
    hidden=8,
    heads=2,
    head_dim=4,
    double_blocks=1,
    single_blocks=0,
    mlp_ratio=2,
    in_channels=8,
    text_dim=4,
    pooled_dim=0,
    text_tokens=3,
    rope_axes=(2, 1, 1),
    guidance=False,
    guidance_default=None,
    default_steps=8,
    vae_scale=2,
    latent_channels=2,
    patch=2,
    default_size=(32, 16, 5),
    max_pixels=64 * 64,
    parameters=376,
    high_precision=(),
    shift=None,
    spectrum=None,
    presets={
        "balanced": {
            1: Preset(steps=(6,)),
            2: Preset(steps=(4, 4), switch=(0.6,), lift="nearest"),
            3: Preset(
                steps=(3, 3, 3), switch=(0.8, 0.5), refine=((("converged", 0.25),), ()), window=2
            ),
        }
    },
    temporal_scale=2,
    max_frames=9,
    references=1,
)


class ToyTransformer(nn.Module):
    """Every token sees the mean of all tokens and of the text; no attention, three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"hidden": TOY.hidden}
        self.enter = nn.Linear(TOY.in_channels + 3, TOY.hidden)
        self.text = nn.Linear(TOY.text_dim, TOY.hidden)
        self.block = nn.Linear(TOY.hidden, TOY.hidden)
        self.leave = nn.Linear(TOY.hidden, TOY.in_channels)


class ToyGraph(nn.Module):
    """A stage graph by its signature; positions are the tables."""

    def __init__(self, transformer: Any, signature: GraphSignature) -> None:
        super().__init__()
        self.transformer = transformer
        self.names = [spec.name for spec in signature.inputs]
        self.count = signature.output("velocity").shape[1]
        self.feature = len(signature.outputs) > 1

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given, model = dict(zip(self.names, values, strict=True)), self.transformer
        if "feature" in given:
            return (model.leave(given["feature"]) * given["timestep"][:, None, None],)
        latents = given["latents"]
        places = given["places"][given["text"].shape[1] :].expand(len(latents), -1, -1)
        tokens = model.enter(torch.cat([latents, places], dim=-1))
        context = model.text(given["text"]).mean(dim=1, keepdim=True)
        seen = tokens + context + tokens.mean(dim=1, keepdim=True)
        tokens = torch.tanh(model.block(seen))[:, : self.count]
        velocity = model.leave(tokens) * given["timestep"][:, None, None]
        return (velocity, tokens) if self.feature else (velocity,)


class ToyPatchifier:
    def __init__(self, facts: ModelFacts, text_tokens: int) -> None:
        self.text = text_tokens

    def pack(self, latents: Tensor) -> Tensor:
        b, c, f, h, w = latents.shape
        cells = latents.reshape(b, c, f, h // 2, 2, w // 2, 2)
        return cells.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, -1, 4 * c)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        b, c = len(tokens), tokens.shape[-1] // 4
        cells = tokens.reshape(b, grid.frames, grid.rows, grid.columns, c, 2, 2)
        return cells.permute(0, 4, 1, 2, 5, 3, 6).reshape(
            b, c, grid.frames, grid.height, grid.width
        )

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        axes = (torch.arange(n) for n in (grid.frames, grid.rows, grid.columns))
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3).float()
        return places + torch.tensor([100.0 * image, 0.0, 0.0])

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        return {"places": torch.cat([torch.zeros(self.text, 3), positions]) / 100}


class ToyGraphs:
    def signature(
        self,
        facts: ModelFacts,
        plan: StagePlan,
        stage: int,
        action: Action = "full",
        *,
        text_tokens: int,
        feature: bool | None = None,
        batch: int = 1,
    ) -> GraphSignature:
        tokens, text_tokens = plan.tokens[stage], plan.text_tokens(text_tokens)[stage]
        behind = facts.references * plan.stages[stage].grid.tokens
        if feature is None:
            feature = "bypass" in plan.stages[stage].actions
        full = {
            "latents": (batch, tokens + behind, facts.in_channels),
            "text": (batch, text_tokens, facts.text_dim),
            "timestep": (batch,),
            "places": (text_tokens + tokens + behind, 3),
        }
        kept = {FEATURES["final"]: (batch, tokens, facts.hidden)}
        velocity = {"velocity": (batch, tokens, facts.in_channels)}
        if action == "bypass":
            return specs({**kept, "timestep": (batch,)}, velocity)
        return specs(full, velocity | kept if feature else velocity)

    def module(self, transformer: nn.Module, signature: GraphSignature) -> nn.Module:
        return ToyGraph(transformer, signature).eval()

    def cut(self, graph: nn.Module, signature: GraphSignature, *, fuse: bool = False) -> Any:
        raise NotImplementedError

    def attention(self, transformer: nn.Module) -> Mapping[str, Callable[[nn.Module], None]]:
        return {}


def specs(*sides: Mapping[str, tuple[int, ...]]) -> GraphSignature:
    inputs, outputs = (
        tuple(TensorSpec(name=n, dtype="float32", shape=shape) for n, shape in side.items())
        for side in sides
    )
    return GraphSignature(inputs=inputs, outputs=outputs)


class ToyWeights:
    def config(self, facts: ModelFacts) -> dict[str, Any]:
        return {"hidden": facts.hidden}

    def load(
        self,
        weights: str | Path | None,
        facts: ModelFacts,
        *,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return ToyTransformer().to(dtype or torch.float32).eval().requires_grad_(False)

    def stored(self, folder: Path, device: str = "cpu") -> nn.Module:
        from safetensors.torch import load_file

        model = ToyTransformer()
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        return model.to(device).eval().requires_grad_(False)

    def parameters(
        self, facts: ModelFacts, action: Action, site: CacheSite, **quantised: Any
    ) -> Parameters:
        return Parameters(whole=facts.parameters)

    def with_blocks(self, facts: ModelFacts, blocks: tuple[int, ...]) -> ModelFacts:
        return facts


class ToyComponents:
    names = ("model_index.json",)

    def find(self, weights: str | None, model: str) -> Path:
        raise NotImplementedError

    find_vae = find

    def check(self, folder: Path, facts: ModelFacts) -> None:
        raise NotImplementedError

    def write_random(self, facts: ModelFacts, folder: Path) -> Path:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
        return folder

    def prompt_encoder(self, folder: Path, text_tokens: int) -> Any:
        return lambda prompt: {"text": text_of(prompt)}

    def decoder(self, folder: Path) -> Any:
        return lambda latents: np.zeros((len(latents), *latents.shape[2:], 3), np.uint8)

    def encoder(self, folder: Path) -> Any:
        raise NotImplementedError


FAMILY = ModelFamily(
    name="toy",
    models=(TOY,),
    patchifier=ToyPatchifier,
    graphs=ToyGraphs(),
    weights=ToyWeights(),
    components=ToyComponents(),
)


def text_of(prompt: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(prompt))
    return torch.randn(1, TOY.text_tokens, TOY.text_dim, generator=generator)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(FAMILY)
    yield
    unregister("toy")


def conditioning(scale: float = 1.0, seed: int = 3) -> Conditioning:
    """A prompt, its unconditional branch, and a reference clip."""
    reference = torch.randn(1, 2, 3, 8, 16, generator=torch.Generator().manual_seed(seed))
    return Conditioning(
        inputs={"text": text_of("a cat")},
        negative={"text": text_of("")},
        true_cfg_scale=scale,
        references=(reference,),
    )


def denoiser(plan: StagePlan, *, batch: int = 1) -> Denoiser:
    transformer, runners = FAMILY.weights.load("random", TOY), {}
    for index, action in plan.graphs:
        signature = FAMILY.graphs.signature(
            TOY, plan, index, action, text_tokens=TOY.text_tokens, batch=batch
        )
        runner = module_runner(FAMILY.graphs.module(transformer, signature), signature)
        runners[engine_name(index, action)] = runner.__enter__()
    return Denoiser.of(TOY, plan, runners, text_tokens=TOY.text_tokens)


def drawn(made: Denoiser, given: Conditioning, seed: int = 7) -> Tensor:
    *_, last = made.steps(given, seed)
    return made.latents(last)


# --- the plan ---------------------------------------------------------------------------------


def test_a_plan_has_latent_frames_and_halves_height_and_width_only() -> None:
    plan = make_plan(TOY, stages=2)
    assert [stage.grid for stage in plan.stages] == [
        Grid(height=4, width=8, scale=0.5, frames=3),
        Grid(height=8, width=16, scale=1.0, frames=3),
    ]
    assert plan.tokens == (3 * 2 * 4, 3 * 4 * 8)
    assert StagePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.size == (32, 16, 5)


@pytest.mark.parametrize(
    ("size", "said"), [((32, 16, 4), "--size 32x16x3"), ((32, 16, 99), "--size 32x16x9")]
)
def test_frames_that_the_model_has_not_are_refused(size: Any, said: str) -> None:
    with pytest.raises(UnsupportedSize, match=said):
        make_plan(TOY, stages=2, size=size)


def test_frames_of_a_model_of_pictures_are_refused() -> None:
    with pytest.raises(UnsupportedSize, match="draws pictures"):
        make_plan(model_facts("flux-tiny"), stages=1, size=(256, 256, 5))


def test_a_picture_is_a_clip_of_one_frame() -> None:
    assert make_plan(TOY, stages=1, size=(32, 16)).stages[0].grid.frames == 1


# --- the sampler ------------------------------------------------------------------------------


def by_hand(given: Conditioning, steps: int, seed: int = 7) -> Tensor:
    """Euler over one stage in four lines, with what the toy is: the oracle."""
    plan = make_plan(TOY, stages=1, steps=steps)
    grid, sigmas = plan.stages[0].grid, plan.stages[0].sigmas
    model, patchifier = FAMILY.weights.load("random", TOY), ToyPatchifier(TOY, TOY.text_tokens)
    signature = FAMILY.graphs.signature(TOY, plan, 0, text_tokens=TOY.text_tokens)
    graph = FAMILY.graphs.module(model, signature)
    noise = torch.randn(1, 2, 3, 8, 16, generator=torch.Generator().manual_seed(seed))
    x = patchifier.pack(noise)
    both = [patchifier.positions(grid, image) for image in (0, 1)]
    places = patchifier.tables(torch.cat(both))["places"]
    behind = patchifier.pack(given.references[0])
    for sigma, after in pairwise(sigmas):
        answers = []
        for branch in given.branches:
            timestep = torch.full((1,), sigma)
            answers.append(graph(torch.cat([x, behind], 1), branch["text"], timestep, places)[0])
        v = answers[1] + given.true_cfg_scale * (answers[0] - answers[1])
        x = x + (after - sigma) * v
    return patchifier.unpack(x, grid)


@pytest.mark.parametrize("batch", [1, 2], ids=["two calls", "one call of both"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_one_stage_is_the_plain_sampler_with_guidance_and_a_reference(
    scale: float, batch: int
) -> None:
    made = denoiser(make_plan(TOY, stages=1, steps=5), batch=batch)
    found = drawn(made, conditioning(scale))
    torch.testing.assert_close(found, by_hand(conditioning(scale), 5), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, drawn(made, conditioning(scale + 1)), atol=1e-3)
    assert not torch.allclose(found, drawn(made, conditioning(scale, seed=4)), atol=1e-3)


@pytest.mark.parametrize("stages", [2, 3])
def test_stages_draw_a_clip_of_full_size_the_same_each_time(stages: int) -> None:
    made = denoiser(make_plan(TOY, stages=stages))
    first, second = (drawn(made, conditioning(2.0)) for _ in range(2))
    assert first.shape == (1, 2, 3, 8, 16)
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_every_latent_frame_is_its_own() -> None:
    """With one engine for all places and no mixing of tokens, frames do not touch one another."""
    plan = make_plan(TOY, stages=2)
    made = denoiser(plan)

    class Still:
        """The velocity to a clean estimate of zero: only transitions and noise are left."""

        signature = next(iter(made.runners.values())).signature

        def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            count = inputs["latents"].shape[1] // 2
            return {"velocity": inputs["latents"][:, :count] / inputs["timestep"][:, None, None]}

    still: Any = dict.fromkeys(made.runners, Still())
    moved = torch.randn(1, 2, 3, 8, 16, generator=torch.Generator().manual_seed(7))
    other = moved.clone()
    other[:, :, 1] += 1.0
    given = replace(conditioning(), negative=None)
    for name in ("nearest", "bilinear", "haar"):
        transitions = tuple(replace(each, lift=name) for each in plan.transitions)
        lifted = replace(made, plan=replace(plan, transitions=transitions), runners=still)
        halves = [list(lifted.steps(given, field))[3].tokens for field in (moved, other)]
        patchifier, grid = lifted.patchifier, plan.stages[0].grid
        first, second = (patchifier.unpack(each, grid) for each in halves)
        assert torch.equal(first[:, :, (0, 2)], second[:, :, (0, 2)])
        assert not torch.equal(first[:, :, 1], second[:, :, 1])


@pytest.mark.parametrize("cache", ["reuse", "taylor", "hicache", "freqca"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_cache_answers_both_branches(cache: str, stages: int) -> None:
    plan = make_plan(TOY, stages=stages, **cached(cache))
    assert plan.full_steps < plan.nfe
    apart, together = (drawn(denoiser(plan, batch=n), conditioning(3.0)) for n in (1, 2))
    torch.testing.assert_close(apart, together, atol=1e-4, rtol=1e-4)
    full = drawn(denoiser(make_plan(TOY, stages=stages)), conditioning(3.0))
    assert 1e-6 < (apart - full).abs().max() < 1.0


def cached(name: str) -> dict[str, Any]:
    return {"cache": CacheConfig(name=name, interval=2, warmup_steps=2)}


def test_references_of_another_size_are_refused() -> None:
    wrong = replace(conditioning(), references=(torch.zeros(1, 2, 3, 8, 8),))
    with pytest.raises(ValueError, match="a reference of latents"):
        denoiser(make_plan(TOY, stages=1)).steps(wrong, 7)


def test_a_scale_without_a_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="without an unconditional branch"):
        Conditioning(inputs={}, true_cfg_scale=2.0)
    with pytest.raises(ValueError, match="expected"):
        Conditioning(inputs={"text": torch.zeros(1)}, negative={"text": torch.zeros(2)})


# --- the bundle -------------------------------------------------------------------------------


def test_a_bundle_of_it_is_built_opened_and_drawn_with(tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"cache": "taylor,interval=2,warmup_steps=2"}
    folder = build(
        "toy-clip",
        stages=2,
        weights="random",
        backend="eager",
        out=tmp_path / "toy",
        **knobs,
    )
    bundle = open_bundle(folder, environment=check_environment)
    assert {engine.family for engine in bundle.manifest.engines} == {"toy"}
    assert bundle.plan.stages[-1].grid.frames == 3
    with FrescoPipeline.from_bundle(folder) as pipe:
        made = Denoiser.of(TOY, pipe.plan, pipe.runners, text_tokens=TOY.text_tokens)
        found = drawn(made, conditioning(2.0))
    expected = drawn(denoiser(bundle.plan), conditioning(2.0))
    assert torch.equal(found, expected)
    unregister("toy")
    try:
        with pytest.raises(EnvironmentMismatch, match="a bundle of the model 'toy-clip'"):
            open_bundle(folder, environment=check_environment)
    finally:
        register(FAMILY)


# --- the registry -----------------------------------------------------------------------------


def test_a_registered_family_is_found_by_its_facts() -> None:
    assert family_of(TOY) is FAMILY
    assert "toy-clip" in model_names()
    assert model_facts("toy-clip") is TOY
    with pytest.raises(UnknownModel, match="unknown model family"):
        family_of(replace(TOY, family="nobodys"))


@pytest.mark.parametrize(
    "again",
    [
        FAMILY,
        replace(FAMILY, name="flux", models=()),
        replace(FAMILY, name="new"),
        replace(FAMILY, name="new", models=(replace(TOY, name="flux", family="new"),)),
    ],
    ids=["twice", "a family's name", "another's model", "a model's name"],
)
def test_names_are_given_once(again: ModelFamily) -> None:
    with pytest.raises(IncompatibleOptions, match="new names"):
        register(again)
