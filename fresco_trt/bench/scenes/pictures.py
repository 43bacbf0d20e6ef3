"""Scenes in any number: an endless stream of them, and their pictures in batches."""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.render import render
from fresco_trt.bench.scenes.scene import Scene, random_scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from fresco_trt.plan.sizes import Size

    Pixels = npt.NDArray[np.uint8]


def scene_stream(seed: int, *, held_out: bool = False) -> Iterator[Scene]:
    """Random scenes of one seed, without end."""
    rng = random.Random(seed)
    while True:
        yield random_scene(rng, held_out=held_out)


def drawn_scenes(count: int, seed: int, size: Size) -> Iterator[Pixels]:
    """Pictures uint8 [H,W,3] of the first ``count`` scenes of a seed, one at a time."""
    for scene in islice(scene_stream(seed), count):
        yield render(scene, *size)


def pixels_of(scenes: Sequence[Scene], width: int, height: int | None = None) -> Pixels:
    """Scenes as uint8 pictures [len(scenes), height, width, 3]; square without a height."""
    import numpy as np

    return np.stack([render(scene, width, height) for scene in scenes])


def pictures_of(scenes: Sequence[Scene], width: int, height: int | None = None) -> torch.Tensor:
    """Scenes as float32 pictures in [-1, 1], shape [len(scenes), 3, height, width]."""
    return scaled(pixels_of(scenes, width, height))


def scaled(pixels: Pixels, device: torch.device | str = "cpu") -> torch.Tensor:
    """Pictures uint8 [B,H,W,3] as float32 [B,3,H,W] in [-1, 1], on a device."""
    import torch

    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
