"""One noise field per request and its Haar levels: the start and the re-noising of every stage.

Sits at the head of the request-time path: a seed goes in, a :class:`NoisePyramid` comes out, and
:mod:`fresco_trt.run.transition` and :mod:`fresco_trt.run.sampler` only read it. Level 0 is what
diffusers' ``FluxPipeline`` would draw for the same seed; level k+1 is the orthonormal Haar LL band
of level k, so every level is white with unit variance and nothing random is drawn after the seed.

A level of which no whole number of tokens comes out has a margin: as many rows or columns more, of
the detail band beside them, which is as white and has nothing in common with the level. On the way
back they are left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco_trt.run.resample import Details, cropped, haar_merge, haar_split

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan


def noise_field(
    seeds: int | Sequence[int],
    *,
    channels: int,
    height: int,
    width: int,
    frames: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw the full-resolution field E: float32 [B,C,H,W] in latent pixels, B = number of seeds;
    [B,C,F,H,W] for more latent ``frames`` than one.

    Bit for bit what diffusers' ``FluxPipeline.prepare_latents`` draws, before packing, with one
    CPU generator per picture. The draw is always made on the CPU, so that a seed means the same
    picture on every device. Raises ``ValueError`` if no seed is given.
    """
    each = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    if not each:
        raise ValueError("no seed given; expected one per picture")
    clip = () if frames == 1 else (frames,)
    shape = (1, channels, *clip, height, width)
    drawn = [
        torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
        for seed in each
    ]
    return torch.cat(drawn).to(device)


def fresh_generator(seeds: int | Sequence[int]) -> torch.Generator:
    """CPU generator for what is drawn at a transition: fresh noise, the ablation, or random tokens.

    Seeded by a hash of ``seeds``: a generator seeded with the request's own seed would draw E
    again, value for value, and the ablation would measure nothing.
    """
    each = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    digest = hashlib.sha256(f"fresh noise {each}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def level_of(scale: float) -> int:
    """Pyramid level of a grid scale: 1.0 is 0, 0.5 is 1, 0.25 is 2.

    Raises ``ValueError`` unless ``scale`` is 1 over a power of two.
    """
    mantissa, exponent = math.frexp(scale)
    if mantissa != 0.5 or exponent > 1:
        raise ValueError(f"scale {scale:g} has no noise level; expected 1, 0.5, 0.25, ...")
    return 1 - exponent


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoisePyramid:
    """A noise field at every resolution of a plan; read-only and shared freely between requests.

    ``fields`` run from finest to coarsest, float32 [B,C,(F),H/2^k,W/2^k] and their margins;
    ``details[k]`` are the bands that turn ``fields[k+1]``, without its margin, back into
    ``fields[k]``. Nobody may write to these tensors.
    """

    fields: tuple[Tensor, ...]
    details: tuple[Details, ...]

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless there is one detail triple between neighbouring fields."""
        if len(self.fields) != len(self.details) + 1:
            raise ValueError(
                f"{len(self.fields)} fields and {len(self.details)} detail levels;"
                " expected one detail level between each two fields"
            )

    @classmethod
    def from_field(cls, field: Tensor, *, coarsest: float = 1.0, patch: int = 1) -> NoisePyramid:
        """Split ``field`` (float32 [B,C,(F),H,W], unit variance) down to the scale ``coarsest``,
        each level with sides that are multiples of ``patch``.

        On the field's own device: sums of two numbers and halvings round alike on every one, so the
        levels are the same bit for bit. Raises ``ValueError`` for another dtype, a scale that is
        not 1 over a power of two, or sides that cannot be halved that often.
        """
        if field.dtype != torch.float32 or field.ndim not in (4, 5):
            raise ValueError(
                f"noise field is {field.dtype} {tuple(field.shape)}; expected float32 [B,C,(F),H,W]"
            )
        fields, details = [field], list[Details]()
        for _ in range(level_of(coarsest)):
            low, bands = haar_split(fields[-1])
            fields.append(_with_margin(low, bands, patch))
            details.append(bands)
        return cls(fields=tuple(fields), details=tuple(details))

    @classmethod
    def from_seed(
        cls,
        seeds: int | Sequence[int],
        *,
        channels: int,
        height: int,
        width: int,
        frames: int = 1,
        coarsest: float = 1.0,
        patch: int = 1,
        device: torch.device | str = "cpu",
    ) -> NoisePyramid:
        """Draw :func:`noise_field` and split it; sizes are full-resolution latent pixels."""
        field = noise_field(
            seeds, channels=channels, height=height, width=width, frames=frames, device=device
        )
        return cls.from_field(field, coarsest=coarsest, patch=patch)

    @classmethod
    def of_plan(
        cls,
        plan: StagePlan,
        seeds: int | Sequence[int],
        *,
        channels: int,
        device: torch.device | str = "cpu",
    ) -> NoisePyramid:
        """The noise that a plan is drawn from: its full grid's, down to its coarsest."""
        full = plan.stages[-1].grid
        return cls.from_seed(
            seeds,
            channels=channels,
            height=full.height,
            width=full.width,
            frames=full.frames,
            coarsest=plan.stages[0].grid.scale,
            patch=full.patch,
            device=device,
        )

    def field(self, scale: float) -> Tensor:
        """The unit-variance field of the grid at ``scale``; ``ValueError`` if it was not made."""
        return self.fields[self._level(scale)]

    def complete(
        self, low: Tensor, scale: float, scale_next: float, *, gain: float = 1.0
    ) -> Tensor:
        """Expand ``low`` at ``scale`` orthonormally to ``scale_next`` with the stored details.

        The details of every level in between are multiplied by ``gain``; with gain 1,
        ``complete(field(scale), scale, scale_next)`` is ``field(scale_next)``. Raises
        ``ValueError`` if a level was not made or ``scale_next`` is the coarser one.
        """
        level, level_next = self._level(scale), self._level(scale_next)
        if level_next > level:
            raise ValueError(f"scale {scale_next:g} after {scale:g}; expected the same or finer")
        for finer in range(level - 1, level_next - 1, -1):
            column, row, diagonal = self.details[finer]
            bands = column * gain, row * gain, diagonal * gain
            low = haar_merge(cropped(low, column), bands)
        return low

    def _level(self, scale: float) -> int:
        level = level_of(scale)
        if level >= len(self.fields):
            made = ", ".join(f"{0.5**k:g}" for k in range(len(self.fields)))
            raise ValueError(f"no noise level for scale {scale:g}; expected one of {made}")
        return level


def _with_margin(low: Tensor, bands: Details, patch: int) -> Tensor:
    """A level with as many rows and columns more as make its sides multiples of ``patch``."""
    rows, columns = (-side % patch for side in low.shape[-2:])
    column, row, diagonal = bands
    if columns:
        low = torch.cat([low, column[..., -columns:]], dim=-1)
        row = torch.cat([row, diagonal[..., -columns:]], dim=-1)
    return torch.cat([low, row[..., -rows:, :]], dim=-2) if rows else low
