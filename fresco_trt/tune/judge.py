"""What a picture is worth beside the many-step picture of its prompt and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.lower.similarity import ssim
from fresco_trt.tune.perceptual import closeness
from fresco_trt.tune.scorer import score_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from fresco_trt.tune.options import Metric
    from fresco_trt.tune.perceptual import Network

    Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """A many-step picture as others are compared with it."""

    pixels: Pixels
    picture: Tensor
    features: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """SSIM, and the network's closeness and the scorer's number where there are such."""

    network: Network | None = None
    scorer: Callable[..., Any] | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What it gives."""
        found: list[Metric] = ["ssim"]
        found += ["perceptual"] if self.network is not None else []
        found += ["score"] if self.scorer is not None else []
        return tuple(found)

    def truth(self, pixels: Pixels, prompt: str) -> Truth:
        """A many-step picture uint8 [H,W,3]. Raises ScorerFailed where it cannot be scored."""
        self._score(pixels, prompt)
        picture = _scaled(pixels)
        return Truth(pixels=pixels, picture=picture, features=self._features(picture))

    def figures(self, pixels: Pixels, truth: Truth, prompt: str) -> dict[Metric, float]:
        """The metrics of a picture uint8 [H,W,3]. Raises ScorerFailed."""
        picture = _scaled(pixels)
        found: dict[Metric, float] = {"ssim": ssim(picture, truth.picture).item()}
        if self.network is not None:
            near = closeness(self._features(picture), truth.features)
            found["perceptual"] = near.item()
        return {**found, **self._score(pixels, prompt)}

    def _features(self, picture: Tensor) -> list[Tensor]:
        return [] if self.network is None else self.network.features(picture)

    def _score(self, pixels: Pixels, prompt: str) -> dict[Metric, float]:
        if self.scorer is None:
            return {}
        from PIL.Image import fromarray

        return {"score": score_of(self.scorer, fromarray(pixels), prompt)}


def _scaled(pixels: Pixels) -> Tensor:
    """Pixels uint8 [H,W,3] as a picture float32 [1,3,H,W] in [-1,1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
