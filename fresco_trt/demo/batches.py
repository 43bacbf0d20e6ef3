"""Training batches of rendered scenes, endless and seeded."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from fresco_trt.demo.render import render
from fresco_trt.demo.scenes import Scene, random_scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch


def pictures_of(scenes: Sequence[Scene], width: int, height: int | None = None) -> torch.Tensor:
    """Scenes as float32 pictures in [-1, 1], shape [len(scenes), 3, height, width]."""
    import numpy as np
    import torch

    stacked = np.stack([render(scene, width, height) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def scene_stream(seed: int, *, held_out: bool = False) -> Iterator[Scene]:
    """Random scenes of one seed, without end."""
    rng = random.Random(seed)
    while True:
        yield random_scene(rng, held_out=held_out)
