"""A model family of one's own, in one file: a "network" that knows its picture, a fading colour.

    python examples/own_family.py

A family says how latents become tokens, which graphs its stages have, how its weights are read, and
what stands around the transformer. Everything else (plan, engines, bundle, sampler) is the
package's. The network here is exact: its velocity leads from any noise to a colour that fades from
top to bottom, so that the picture at the end can be checked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import fresco_trt
from fresco_trt.models.family import ModelFamily
from fresco_trt.models.registry import register
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.memory import Parameters
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.signature import GraphSignature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}

FACTS = ModelFacts(
    name="fading",
    family="fading",
    hidden=12,
    heads=1,
    head_dim=12,
    double_blocks=1,
    single_blocks=0,
    mlp_ratio=1,
    in_channels=12,
    text_dim=3,
    pooled_dim=0,
    text_tokens=1,
    rope_axes=(6, 6),
    guidance=False,
    guidance_default=None,
    default_steps=8,
    vae_scale=4,
    latent_channels=3,
    patch=2,
    default_size=(64, 64),
    max_pixels=512 * 512,
    parameters=1,
    high_precision=(),
    shift=None,
    spectrum=None,
    presets={"balanced": {1: Preset(steps=(8,)), 2: Preset(steps=(3, 3), switch=(0.6,))}},
)


class FadingTransformer(torch.nn.Module):
    """Velocity [B,N,C] at ``latents`` [B,N,C] and noise level ``timestep`` [B]."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.brightness = torch.nn.Parameter(torch.tensor([config["brightness"]]))

    def forward(
        self, latents: Tensor, text: Tensor, timestep: Tensor, places: Tensor
    ) -> tuple[Tensor]:
        """The one velocity on the straight path to the picture; ``places`` [T+N,2] are inputs."""
        row = places[text.shape[1] :, :1]
        shown = 1.0 - row / (row.max() + 1.0)
        clean = text.repeat_interleave(4, dim=2) * shown * self.brightness
        return ((latents - clean) / timestep[:, None, None],)


# --- the five parts of a family ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FadingPatchifier:
    """Latents to tokens of 2x2 latent pixels, and where those are."""

    facts: ModelFacts
    text_tokens: int

    def pack(self, latents: Tensor) -> Tensor:
        """[B,C,H,W] to [B,N,4C]."""
        return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """The inverse."""
        cells = tokens.transpose(1, 2).unflatten(2, (grid.rows, grid.columns))
        return torch.nn.functional.pixel_shuffle(cells, 2)

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        """Row and column of each token [N,2]."""
        places = torch.cartesian_prod(torch.arange(grid.rows), torch.arange(grid.columns))
        return places.to(torch.float32)

    def tables(self, positions: Tensor) -> dict[str, Tensor]:
        """The engine input that depends on positions alone; rows of the text come first."""
        return {"places": torch.cat([torch.zeros(self.text_tokens, 2), positions])}


class FadingGraphs:
    """One graph a stage; no step is cheap, so no plan of this family has a cache."""

    def signature(
        self,
        facts: ModelFacts,
        plan: StagePlan,
        stage: int,
        action: str = "full",
        *,
        text_tokens: int,
        feature: bool | None = None,
        batch: int = 1,
    ) -> GraphSignature:
        """Names, dtypes and static shapes of what the stage's graph takes and gives."""
        tokens, text_tokens = plan.tokens[stage], plan.text_tokens(text_tokens)[stage]
        shapes = {
            "latents": (batch, tokens, facts.in_channels),
            "text": (batch, text_tokens, facts.text_dim),
            "timestep": (batch,),
            "places": (text_tokens + tokens, 2),
        }
        inputs = (
            TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()
        )
        velocity = TensorSpec(name="velocity", dtype="float32", shape=shapes["latents"])
        return GraphSignature(inputs=tuple(inputs), outputs=(velocity,))

    def module(self, transformer: torch.nn.Module, signature: GraphSignature) -> torch.nn.Module:
        """The module behind a signature: here the transformer, whatever the size."""
        return transformer

    def cut(self, graph: torch.nn.Module, signature: GraphSignature, *, fuse: bool = False) -> Any:
        """Blocks that are compiled one by one, for the backend inductor."""
        raise NotImplementedError

    def attention(self, transformer: torch.nn.Module) -> dict[str, Any]:
        """Attention that FP8 can quantise: there is none."""
        return {}


