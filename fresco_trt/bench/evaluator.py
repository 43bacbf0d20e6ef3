"""From latents to scores: decode, compare with the reference, and see what a classifier sees.

Between what a method drew and its line in the results log; shared by all instruments.
"""

from __future__ import annotations

import base64
from functools import cached_property
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.bench.quality import DECIBELS
from fresco_trt.lower.similarity import psnr, ssim

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from fresco_trt.bench.instrument import Drawn, Pixels, Scores
    from fresco_trt.bench.scenes.scene import Scene
    from fresco_trt.models.family import Decoder


class Evaluator:
    """The decoder of a pipeline folder, and the demo's classifier where ``judged``.

    Without it features are None: it knows the demo's scenes only.
    """

    def __init__(self, decoder: Decoder, *, judged: bool) -> None:
        self._decoder = decoder
        self.judged = judged

    @cached_property
    def _judge(self) -> Any:
        from fresco_trt.bench.scenes.judge import load_judge

        return load_judge()

    def scores(
        self,
        drawn: Mapping[str, Drawn],
        reference: str,
        right: Callable[[str, Tensor], bool | None],
        twins: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[dict[str, Scores], dict[str, Pixels]]:
        """Scores and pictures uint8 [H,W,3] by name; ``right`` is asked with name and picture.

        ``twins`` names for a quantised point the same one unquantised, to be compared with too.
        """
        pictures: dict[str, Tensor] = {}
        seconds: dict[str, float] = {}
        for name, each in drawn.items():
            began = perf_counter()
            pictures[name] = self.look(each.latents)
            seconds[name] = perf_counter() - began
        truth = pictures[reference]
        scores: dict[str, Scores] = {}
        for name, picture in pictures.items():
            itself = name == reference
            scores[name] = {
                "seconds": drawn[name].seconds,
                "engine_seconds": drawn[name].engine_seconds,
                "decode_seconds": seconds[name],
                "flops": drawn[name].flops,
                "right": right(name, picture),
                "psnr": None if itself else min(psnr(picture, truth).item(), DECIBELS),
                "ssim": ssim(picture, truth).item(),
                "features": encode(self.features(picture)[0]) if self.judged else None,
            }
            if name in twins:
                scores[name]["twin_ssim"] = ssim(picture, pictures[twins[name]]).item()
        return scores, {name: _pixels(picture) for name, picture in pictures.items()}

    def look(self, latents: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in [-1,1], rounded to what an 8-bit file holds."""
        pixels = self._decoder(latents)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """The classifier's features [B,D] of pictures [B,3,H,W]."""
        found: Tensor = self._judge.pooled(pictures)
        return found

    def verdict(self, picture: Tensor, scene: Scene) -> bool:
        """Whether a picture [1,3,H,W] shows all that the scene's caption says."""
        from fresco_trt.bench.scenes.judge import verdicts

        return verdicts(self._judge, picture, [scene])[0].right


def encode(features: Tensor) -> str:
    """Features [D] as text for a line of JSON: half precision, a thousandth of their spread."""
    return base64.b64encode(features.half().numpy().tobytes()).decode("ascii")


def decode(text: str) -> Tensor:
    """Inverse of :func:`encode`, float32 [D]."""
    raw = bytearray(base64.b64decode(text))
    return torch.frombuffer(raw, dtype=torch.float16).float()


def _pixels(picture: Tensor) -> Pixels:
    scaled = ((picture[0] + 1) * 127.5).round().to(torch.uint8)
    pixels: Pixels = scaled.permute(1, 2, 0).contiguous().numpy()
    return pixels
