"""The oracle's flow: the exact velocity of a finite set of scenes, with no network.

Where the data are N known latents z_i, equally likely, the flow ``x = (1-sigma)*z + sigma*noise``
has the velocity ``(x - E[z | x]) / sigma``, and the posterior mean is a softmax-weighted mean of
the z_i. That is a perfectly trained model, at every resolution at once: it separates what a method
loses from what a small network never learnt. It memorises, so its paths curve more than a trained
model's (measured on the prototype, like the idea).

A coarse grid's scenes are the fine ones' 2x2 block means. Only so do the levels belong together:
the block mean is the Haar LL band with its amplitude halved, so the coarse flow is exactly that of
the fine latents' LL band under the LL band of the fine noise, at the level that a rewind maps to.
Rendering the scenes anew at each size would give latents that are close to this and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from fresco_trt.backends.base import Call, EngineRunner
from fresco_trt.models.flux.tokens import pack, position_ids, unpack
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from fresco_trt.run.positions import Units
from fresco_trt.run.request import coarse_grid, engine_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan


def posterior_weights(x: Tensor, sigma: float, scenes: Tensor) -> Tensor:
    """Probability [B,N] of each scene [N,D] given noisy ``x`` [B,D] at ``sigma``; float64.

    Bayes' rule under white noise: the logarithms differ by squared distances over 2*sigma^2, which
    reach thousands, hence the softmax of logarithms and the double precision.
    """
    clean = (1.0 - sigma) * scenes.double()
    # |x|^2 is the same for every scene and left out; what remains does not cancel.
    logits = x.double() @ clean.mT - clean.square().sum(dim=-1) / 2
    return torch.softmax(logits / sigma**2, dim=-1)


def exact_velocity(x: Tensor, sigma: float, scenes: Tensor) -> Tensor:
    """``(x - E[z|x]) / sigma``, float64 [B,D], for ``x`` [B,D] and scenes [N,D]; sigma above 0."""
    mean = posterior_weights(x, sigma, scenes) @ scenes.double()
    return (x.double() - mean) / sigma


def nearest(x: Tensor, scenes: Tensor) -> Tensor:
    """Index [B] of the scene [N,D] with the smallest distance to each ``x`` [B,D]."""
    return torch.cdist(x.double(), scenes.double()).argmin(dim=-1)


class SceneSet:
    """The scenes of one caption as tokens of every grid: ``latents`` [N,C,H,W] at full size."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents.double()
        self._tokens: dict[int, Tensor] = {}

    def tokens(self, grid: Grid) -> Tensor:
        """Tokens [N,T,4C] of the block means on a grid, float64. Raises ValueError off scale."""
        factor = round(1 / grid.scale)
        if factor not in self._tokens:
            self._tokens[factor] = pack(functional.avg_pool2d(self.latents, factor))
        found = self._tokens[factor]
        if found.shape[1] != grid.tokens:
            raise ValueError(f"scenes of {found.shape[1]} tokens; expected those of {grid}")
        return found


class OraclePatchifier:
    """FLUX's packing; the table that an engine gets of its tokens is their positions themselves."""

    def pack(self, latents: Tensor) -> Tensor:
        """Tokens [B,N,4C] from latents [B,C,H,W]."""
        return pack(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Inverse of :meth:`pack`."""
        return unpack(tokens, grid.rows, grid.columns)

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        """As FLUX has them."""
        return position_ids(grid.rows, grid.columns, image)

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        """``positions`` as they are."""
        return {"positions": positions}


def oracle_runners(plan: StagePlan, sets: Sequence[SceneSet]) -> dict[str, EngineRunner]:
    """A runner for each stage of a plan, to be entered; ``caption`` [1] says which set is meant.

    A mixed stage is exact too: its tokens are observed under white noise of one level, coarse ones
    as block means, and the posterior is the one given just these.
    """
    return {
        engine_name(index, "full"): _runner(plan, index, sets) for index in range(len(plan.stages))
    }


def _runner(plan: StagePlan, index: int, sets: Sequence[SceneSet]) -> EngineRunner:
    grid, tokens = plan.stages[index].grid, plan.tokens[index]
    coarse = coarse_grid(plan, index)
    kept = coarse.tokens - plan.refined[index] if plan.refined[index] else 0
    width = sets[0].tokens(grid).shape[2]
    signature = GraphSignature(
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=(1, tokens, width)),
            TensorSpec(name="timestep", dtype="float32", shape=(1,)),
            TensorSpec(name="caption", dtype="int64", shape=(1,)),
            TensorSpec(name="positions", dtype="float32", shape=(tokens, 3)),
            *_coarse_frame(plan, index),
        ),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=(1, tokens, width)),),
    )
    units: Units = "coarse" if plan.positions == "coarse" else "fine"
    observed = partial(observed_tokens, coarse=coarse, fine=grid, kept=kept, units=units)
    return EngineRunner(signature, partial(_open, sets, observed))


def _coarse_frame(plan: StagePlan, index: int) -> tuple[TensorSpec, ...]:
    """What the plan's second numbering gives an engine; an exact one needs no second look."""
    if not plan.aligned[index]:
        return ()
    shape = coarse_grid(plan, index).tokens, 3
    return (TensorSpec(name="positions_coarse", dtype="float32", shape=shape),)


def observed_tokens(
    scenes: SceneSet, positions: Tensor, *, coarse: Grid, fine: Grid, kept: int, units: Units
) -> Tensor:
    """The scenes' tokens [N,T,4C] at ``positions`` [T,3]: ``kept`` coarse ones, then fine ones."""
    whole = scenes.tokens(fine)
    if not kept:
        return whole
    places = positions[:, 1:].double()
    if units == "fine":
        rows, children = (places[:kept] - 0.5) / 2, places[kept:]
    else:
        rows, children = places[:kept], 2 * places[kept:]
    parts = [scenes.tokens(coarse)[:, _raster_index(rows, coarse)]]
    parts.append(whole[:, _raster_index(children, fine)])
    return torch.cat(parts, dim=1)


def _raster_index(places: Tensor, grid: Grid) -> Tensor:
    row, column = places.round().long().unbind(dim=1)
    return row * grid.columns + column


@contextmanager
def _open(sets: Sequence[SceneSet], observed: partial[Tensor]) -> Iterator[Call]:
    def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        latents, sigma = inputs["latents"], inputs["timestep"].item()
        scenes = observed(sets[int(inputs["caption"].item())], inputs["positions"])
        velocity = exact_velocity(latents.flatten(1), sigma, scenes.flatten(1))
        return {"velocity": velocity.float().view_as(latents)}

    yield call
