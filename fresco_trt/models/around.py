"""What is around a family's transformer, as the rest of the package asks for it: prompt encoders,
VAE and the folder that holds them.

Part of the seam (:mod:`fresco_trt.models.family`); shapes are spelt as there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts


class PromptWarning(UserWarning):
    """Part of a prompt could not be used; the message says which and what the limit is."""


class PromptEncoder(Protocol):
    """Prompt text to constant engine inputs."""

    def __call__(self, prompt: str, picture: Image | None = None) -> dict[str, Tensor]:
        """Engine inputs by name, batch 1, float32, of a prompt and of the source of an edit, an RGB
        picture of the built size, for encoders that see one.

        Warns (PromptWarning) of what is not read; raises PlanError for a string that is not text,
        TypeError for another type.
        """
        ...

    def tokens(self, prompt: str) -> int:
        """How many tokens of the text are the prompt's own: all others are padding behind them.
        Raises as a call does.
        """
        ...


class Decoder(Protocol):
    """Latents to pixels, normalised [B,C,h,w]."""

    def __call__(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Pictures uint8 [B,H,W,3] of normalised latents; clips are [B,F,H,W,3]."""
        ...

    def features(self, latents: Tensor) -> tuple[Tensor, ...]:
        """What the decoder makes of latents on the way: maps float32 [B,D,h',w'] of some depths."""
        ...


class Encoder(Protocol):
    """Pixels to latents; ``channels`` and ``scale`` (pixels along a latent pixel) are the VAE's,
    ``digest`` the SHA-256 of its weights, ``scaling`` and ``shift`` how latents are normalised:
    one number, or one a channel.
    """

    channels: int
    scale: int

    @property
    def scaling(self) -> float | tuple[float, ...]: ...
    @property
    def shift(self) -> float | tuple[float, ...]: ...
    @property
    def digest(self) -> str: ...

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Normalised latents float32 [B,C,h,w] of sRGB pictures uint8 [B,H,W,3]."""
        ...


class FamilyComponents(Protocol):
    """Prompt encoders, VAE and scheduler: what a pipeline folder holds beside the transformer.

    ``names`` are the entries of such a folder that a bundle needs.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def find(self, weights: str | None, model: str) -> Path:
        """The pipeline folder of a model: around ``weights``, packaged, or from the hub. Raises
        WeightsNotFound, which lists the places looked at.
        """
        ...

    def check(self, folder: Path, facts: ModelFacts) -> None:
        """Raise PlanError or LowerError leaves for a folder whose parts are not what plans and
        engines of the model take for granted, its scheduler among them.
        """
        ...

    def find_vae(self, weights: str | None, model: str) -> Path:
        """The folder whose VAE is the model's; nothing is fetched. Raises WeightsNotFound."""
        ...

    def write_random(self, facts: ModelFacts, folder: Path) -> Path:
        """Write a folder of random components at the real widths; the folder."""
        ...

    def prompt_encoder(self, folder: Path, text_tokens: int) -> PromptEncoder:
        """The prompt encoders of a folder, for engines of so many text tokens."""
        ...

    def decoder(self, folder: Path) -> Decoder:
        """The VAE's decoder."""
        ...

    def encoder(self, folder: Path) -> Encoder:
        """The VAE's encoder."""
        ...