class FadingWeights:
    """A transformer is a configuration and one safetensors file."""

    def config(self, facts: ModelFacts) -> dict[str, Any]:
        """What is stored beside the weights."""
        return {"brightness": 0.5}

    def load(
        self,
        weights: str | Path | None,
        facts: ModelFacts,
        *,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> torch.nn.Module:
        """The transformer of a folder; "random" makes one."""
        if weights == "random":
            return FadingTransformer(self.config(facts)).eval().requires_grad_(False)
        return self.stored(Path(str(weights)) / "transformer")

    def stored(self, folder: Path, device: str = "cpu") -> torch.nn.Module:
        """The transformer of a folder."""
        from safetensors.torch import load_file

        model = FadingTransformer(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        return model.to(device).eval().requires_grad_(False)

    def parameters(self, facts: ModelFacts, *settings: Any, **others: Any) -> Parameters:
        """How many there are, for ``--dry-run``."""
        return Parameters(whole=facts.parameters)

    def with_blocks(self, facts: ModelFacts, blocks: tuple[int, ...]) -> ModelFacts:
        """Fewer blocks: there is only one."""
        return facts


class FadingComponents:
    """Prompt encoder and decoder: a folder with the colours, and latents shown as they are."""

    names = ("colours",)

    def find(self, weights: str | None, model: str) -> Path:
        """The folder around given weights."""
        return Path(str(weights))

    def check(self, folder: Path, facts: ModelFacts) -> None:
        """Nothing in the folder has settings that could be another model's."""

    def find_vae(self, weights: str | None, model: str) -> Path:
        """The same."""
        return self.find(weights, model)

    def write_random(self, facts: ModelFacts, folder: Path) -> Path:
        """The folder that goes with random weights."""
        (folder / "colours").mkdir()
        (folder / "colours" / "colours.json").write_text(json.dumps(COLOURS), encoding="utf-8")
        return folder

    def prompt_encoder(self, folder: Path, text_tokens: int) -> Any:
        """A prompt to constant engine inputs, batch 1; no picture is edited."""
        colours = json.loads((folder / "colours" / "colours.json").read_text(encoding="utf-8"))
        return lambda prompt, picture: {"text": torch.tensor([[colours[prompt]]])}

    def decoder(self, folder: Path) -> Any:
        """Latents [B,3,H,W] to pixels uint8 [B,4H,4W,3]."""

        def decode(latents: Tensor) -> np.ndarray:
            pixels = latents.repeat_interleave(4, 2).repeat_interleave(4, 3).permute(0, 2, 3, 1)
            values: np.ndarray = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
            return values

        return decode

    def encoder(self, folder: Path) -> Any:
        """Pixels to latents, for editing and for spectra."""
        raise NotImplementedError


FADING = ModelFamily(
    name="fading",
    models=(FACTS,),
    patchifier=FadingPatchifier,
    graphs=FadingGraphs(),
    weights=FadingWeights(),
    components=FadingComponents(),
)


def main(folder: Path) -> None:
    """Register, build, draw, and compare with the picture that the network knows."""
    register(FADING)
    bundle = fresco_trt.build(
        "fading", stages=2, weights="random", backend="eager", out=folder / "fading"
    )
    with fresco_trt.FrescoPipeline.from_bundle(bundle) as pipe:
        picture = pipe("red", seed=1).images[0]
    picture.save(folder / "fading.png")
    column = [int(red) for red in np.asarray(picture)[::8, 0, 0]]
    print("red, from top to bottom:", column)


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]))
